"""Picture files as 8-bit RGB, upright; the one reader of `embed`, `calibrate` and `evaluate`. Damaged or oversized files are refused with a reason."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # of Pillow; some others start programs or allocate without limit
LARGEST = 178_956_970  # pixels; Pillow's own limit of a picture that is not meant to fill the memory
MEMORY = 1_800_000_000  # bytes that one picture and its file may take while it is decoded
LARGEST_FILE = 2**29  # bytes of one picture file
SHORTEST = 16  # pixels of the shorter side
LARGE = 32_000_000  # pixels; a picture with more is reduced while it is read
ENOUGH = 2048  # pixels of the shorter side below which no picture is reduced
DECODING = {"WEBP": 16, "AVIF": 18, "JPEG": 10, "MPO": 10}  # bytes that Pillow's decoder takes for each pixel; others: 8
ORIENTATION = 0x0112  # EXIF's tag


class Skipped(Exception):
    """The reason to leave a picture out, in a few words that are the same for all of a kind."""


def read_upright(content: bytes, shortest: int = SHORTEST) -> Image:
    """An RGB picture of the first frame, turned as its camera noted, on white where it is transparent.

    Values of 16 bits are scaled to 8. A picture of more than `LARGE` pixels is reduced by a whole number, but its shorter side to no less than
    `ENOUGH` pixels. EXIF gives the orientation and nothing else; a picture whose EXIF is damaged stays as it lies in the file.

    Args:
        shortest: pixels that the shorter side has at least.

    Raises:
        Skipped: it is damaged, no picture, too small, or so large that decoding it could fill the memory.
    """
    from PIL import Image, UnidentifiedImageError

    if len(content) > LARGEST_FILE:
        raise Skipped("too large a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata, which are dealt with here
            upright = _decode(content)
    except UnidentifiedImageError as error:
        raise Skipped("no picture") from error
    except Image.DecompressionBombError as error:
        raise Skipped("too large") from error
    except MemoryError as error:
        raise Skipped("more than the memory holds") from error
    except Skipped:
        raise
    except Exception as error:  # decoders raise anything: RuntimeError, struct.error, TypeError, zlib.error …
        raise Skipped("damaged") from error
    if min(upright.size) < shortest:
        raise Skipped("too small")
    return upright


def _decode(content: bytes) -> Image:
    from PIL import Image

    Image.init()
    with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
        pixels = picture.width * picture.height
        if pixels > LARGEST or len(content) + pixels * DECODING.get(picture.format, 8) > MEMORY:
            raise Skipped("too large")
        factor = max(1, min(picture.size) // ENOUGH) if pixels > LARGE else 1
        if factor > 1:  # JPEG decodes to a half, a quarter or an eighth at once
            picture.draft(None, (picture.width // factor, picture.height // factor))
            factor = max(1, min(picture.size) // ENOUGH)
        picture.load()
        orientation = _orientation(picture)
        small = _reduced(picture, factor) if factor > 1 or picture.width * picture.height > LARGE else to_rgb(picture)
    return small if orientation is None else small.transpose(orientation)


def _orientation(picture: Image):
    """Pillow's transposition that turns a picture upright; None where there is nothing to do, or the EXIF is damaged."""
    from PIL.Image import Transpose

    try:
        noted = int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises struct.error, TypeError, SyntaxError and others; the picture itself is good
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }.get(noted)  # fmt: skip


def _reduced(picture: Image, factor: int) -> Image:
    """RGB, each pixel the mean of factor × factor; made strip by strip, so that no second large picture is in memory."""
    from PIL import Image

    width, height = (-(-length // factor) for length in picture.size)
    if factor == 1 and picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()
    top = _top(picture)
    target, step = Image.new("RGB", (width, height)), factor * max(1, 512 // factor)
    for start in range(0, picture.height, step):
        strip = to_rgb(picture.crop((0, start, picture.width, min(picture.height, start + step))), top)
        target.paste(strip.reduce(factor) if factor > 1 else strip, (0, start // factor))
    return target


def to_rgb(picture: Image, top: float | None = None) -> Image:
    """Any mode of Pillow as RGB.

    Args:
        top: value that becomes 255, of modes with 16 and 32 bits; default: 65535, or the largest value of floats.
    """
    import numpy as np
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # Pillow's own conversion cuts at 255
        top = top or _top(picture)
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32)).clip(0, top)
        return Image.fromarray((values * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _top(picture: Image) -> float | None:
    """The value that becomes white."""
    if picture.mode.startswith("I"):
        return 65535.0
    if picture.mode != "F":
        return None
    _, largest = cast(tuple[float, float], picture.getextrema())
    return max(1.0, largest) if largest < float("inf") else 1.0
