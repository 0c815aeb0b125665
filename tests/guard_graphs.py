"""Graphs for the guard of services: honest ones, and ways past a gate by families. Made on Shapes World, whose `a yellow star` a gate blocks.

The unit test holds them against OUTPUTS below, the host test against the real host's registry, and runs the honest ones there.
"""

import copy
import math

from ..methods.require_gate import GateModel

GATE = "LatentCLIPSafetyGate"
SETTINGS = {"concepts": "shapes-world-stars", "categories": "", "thresholds": ""}
MODELS = [GateModel("LatentCLIPShapesWorld", vaes=["LatentCLIPShapesWorld"])]
OUTPUTS = {
    "AdjustContrast": "IMAGE", "BasicScheduler": "SIGMAS", "CFGGuider": "GUIDER", "CLIPTextEncode": "CONDITIONING",
    "CheckpointLoaderSimple": "MODEL CLIP VAE", "CheckpointSave": "", "ComfySwitchNode": "COMFY_MATCHTYPE_V3", "CreateVideo": "VIDEO",
    "CurveEditor": "CURVE", "EmptyImage": "IMAGE", "EmptyLatentImage": "LATENT", "EmptyMiniMaxH3LatentAV": "LATENT", "GLSLShader": "IMAGE IMAGE IMAGE IMAGE",
    "GetImageSize": "INT INT INT", "GrowMask": "MASK", "ImageBatch": "IMAGE", "ImageBlend": "IMAGE", "ImageCompare": "", "ImageCompositeMasked": "IMAGE",
    "ImageCrop": "IMAGE", "ImageCropV2": "IMAGE", "ImageFlip": "IMAGE", "ImageFromBatch": "IMAGE", "ImageGrid": "IMAGE", "ImageHistogram": "HISTOGRAM HISTOGRAM HISTOGRAM HISTOGRAM HISTOGRAM",
    "ImageInvert": "IMAGE", "ImageScale": "IMAGE", "ImageScaleBy": "IMAGE", "ImageStitch": "IMAGE", "ImageToMask": "MASK", "InvertMask": "MASK",
    "KSampler": "LATENT", "KSamplerSelect": "SAMPLER", "LTXVConcatAVLatent": "LATENT", "LTXVSeparateAVLatent": "LATENT LATENT",
    "LatentAdd": "LATENT", "LatentApplyOperation": "LATENT", "LatentBatch": "LATENT", "LatentBlend": "LATENT",
    "LatentCLIPClassify": "STRING FLOAT STRING LATENT LATENT", "LatentCLIPLatentReward": "LATENT_REWARD", "LatentCLIPLoader": "LATENT_CLIP",
    "LatentCLIPOptimizeNoise": "LATENT NOISE LATENT STRING", "LatentCLIPPixelLoader": "LATENT_CLIP", "LatentCLIPScore": "LATENT FLOAT STRING",
    "LatentCLIPSafetyGate": "LATENT BOOLEAN BOOLEAN STRING", "LatentCLIPSearch": "LATENT LATENT NOISE STRING",
    "LatentCLIPSelect": "LATENT LATENT INT FLOAT", "LatentCLIPShapesWorld": "MODEL CLIP VAE LATENT_CLIP", "LatentCLIPTextReward": "LATENT_REWARD",
    "LatentComposite": "LATENT", "LatentCompositeMasked": "LATENT", "LatentConcat": "LATENT", "LatentCrop": "LATENT", "LatentCut": "LATENT",
    "LatentFlip": "LATENT", "LatentFromBatch": "LATENT", "LatentInterpolate": "LATENT", "LatentMultiply": "LATENT",
    "LatentOperationSharpen": "LATENT_OPERATION", "LatentRotate": "LATENT", "LatentSubtract": "LATENT", "LatentUpscaleBy": "LATENT", "LoadImage": "IMAGE MASK",
    "LoadImageMask": "MASK", "LoadLatent": "LATENT", "MaskPreview": "MASK", "MaskToImage": "IMAGE", "ModelSamplingSD3": "MODEL", "Painter": "IMAGE MASK",
    "PorterDuffImageComposite": "IMAGE MASK", "PreviewAny": "STRING", "PreviewImage": "IMAGE", "PrimitiveInt": "INT", "PrimitiveString": "STRING",
    "RandomNoise": "NOISE", "RebatchLatents": "LATENT", "SamplerCustomAdvanced": "LATENT LATENT", "SaveAnimatedWEBP": "IMAGE", "SaveImage": "IMAGE",
    "SaveLatent": "LATENT", "SaveText": "STRING", "SaveVideo": "VIDEO", "SetLatentNoiseMask": "LATENT", "StringConcatenate": "STRING",
    "TextGenerate": "STRING", "TripoSplatSamplingPreview": "MODEL", "VAEDecode": "IMAGE", "VAEDecodeTiled": "IMAGE", "VAEEncode": "LATENT",
    "VAELoader": "VAE",
}  # fmt: skip
SHOWING = {
    "CheckpointSave", "CurveEditor", "GLSLShader", "ImageCompare", "ImageCropV2", "LatentCLIPClassify", "LatentCLIPOptimizeNoise",
    "LatentCLIPSafetyGate", "LatentCLIPScore", "LatentCLIPSearch", "LatentCLIPSelect", "MaskPreview", "Painter", "PreviewAny", "PreviewImage",
    "SaveAnimatedWEBP", "SaveImage", "SaveLatent", "SaveText", "SaveVideo",
}  # fmt: skip
INFO = {kind: {"output": types.split(), "output_node": kind in SHOWING} for kind, types in OUTPUTS.items()}
INFO["OtherPackLoop"] = {"output": ["*"], "output_node": False}
FAR = [f"f{i}" for i in range(1200)]


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def gate(latent, clip=("sw", 3), **changed) -> dict:
    return node(
        GATE,
        **{"latent": latent, "latent_clip": list(clip), **SETTINGS, "typed": "", "on_block": "grey", "views": 0, "fit": "tiles"}
        | {"audit_log": False, "log_prompt": False} | changed,
    )  # fmt: skip


