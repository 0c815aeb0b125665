"""Make a small safetensors file of a Latent-CLIP checkpoint: the two towers, without the VAE encoder and the optimizer."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import Checkpoint, CheckpointError, read_checkpoint, safetensors_metadata
from .config import latent_grid
from .files import replacing
from .latent_clip import load_latent_clip
from .tokenizer import CLIPTokenizer, encode_texts

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_CHANGE = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}  # of a cosine
PROMPTS = ["a photo of a cat", "two red squares left of a blue circle", "a castle at dusk, oil on canvas", "text"]


@dataclass(frozen=True)
class Conversion:
    """Summary of a conversion. Sizes are in bytes; `dropped` counts VAE tensors."""

    name: str
    kept: int
    dropped: int
    kept_size: int
    source_size: int
    target_size: int
    cosine_change: float


def convert(source: Path, target: Path, dtype: str = "fp32") -> Conversion:
    """Write `target` and verify it.

    Args:
        source: a checkpoint of either layout.
        target: .safetensors, replaced only by a verified result.
        dtype: fp32, fp16 or bf16; the logit scale stays float32.

    Raises:
        CheckpointError: the source is no Latent-CLIP, or scores change too much in this dtype.
    """
    checkpoint = read_checkpoint(source)
    expected = probe(checkpoint)
    state_dict = {key: _cast(key, tensor, DTYPES[dtype]) for key, tensor in checkpoint.state_dict.items()}
    kept_size = sum(tensor.nbytes for tensor in checkpoint.state_dict.values())
    kept, dropped, name = len(state_dict), checkpoint.dropped, checkpoint.name
    with replacing(target) as unfinished:
        save_file(state_dict, unfinished, safetensors_metadata(checkpoint, source))
        del checkpoint, state_dict  # their memory is needed for the check
        change = (probe(read_checkpoint(unfinished)) - expected).abs().max().item()
        if not change <= LARGEST_CHANGE[dtype]:
            raise CheckpointError(f"{source.name}: in {dtype} its scores change by {change:.1e}. Use --dtype fp32.")
        size = unfinished.stat().st_size
    return Conversion(name, kept, dropped, kept_size, source.stat().st_size, size, change)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.float32 if key == "logit_scale" else dtype).contiguous()


@torch.inference_mode()
def probe(checkpoint: Checkpoint) -> Tensor:
    """Cosines between a few seeded raw latents and prompts, computed in float32: (4, 4)."""
    model = load_latent_clip(checkpoint.config, {key: tensor.float() for key, tensor in checkpoint.state_dict.items()})
    grid, text = latent_grid(checkpoint.config), checkpoint.config["text_cfg"]
    noise = torch.randn(4, checkpoint.space.channels, grid, grid, generator=torch.Generator().manual_seed(0))
    tokenizer, last = CLIPTokenizer(text["context_length"]), text["vocab_size"] - 1
    texts = encode_texts(model.text, lambda prompts: tokenizer(prompts).clamp(max=last), PROMPTS)
    images = model.encode_image(checkpoint.space.to_raw(noise))
    return F.normalize(images, dim=-1) @ texts.T
