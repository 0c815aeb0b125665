"""Shipped weights of Shapes World (demo/weights/): half-precision safetensors, with only the token embeddings that the captions use.

An embedding table of 49,408 tokens would be larger than everything else here. A file therefore stores the embeddings in use and
their token ids; loading expands them, and the embeddings of all other tokens are zero. The tokenizer stays the field's own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from open_clip.model import CustomTextCLIP
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import latent_clip
from .file_metadata import encode, object_of
from .latent_clip import LatentCLIP
from .pixel_clip import PixelCLIP

FOLDER = Path(__file__).resolve().parent.parent / "demo" / "weights"
VOCABULARY = 49408
NOISE_LEVEL = "noise_level/latent_clip"  # the noise-conditioned modules of the Latent-CLIP, and its config; an addition to the other file
EMBEDDINGS, IDS = ".vocabulary_rows", ".vocabulary_ids"


def compact_vocabulary(state_dict: dict[str, Tensor], used_ids: Tensor) -> dict[str, Tensor]:
    """Replace every (49408, width) table by the embeddings of `used_ids`, which must include start and end of text."""
    compact: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if tensor.ndim == 2 and tensor.shape[0] == VOCABULARY:
            compact |= {key + EMBEDDINGS: tensor[used_ids].contiguous(), key + IDS: used_ids.int()}
        else:
            compact[key] = tensor
    return compact


def expand_vocabulary(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `compact_vocabulary`; embeddings that were not stored are zero."""
    full = {key: tensor for key, tensor in state_dict.items() if not key.endswith((EMBEDDINGS, IDS))}
    for key, stored in state_dict.items():
        if key.endswith(EMBEDDINGS):
            table = stored.new_zeros(VOCABULARY, stored.shape[1])
            table[state_dict[key.removesuffix(EMBEDDINGS) + IDS].long()] = stored
            full[key.removesuffix(EMBEDDINGS)] = table
    return full


def save_weights(name: str, state_dict: dict[str, Tensor], used_ids: Tensor, config: dict | None = None) -> Path:
    """Write demo/weights/`name`.safetensors in float16, with `config` as JSON in its metadata."""
    halves = {key: tensor.detach().half().contiguous() for key, tensor in state_dict.items()}
    path = FOLDER / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(compact_vocabulary(halves, used_ids), path, encode({"config": config}) if config else None)
    return path


def load_weights(name: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors (float32, vocabulary expanded) and config of demo/weights/`name`.safetensors.

    Raises:
        ValueError: when the file is missing.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"Expected the Shapes World weights {path.name} in demo/weights, got no such file. "
            "Reinstall the pack, or make it with: ./dev train"
        )
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = object_of(file.metadata() or {}, "config")
    tensors = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    return expand_vocabulary(tensors), config


def load_latent_clip(noise_aware: bool = False) -> tuple[LatentCLIP, dict]:
    """The frozen Latent-CLIP and its open_clip config.

    Args:
        noise_aware: with the noise-conditioned modules; all else is the same.
    """
    weights, config = load_weights("latent_clip")
    if noise_aware:
        path, config = load_weights(NOISE_LEVEL)
        weights |= path
    return latent_clip.load_latent_clip(config, weights), config


def load_pixel_clip() -> PixelCLIP:
    """The frozen pixel CLIP, with open_clip's pixel mean and std; its text tower reads open_clip's tokens."""
    weights, config = load_weights("pixel_clip")
    with torch.device("meta"):
        model = CustomTextCLIP(**config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.text.attn_mask = model.text.build_causal_mask()
    return PixelCLIP("Shapes World pixel CLIP", model.train(False).requires_grad_(False), config)