def base(**more) -> dict:
    """Two pictures of a yellow star, gated, decoded and saved; `more` adds or replaces nodes."""
    return copy.deepcopy({
        "sw": node("LatentCLIPShapesWorld"),
        "p": node("CLIPTextEncode", clip=["sw", 1], text="a yellow star"),
        "n": node("CLIPTextEncode", clip=["sw", 1], text=""),
        "e": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "ks": sampled(["e", 0]),
        "g": gate(["ks", 0]),
        "d": decode(["g", 0]),
        "s": node("SaveImage", images=["d", 0], filename_prefix="guard/x"),
    } | more)  # fmt: skip


def sampled(latent, denoise=1.0) -> dict:
    return node(
        "KSampler", model=["sw", 0], positive=["p", 0], negative=["n", 0], latent_image=latent, seed=1, steps=8, cfg=3.0,
        sampler_name="euler", scheduler="normal", denoise=denoise,
    )  # fmt: skip


def decode(latent, vae=("sw", 2)) -> dict:
    return node("VAEDecode", samples=latent, vae=list(vae))


def encode(pixels) -> dict:
    return node("VAEEncode", pixels=pixels, vae=["sw", 2])


def save(images) -> dict:
    return node("SaveImage", images=images, filename_prefix="guard/y")


def round_trip(**before) -> dict:
    """The ungated pictures `u` go through these nodes, of which `x` is encoded and gated."""
    return base(u=decode(["ks", 0]), **before, en=encode(["x", 0]), g=gate(["en", 0]))


def behind(**nodes) -> dict:
    """The gated pictures `d` go through these nodes, and `x` is saved."""
    return base(**nodes, s=save(["x", 0]))


def latent_behind(**nodes) -> dict:
    """The gated latents `g` go through these nodes, and `x` is decoded."""
    return base(**nodes, d=decode(["x", 0]))


