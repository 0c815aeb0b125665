"""Sizes in pixels that people make images of."""

# the buckets that SDXL was trained on: multiples of 64 with about a megapixel (arXiv 2307.01952, appendix I), both ways
_LANDSCAPE = [
    (2048, 512), (1984, 512), (1920, 512), (1856, 512), (1792, 576), (1728, 576), (1664, 576), (1600, 640), (1536, 640),
    (1472, 704), (1408, 704), (1344, 704), (1344, 768), (1280, 768), (1216, 832), (1152, 832), (1152, 896), (1088, 896),
    (1088, 960), (1024, 960),
]  # fmt: skip
_OTHERS = [(512, 512), (640, 640), (768, 768), (1024, 1024), (1024, 768), (768, 512), (1280, 720), (1920, 1080), (2048, 2048)]  # fmt: skip
SDXL_SIZES = [*_LANDSCAPE, *((height, width) for width, height in _LANDSCAPE), *_OTHERS]
