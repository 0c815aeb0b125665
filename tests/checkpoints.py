"""Small checkpoints of the real layouts, with random weights, for every layer of tests."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file

from ..models.latent_clip import LatentCLIP

# the published input (512 px, so 4 x 64 x 64 latents), everything else small
TINY_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 512,
        "layers": 2,
        "width": 64,
        "patch_size": 8,
        "latent_factor": 8,
        "latent_n_channels": 4,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
TINY_PIXEL_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def tiny_latent_clip(seed: int = 0, config: dict = TINY_CONFIG) -> LatentCLIP:
    """A LatentCLIP with seeded random weights."""
    torch.manual_seed(seed)
    return LatentCLIP(config).train(False).requires_grad_(False)


def save_latent_clip(path: Path, seed: int = 0, config: dict = TINY_CONFIG) -> LatentCLIP:
    """Write one as a bare safetensors file, so that its architecture must be read off its shapes."""
    model = tiny_latent_clip(seed, config)
    save_file(model.state_dict(), path)
    return model


def save_pixel_clip(path: Path, seed: int = 0) -> CustomTextCLIP:
    """Write a pixel CLIP with its config beside it, as open_clip users do."""
    torch.manual_seed(seed)
    model = CustomTextCLIP(**TINY_PIXEL_CONFIG).train(False).requires_grad_(False)
    save_file(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"model_cfg": TINY_PIXEL_CONFIG}))
    return model


def tokenize(texts: list[str]) -> torch.Tensor:
    """open_clip's tokens for 77 positions."""
    return open_clip.tokenizer.SimpleTokenizer(context_length=77)(texts)


def words(path: Path, end: str = "</s>") -> Path:
    """Write a tokenizer.json, as SigLIP's, of whole words: a, red, cat."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, end: 1, "<unk>": 2, "a": 3, "red": 4, "cat": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path