REWARD = node("LatentCLIPTextReward", latent_clip=["sw", 3], text="a yellow star", weight=1.0, fit="tiles")
CANVAS = node("EmptyImage", width=96, height=96, batch_size=1, color=255)
QUARTERS = {
    f"{name}{i}": made
    for i, (x, y) in enumerate([(0, 0), (32, 0)])
    for name, made in {
        "c": node("ImageCrop", image=["u", 0], width=32, height=64, x=x, y=y), "en": encode([f"c{i}", 0]), "g": gate([f"en{i}", 0]),
        "d": decode([f"g{i}", 0]),
    }.items()
} | {"u": decode(["ks", 0])}  # fmt: skip
ADVANCED = {
    "rn": node("RandomNoise", noise_seed=1), "cg": node("CFGGuider", model=["sw", 0], positive=["p", 0], negative=["n", 0], cfg=3.0),
    "sa": node("KSamplerSelect", sampler_name="euler"),
    "si": node("BasicScheduler", model=["sw", 0], scheduler="normal", steps=8, denoise=1.0),
}  # fmt: skip
SEARCH = node(
    "LatentCLIPSearch", noise=["rn", 0], guider=["cg", 0], sampler=["sa", 0], sigmas=["si", 0], latent_image=["e", 0], reward=["r", 0],
    candidates=4, keep=2,
)  # fmt: skip

HONEST = {
    "the plain one": base(),
    "advanced sampling": base(
        **ADVANCED,
        ks=node("SamplerCustomAdvanced", noise=["rn", 0], guider=["cg", 0], sampler=["sa", 0], sigmas=["si", 0], latent_image=["e", 0]),
    ),
    "two samplings, hires": base(
        up=node("LatentUpscaleBy", samples=["ks", 0], upscale_method="bilinear", scale_by=2.0), k2=sampled(["up", 0], 0.5), g=gate(["k2", 0])
    ),
    "by way of pixels before the gate": round_trip(x=node("ImageScaleBy", image=["u", 0], upscale_method="area", scale_by=2.0)),
    "cropped before the gate": round_trip(x=node("ImageCrop", image=["u", 0], width=32, height=32, x=0, y=0)),
    "two gates, and a sampling between them": base(k2=sampled(["g", 0], 0.5), g2=gate(["k2", 0]), d=decode(["g2", 0])),
    "gated twice": base(g2=gate(["g", 0]), d=decode(["g2", 0])),
    "a batch of gated and empty latents, gated": base(b=node("LatentBatch", samples1=["e", 0], samples2=["ks", 0]), g=gate(["b", 0])),
    "decoded in tiles": base(
        d=node("VAEDecodeTiled", samples=["g", 0], vae=["sw", 2], tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8)
    ),
    "scaled behind": behind(x=node("ImageScale", image=["d", 0], upscale_method="bilinear", width=128, height=128, crop="disabled")),
    "one of the batch": latent_behind(x=node("LatentFromBatch", samples=["g", 0], batch_index=1, length=1)),
    "one of the pictures": behind(x=node("ImageFromBatch", image=["d", 0], batch_index=1, length=1)),
    "in batches of one": latent_behind(x=node("RebatchLatents", latents=["g", 0], batch_size=1)),
    "a batch of two gates' pictures": behind(g2=gate(["ks", 0]), d2=decode(["g2", 0]), x=node("ImageBatch", image1=["d", 0], image2=["d2", 0])),
    "pasted on a canvas": behind(
        c=CANVAS, x=node("ImageCompositeMasked", destination=["c", 0], source=["d", 0], x=8, y=8, resize_source=False)
    ),
    "a logo pasted on it": behind(
        c=CANVAS, x=node("ImageCompositeMasked", destination=["d", 0], source=["c", 0], x=48, y=48, resize_source=False)
    ),
    "its size": behind(
        z=node("GetImageSize", image=["d", 0]), x=node("ImageScale", image=["d", 0], upscale_method="area", width=["z", 0], height=32, crop="disabled")
    ),
    "a clip": base(
        s=node("SaveAnimatedWEBP", images=["d", 0], filename_prefix="guard/x", fps=6.0, lossless=True, quality=80, method="default")
    ),
    "a preview": base(s=node("PreviewImage", images=["d", 0])),
    "compared": base(s2=node("ImageCompare", image_a=["d", 0], image_b=["d", 0], compare_view={})),
    "scored behind": base(r=REWARD, s2=node("LatentCLIPScore", latent=["g", 0], reward=["r", 0])),
    "the best of what passed": latent_behind(
        r=REWARD, x=node("LatentCLIPSelect", latent=["g", 0], reward=["r", 0], keep=1, use_threshold=False, threshold=0.0)
    ),
    "classified behind": base(
        x=node("LatentCLIPClassify", latent=["g", 0], latent_clip=["sw", 3], labels="star\ncircle", templates="a photo of {}", route="", fit="tiles"),
        d=decode(["x", 4]),
    ),
    "the report": base(s2=node("PreviewAny", source=["g", 3])),
    "a text by the verdict": base(
        a=node("PrimitiveString", value="blocked"), b=node("PrimitiveString", value="fine"),
        w=node("ComfySwitchNode", switch=["g", 2], on_true=["a", 0], on_false=["b", 0]), s2=node("PreviewAny", source=["w", 0]),
    ),
    "nothing shown but by the gate": {key: made for key, made in base().items() if key not in "ds"},
    "a wired prompt": base(
        t=node("StringConcatenate", string_a="a yellow", string_b="star", delimiter=" "), p=node("CLIPTextEncode", clip=["sw", 1], text=["t", 0])
    ),
    "a node named as the report": base(**{"g-report": gate(["ks", 0])}),
    "a long chain": base(**{
        name: node("StringConcatenate", string_a=[FAR[i - 1], 0] if i else "a", string_b="", delimiter="") for i, name in enumerate(FAR)
    }),
    "a title": base(s=save(["d", 0]) | {"_meta": {"title": "Save"}}),
}  # fmt: skip


