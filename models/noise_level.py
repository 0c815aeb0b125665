"""An image tower that may be told how much noise there was in what its latent was predicted from.

What a diffusion model predicts early is a blurred latent, which a tower trained on finished images reads wrongly. The level
becomes a vector that is added to every token beside its position. Its weights start at zero, so that a new one changes nothing,
and it is zero at level 0: finished images need not be told, and are read by the very same computation as ever.
"""

from __future__ import annotations

import math

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call


class NoiseAwareTower(VisionTransformer):
    """open_clip's ViT with `noise_projection` (bands → width); made by `make_noise_aware`."""

    noise_projection: nn.Linear
    reads_noise_level = True

    def forward(self, x: Tensor, noise_level: float | Tensor | None = None) -> Tensor:
        """Features (B, D).

        Args:
            x: raw latents (B, C, grid, grid).
            noise_level: share of noise, 0 to 1, one for all or (B,); None: a finished image.
        """
        if noise_level is None:
            return super().forward(x)
        levels = torch.as_tensor(noise_level, dtype=torch.float32, device=x.device).expand(len(x))
        told = self.noise_projection(bands(levels, self.noise_projection.in_features).to(x.dtype))
        positions = self.positional_embedding.to(x.dtype) + told[:, None]
        return functional_call(self, {"positional_embedding": positions}, (x,), strict=False)


def bands(levels: Tensor, count: int) -> Tensor:
    """cos(π k level) - 1 for k = 1 … count: (B, count), all zero at level 0."""
    k = torch.arange(1, count + 1, device=levels.device, dtype=levels.dtype)
    return torch.cos(math.pi * k * levels[:, None]) - 1


def make_noise_aware(tower: VisionTransformer, count: int) -> None:
    """Turn a tower into one that reads the noise level, in place; its other weights and their names stay.

    Args:
        count: of the cosines that describe a level.
    """
    width = tower.class_embedding.shape[0]
    tower.noise_projection = nn.Linear(count, width, bias=False, device=tower.class_embedding.device)
    with torch.no_grad():
        tower.noise_projection.weight.zero_()
    tower.__class__ = NoiseAwareTower
