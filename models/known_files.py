"""Files that people put where a CLIP is expected: what each of them is, and what to get instead."""

from collections.abc import Collection
from pathlib import Path

from .torch_archive import names_in

# the first bytes of a file, in lower case → what it is and what to do
_STARTS: list[tuple[tuple[bytes, ...], str]] = [
    (
        (b"version https://git-lfs",),
        "a Git LFS pointer, the note that stands for the weights in a clone. Run 'git lfs pull' in that clone, or download "
        "the file itself.",
    ),
    (
        (b"<!doctype", b"<html", b"<head", b"<?xml"),
        "a web page that was saved under this name. Open its link in a browser, log in where the weights ask for it, and use "
        "the page's download button; on Hugging Face the address has /resolve/ in it, not /blob/.",
    ),
    (
        (b"gguf",),
        "a GGUF file, which holds a quantised diffusion or language model. Get the weights as .safetensors.",
    ),
    (
        (b"7z\xbc\xaf", b"rar!", b"\x1f\x8b", b"bzh", b"\xfd7zxz"),
        "a packed archive. Unpack it and take the weights that are in it.",
    ),
    (
        (b"{", b"access to", b"invalid ", b"error", b"not found", b"entry not found"),
        "a text, such as a server's answer that it did not send the file. Open it in an editor to see why, and download again.",
    ),
]
OPEN_CLIPS = (
    "a CLIP with both towers in one file: open_clip_pytorch_model.bin of laion/CLIP-ViT-B-32-laion2B-s34B-b79K, model.safetensors of "
    "openai/clip-vit-large-patch14, or a preference model, HPS_v2.1_compressed.pt of xswu/HPSv2 or model.safetensors of "
    "yuvalkirstain/PickScore_v1"
)
# the start of a tensor's name → what has such tensors and what to do; the first that fits says it
_TENSORS: list[tuple[tuple[str, ...], str]] = [
    (
        (
            "rm_head.",
            "model.rm_head.",
            "visual.merger.",
            "model.visual.merger.",
            "visual.blocks.",
            "model.visual.blocks.",
        ),
        "HPSv3, or another reward model built on a vision-language model, which is no CLIP and takes many seconds a picture. Preference models that "
        "work here: HPS_v2.1_compressed.pt of xswu/HPSv2, model.safetensors of yuvalkirstain/PickScore_v1.",
    ),
    (
        ("blip.",),
        "ImageReward, which is a BLIP. Preference models that work here: HPS_v2.1_compressed.pt of xswu/HPSv2, model.safetensors of "
        "yuvalkirstain/PickScore_v1.",
    ),
    (
        ("cross_model.", "model.cross_model."),
        "MPS, which reads text and picture together, which no CLIP does. Preference models that work here: "
        "HPS_v2.1_compressed.pt of xswu/HPSv2, model.safetensors of yuvalkirstain/PickScore_v1.",
    ),
    (
        ("text_decoder.",),
        "a CoCa, which also writes. Get its CLIP of the same size, such as open_clip_pytorch_model.bin of "
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K.",
    ),
    (
        ("text.transformer.embeddings.", "text.transformer.encoder."),
        "a CLIP whose text tower is a model of transformers (XLM-RoBERTa, NLLB), which needs files from the network. Get one with "
        "open_clip's own text tower, such as open_clip_pytorch_model.bin of laion/CLIP-ViT-B-32-laion2B-s34B-b79K.",
    ),
    (
        ("vision_model.",),
        "a CLIP that reads pixels, in the layout of transformers, as in models/clip_vision. With the text tower in the "
        "same file (model.safetensors of openai/clip-vit-* or of PickScore_v1) 'Reward: Pixel CLIP' reads it.",
    ),
    (
        ("layers.0.",),
        "an aesthetic predictor, a head that has no image tower. A preference model that works here is HPS_v2.1_compressed.pt of xswu/HPSv2.",
    ),
    (
        ("model.diffusion_model.", "first_stage_model.", "double_blocks.", "joint_blocks."),
        "a diffusion checkpoint. Use it with 'Load Checkpoint'.",
    ),
    (
        ("down_blocks.", "transformer_blocks."),
        "a U-Net or transformer of a diffusers folder. Use the model's single-file checkpoint with 'Load Checkpoint'.",
    ),
    (
        ("decoder.conv_in.", "decoder.up.", "encoder.down", "decoder.up_blocks."),
        "a VAE. Use it with 'Load VAE'.",
    ),
    (
        ("text_model.", "encoder.block.", "model.layers."),
        "a text encoder without an image tower. Use it with 'Load CLIP'.",
    ),
    (("lora_", "diffusion_model."), "a LoRA or a bare diffusion model. Use 'Load LoRA' or 'Load Diffusion Model'."),
]


def of_start(start: bytes) -> str:
    """Describe a file by its first bytes, and say what to get instead; "" if that is not known."""
    low = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((what for starts, what in _STARTS if low.startswith(starts)), "")


def of_folder(path: Path) -> str:
    """Describe a folder of weights; "" if that is not known."""
    if any((path / name).exists() for name in ("model_index.json", "unet", "text_encoder")):
        return "a diffusers folder. Use the model's single-file checkpoint with 'Load Checkpoint'; a CLIP is one file."
    return ""


def of_zip(path: Path) -> str:
    """Describe an archive that torch cannot read as tensors; "" if it has the form of a torch checkpoint, or is damaged."""
    try:
        names = names_in(path)
    except Exception:  # a damaged archive can fail with nearly any type; whoever reads it says so
        return ""
    if any(name.partition("/")[2].startswith("code/") for name in names):
        return "a TorchScript program, as OpenAI published CLIP, expected tensors alone. 'Reward: Pixel CLIP' reads it, from models/open_clip."
    if names and not any(name.endswith("data.pkl") for name in names):
        return f"a zip archive that starts with {names[0][:60]!r}, not a torch checkpoint. Unpack it and take the weights in it."
    return ""


def of_tensors(names: Collection[str]) -> str:
    """Describe a model by its tensors, and say what to do with it; "" if that is not known."""
    return next((what for starts, what in _TENSORS if any(name.startswith(starts) for name in names)), "")