def _arithmetic() -> dict[str, tuple[dict, str]]:
    low = node("LatentMultiply", samples=["ks", 0], multiplier=0.05)
    undone = {
        "multiplied": node("LatentMultiply", samples=["g", 0], multiplier=10.0),
        "its sign": node("LatentMultiply", samples=["g", 0], multiplier=-1.0),
        "subtracted": node("LatentSubtract", samples1=["g", 0], samples2=["e", 0]),
        "added": node("LatentAdd", samples1=["g", 0], samples2=["e", 0]),
        "blended": node("LatentBlend", samples1=["g", 0], samples2=["e", 0], blend_factor=0.5),
        "interpolated": node("LatentInterpolate", samples1=["g", 0], samples2=["e", 0], ratio=0.5),
        "rotated": node("LatentRotate", samples=["g", 0], rotation="180 degrees"),
        "turned over": node("LatentFlip", samples=["g", 0], flip_method="x-axis: vertically"),
        "put side by side": node("LatentConcat", samples1=["g", 0], samples2=["g", 0], dim="x"),
        "cut": node("LatentCut", samples=["g", 0], dim="x", index=0, amount=1),
        "put together": node("LatentComposite", samples_to=["e", 0], samples_from=["g", 0], x=0, y=0, feather=0),
    }
    ways = {f"arithmetic: {way} behind": (latent_behind(x=made), made["class_type"]) for way, made in undone.items()}
    ways["arithmetic: made small before and large behind"] = (
        latent_behind(c=low, g=gate(["c", 0]), y=undone["multiplied"], x=node("LatentMultiply", samples=["y", 0], multiplier=2.0)),
        "LatentMultiply",
    )  # fmt: skip
    ways["arithmetic: an operation"] = (
        latent_behind(o=node("LatentOperationSharpen"), x=node("LatentApplyOperation", samples=["g", 0], operation=["o", 0])), "LatentOperationSharpen"
    )  # fmt: skip
    listed = {
        "scaled": node("LatentUpscaleBy", samples=["g", 0], upscale_method="bilinear", scale_by=4.0),
        "pasted": node("LatentCompositeMasked", destination=["e", 0], source=["g", 0], x=0, y=0, resize_source=False),
        "sampled again": sampled(["g", 0], 0.3),
        "batched with others": node("LatentBatch", samples1=["g", 0], samples2=["e", 0]),
    }
    return ways | {f"arithmetic: {way} behind": (latent_behind(x=made), "SaveImage") for way, made in listed.items()}


