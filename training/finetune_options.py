"""Options of `latent-clip finetune-vae`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from .base_options import BaseOptions
from .regularisers import RegulariserWeights

PRECISIONS = {"fp32": None, "amp_bf16": torch.bfloat16}  # float16 overflows in SDXL's VAE


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(BaseOptions):
    """Options of a training of a VAE with its Latent-CLIP.

    Attributes:
        output_vae: file of the VAE. regularisers: weights of the terms that keep it close to the original.
        lpips_vgg: weights of LPIPS' network. decoder: whether the decoder is trained too.
        vae_lr: learning rate of the VAE; `lr` is that of the towers.
    """

    output_vae: Path
    regularisers: RegulariserWeights = field(default_factory=RegulariserWeights)
    lpips_vgg: Path | None = None
    decoder: bool = False
    train_num_samples: int = 100_000
    batch_size: int = 32
    lr: float = 1e-4
    vae_lr: float = 1e-4
    wd: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lr > 0 and self.vae_lr >= 0):
            raise ValueError(f"Got learning rates of {self.lr:g} and {self.vae_lr:g} for the VAE, expected them above 0.")