def _pictures() -> dict[str, tuple[dict, str]]:
    contrast = {
        "contrast": node("AdjustContrast", image=["d", 0], factor=20.0), "inverted": node("ImageInvert", image=["d", 0]),
        "turned over": node("ImageFlip", image=["d", 0], flip_method="x-axis: vertically"),
        "blended with a key": node("ImageBlend", image1=["d", 0], image2=["c", 0], blend_factor=0.5, blend_mode="difference"),
        "a difference with a key": node(
            "PorterDuffImageComposite", source=["d", 0], source_alpha=["m", 0], destination=["c", 0], destination_alpha=["m", 0], mode="XOR"
        ),
        "a grid": node("ImageGrid", images=["d", 0], columns=2), "stitched": node("ImageStitch", image1=["d", 0], image2=["d", 0]),
    }  # fmt: skip
    key = {"c": CANVAS, "m": node("LoadImageMask", image="m.png", channel="red")}
    ways = {f"pixels: {way} behind": (behind(**key, x=made), made["class_type"]) for way, made in contrast.items()}
    paste = node("ImageCompositeMasked", destination=["c", 0], source=["d", 0], x=0, y=0, resize_source=False)
    cut = behind(x=node("ImageCrop", image=["d", 0], width=32, height=32, x=0, y=0))
    halves = node("ImageCompositeMasked", destination=["d0", 0], source=["d1", 0], x=32, y=0, resize_source=True)
    later = {"c": CANVAS, "y": paste | {"inputs": paste["inputs"] | {"source": ["d0", 0]}}}
    return ways | {
        "crops: a part behind": (cut, "ImageCrop"),
        "crops: halves gated apart and put together": (behind(**QUARTERS, x=halves), "several pictures"),
        "crops: halves put on one canvas": (
            behind(**QUARTERS, **later, x=halves | {"inputs": halves["inputs"] | {"destination": ["y", 0]}}), "several pictures"
        ),
        "masks: a client's mask behind": (behind(**key, x=paste | {"inputs": paste["inputs"] | {"mask": ["m", 0]}}), "a mask"),
        "masks: from an ungated decode": (
            behind(**key, u=decode(["ks", 0]), k=node("ImageToMask", image=["u", 0], channel="red"),
                   x=paste | {"inputs": paste["inputs"] | {"mask": ["k", 0]}}), "ImageToMask"
        ),
        "masks: shown": (base(u=decode(["ks", 0]), k=node("ImageToMask", image=["u", 0], channel="red"), x=node("MaskPreview", mask=["k", 0])), "MaskPreview"),
        "masks: as a picture": (
            base(u=decode(["ks", 0]), k=node("ImageToMask", image=["u", 0], channel="red"), i=node("MaskToImage", mask=["k", 0]), x=save(["i", 0])),
            "MaskToImage",
        ),
        "masks: hidden in a latent": (
            latent_behind(u=decode(["ks", 0]), k=node("ImageToMask", image=["u", 0], channel="red"),
                          m=node("SetLatentNoiseMask", samples=["e", 0], mask=["k", 0]), g=gate(["m", 0]),
                          x=node("LatentCompositeMasked", destination=["e", 0], source=["g", 0], x=0, y=0, resize_source=False, mask=["k", 0])),
            "SaveImage",
        ),
        "sizes: a number from an ungated decode": (
            behind(u=decode(["ks", 0]), z=node("GetImageSize", image=["u", 0]),
                   x=node("ImageScale", image=["d", 0], upscale_method="area", width=["z", 0], height=64, crop="disabled")), "KSampler"
        ),
    }  # fmt: skip


def _shown() -> dict[str, tuple[dict, str]]:
    ungated = {"u": decode(["ks", 0])}
    crop = {"x": 0, "y": 0, "width": 64, "height": 64}
    reno = {key: SEARCH["inputs"][key] for key in ("noise", "guider", "sigmas", "latent_image", "reward")}
    return {
        "painters: ImageCropV2": (round_trip(x=node("ImageCropV2", image=["u", 0], crop_region=crop)), "ImageCropV2"),
        "painters: Painter": (round_trip(x=node("Painter", image=["u", 0], mask="", width=64, height=64, bg_color="#000000")), "Painter"),
        "painters: GLSLShader": (round_trip(x=node("GLSLShader", fragment_shader="", size_mode="from_input", **{"images.image0": ["u", 0]})), "GLSLShader"),
        "painters: CurveEditor": (
            base(**ungated, h=node("ImageHistogram", image=["u", 0]), x=node("CurveEditor", curve=[], histogram=["h", 0])), "ImageHistogram|CurveEditor"
        ),
        "previews: another decode": (base(**ungated, x=save(["u", 0])), r"'x' \(SaveImage\).*'ks' \(KSampler\)"),
        "previews: PreviewImage": (base(**ungated, x=node("PreviewImage", images=["u", 0])), "PreviewImage"),
        "previews: the decode itself": (base(d=decode(["ks", 0])), "SaveImage"),
        "previews: tiled": (
            base(d=node("VAEDecodeTiled", samples=["ks", 0], vae=["sw", 2], tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8)), "SaveImage"
        ),
        "previews: a batch of both": (behind(**ungated, x=node("ImageBatch", image1=["d", 0], image2=["u", 0])), "SaveImage"),
        "previews: compared": (base(**ungated, x=node("ImageCompare", image_a=["d", 0], image_b=["u", 0], compare_view={})), "ImageCompare"),
        "previews: a switch": (latent_behind(x=node("ComfySwitchNode", switch=True, on_false=["g", 0], on_true=["ks", 0])), "KSampler"),
        "previews: the numbers of a latent": (base(x=node("PreviewAny", source=["ks", 0])), "PreviewAny"),
        "previews: described in words": (
            base(**ungated, t=node("TextGenerate", clip=["sw", 1], prompt="", image=["u", 0]), x=node("SaveText", text=["t", 0])), "TextGenerate"
        ),
        "previews: small pictures of scores": (base(r=REWARD, x=node("LatentCLIPScore", latent=["ks", 0], reward=["r", 0])), "LatentCLIPScore"),
        "previews: small pictures of a selection": (
            base(r=REWARD, x=node("LatentCLIPSelect", latent=["ks", 0], reward=["r", 0], keep=1), g=gate(["x", 0])), "LatentCLIPSelect"
        ),
        "previews: small pictures of a search": (base(**ADVANCED, r=REWARD, x=SEARCH, g=gate(["x", 0])), "LatentCLIPSearch"),
        "previews: small pictures of Optimize Noise": (
            base(**ADVANCED, r=REWARD, x=node("LatentCLIPOptimizeNoise", **reno), g=gate(["x", 0])), "LatentCLIPOptimizeNoise"
        ),
        "previews: a reward of an ungated latent": (
            base(r=node("LatentCLIPLatentReward", latent_clip=["sw", 3], reference=["ks", 0], weight=1.0, fit="tiles"),
                 x=node("LatentCLIPScore", latent=["g", 0], reward=["r", 0])), "KSampler"
        ),
        "previews: a model that shows while it samples": (
            base(x=node("TripoSplatSamplingPreview", model=["sw", 0], vae=["sw", 2])), "TripoSplatSamplingPreview"
        ),
        "previews: a client's picture": (base(l=node("LoadImage", image="a.png"), x=save(["l", 0])), "none of its inputs"),
        "saved: a latent": (base(x=node("SaveLatent", samples=["ks", 0], filename_prefix="l")), "SaveLatent"),
        "saved: a gated latent, for a second prompt": (
            base(c=node("LatentCLIPShapesWorld"), x=node("SaveLatent", samples=["g", 0], filename_prefix="l")), "SaveLatent"
        ),
        "saved: loaded by a second prompt": (base(l=node("LoadLatent", latent="l.latent"), d=decode(["l", 0])), "LoadLatent"),
        "saved: a second prompt without a gate": ({key: made for key, made in base(d=decode(["ks", 0])).items() if key != "g"}, "no Safety Gate"),
        "saved: a model": (base(x=node("CheckpointSave", model=["sw", 0], clip=["sw", 1], vae=["sw", 2], filename_prefix="m")), "CheckpointSave"),
    }  # fmt: skip


def _nested() -> dict[str, tuple[dict, str]]:
    joined = node("LTXVConcatAVLatent", video_latent=["e", 0], audio_latent=["ks", 0])
    return {
        "nesting: the second part behind": (
            latent_behind(c=joined, g=gate(["c", 0]), y=node("LTXVSeparateAVLatent", av_latent=["g", 0]), x=node("LatentFromBatch", samples=["y", 1])),
            "LTXV",
        ),
        "nesting: only put together before": (base(c=joined, g=gate(["c", 0])), "LTXVConcatAVLatent"),
        "nesting: begun nested": (base(e=node("EmptyMiniMaxH3LatentAV", width=64, height=64)), "EmptyMiniMaxH3LatentAV"),
        "nesting: taken apart behind": (latent_behind(y=node("LTXVSeparateAVLatent", av_latent=["g", 0]), x=node("LatentFromBatch", samples=["y", 0])), "LTXVSeparate"),
    }  # fmt: skip


def _models() -> dict[str, tuple[dict, str]]:
    other = {"al": node("LatentCLIPLoader", file="other.safetensors", dtype="auto")}
    return {
        "models: another Latent-CLIP": (base(**other, g=gate(["ks", 0], ("al", 0))), "other.safetensors"),
        "models: a pixel CLIP": (
            base(al=node("LatentCLIPPixelLoader", vae=["sw", 2], file="x.bin", dtype="auto", quick_gelu=False), g=gate(["ks", 0], ("al", 0))), "x.bin"
        ),
        "models: one of two gates": (base(**other, g2=gate(["ks", 0], ("al", 0))), "g2"),
        "models: by way of a switch": (
            base(w=node("ComfySwitchNode", switch=True, on_false=["sw", 3], on_true=["sw", 3]), g=gate(["ks", 0], ("w", 0))), "ComfySwitchNode"
        ),
        "models: no Latent-CLIP": (base(g=gate(["ks", 0], latent_clip="sw")), "no wire at latent_clip"),
        "models: another VAE behind": (base(v=node("VAELoader", vae_name="other.safetensors"), d=decode(["g", 0], ("v", 0))), "other.safetensors"),
        "models: the VAE of a checkpoint": (base(v=node("CheckpointLoaderSimple", ckpt_name="o.safetensors"), d=decode(["g", 0], ("v", 2))), "o.safetensors"),
        "models: a VAE of a wired name": (
            base(t=node("PrimitiveString", value="LatentCLIPShapesWorld"), v=node("VAELoader", vae_name=["t", 0]), d=decode(["g", 0], ("v", 0))), "no VAE straight"
        ),
        "models: no VAE": (base(d=node("VAEDecode", samples=["g", 0])), "no VAE straight"),
        "settings: other concepts": (base(g=gate(["ks", 0], concepts="i2p")), "concepts"),
        "settings: thresholds": (base(g=gate(["ks", 0], thresholds="10000")), "thresholds"),
        "settings: wired categories": (base(t=node("PrimitiveString", value=""), g=gate(["ks", 0], categories=["t", 0])), "categories"),
        "settings: wrapped categories": (base(g=gate(["ks", 0], categories={"__value__": ""})), "categories"),
    }  # fmt: skip


def _unlisted() -> dict[str, tuple[dict, str]]:
    return {
        "expansion: a loop of another pack": (base(x=node("OtherPackLoop", latent=["ks", 0]), g=gate(["x", 0])), "allowed_before"),
        "expansion: a loop behind": (latent_behind(x=node("OtherPackLoop", latent=["g", 0])), "OtherPackLoop"),
        "subgraphs: a node of the page": (base(x=node("7a1c9d7e-0000-4000-8000-000000000000", latent=["ks", 0])), "unknown class"),
        "subgraphs: an unknown node": (base(x=node("Unknown")), "unknown class"),
        "expansion: a patch that is listed, behind": (base(x=node("ModelSamplingSD3", model=["sw", 0], shift=3.0), s2=node("PreviewAny", source=["x", 0])), "PreviewAny"),
    }  # fmt: skip


def _malformed() -> dict[str, tuple[object, str]]:
    def wire(index) -> dict:
        return base(d=node("VAEDecode", samples=["ks", index], vae=["sw", 2]))

    indices = {
        "negative": -1,
        "NaN": math.nan,
        "infinite": math.inf,
        "1e30": 1e30,
        "huge": 10**5000,
        "true": True,
        "text": "0",
        "a list": [0],
        "none": None,
    }
    parts = {
        "a list for a prompt": [], "nothing": None, "a text": "{}", "a number for an id": {1: node("SaveImage")},
        "a node that is a list": base(x=[]), "a node that is a text": base(x="SaveImage"), "a node that is null": base(x=None),
        "a class that is a list": base(x={"class_type": ["KSampler"], "inputs": {}}), "a class that is a number": base(x={"class_type": 5, "inputs": {}}),
        "a class that is an object": base(x={"class_type": {}, "inputs": {}}), "no class": base(x={"inputs": {}}),
        "inputs that are a list": base(x={"class_type": "KSampler", "inputs": []}), "a gate without inputs": base(x={"class_type": GATE}),
        "a wire to nowhere": base(x=save(["nowhere", 0])), "a wire out of range": base(x=save(["d", 99])), "a list of three": base(x=save(["d", 0, 0])),
        "an empty list": base(x=save([])), "a number for a node": base(x=save([1, 0])), "a list of lists": base(x=save([["d", 0], 0])),
        "an id of the cache": base(x=save(["d", 0]) | {"is_changed": [1]}), "too many nodes": {str(i): node("PrimitiveInt", value=i) for i in range(2001)},
        "a set": base(x=node("PrimitiveInt", value={1})), "an infinite value": base(x=node("PrimitiveInt", value=math.inf)),
    }  # fmt: skip
    deep: object = "x"
    for _ in range(100_000):
        deep = {"a": deep}
    ways = {f"malformed: {way}": (made, "Node |The prompt|The node id") for way, made in parts.items()}
    ways |= {f"malformed: an index that is {way}": (wire(index), "'d'") for way, index in indices.items()}
    ways["malformed: a hidden wire"] = (
        base(d=node("VAEDecode", samples={"__value__": ["ks", 0]}, vae=["sw", 2])),
        "hides a wire",
    )
    ways["malformed: a wire hidden twice"] = (
        base(d=node("VAEDecode", samples={"__value__": {"__value__": ["ks", 0]}}, vae=["sw", 2])), "hides a wire"
    )  # fmt: skip
    ways["malformed: nested without end"] = (base() | {"x": node("PrimitiveInt", value=deep)}, "deep")
    ways["malformed: a cycle of one"] = (base(x=node("LatentBatch", samples1=["x", 0], samples2=["x", 0])), "circle")
    ways["malformed: a cycle through a gate"] = (base(ks=sampled(["g", 0])), "circle")
    return ways


REFUSED = _arithmetic() | _pictures() | _shown() | _nested() | _models() | _unlisted() | _malformed()
