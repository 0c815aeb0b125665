"""Bring a latent of any size to the square grid that a tower reads. Differentiable, and the identity where nothing is to do."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .resample import area_average

Fit = Literal["tiles", "crop", "squash"]
FITS: tuple[str, ...] = get_args(Fit)
TILE_STEP = 0.75  # neighbouring tiles share at least a quarter of their width


def fit_latents(latents: Tensor, grid: int, fit: Fit = "tiles") -> Tensor:
    """Resize latents to the tower's grid and cut them into the views that it will look at.

    Larger latents are reduced by area averaging, smaller ones enlarged bilinearly.

    Args:
        latents: (B, C, H, W) float32.
        grid: side of the tower's input in latent cells.
        fit: `tiles` keeps the aspect ratio and covers the long side with overlapping windows, `crop` keeps it and
            takes the centre, `squash` gives it up. All three are the same for a square latent.

    Returns:
        (B, T, C, grid, grid); T = 1 unless `fit` is `tiles` and the latent is not square.

    Raises:
        ValueError: unknown `fit`.
    """
    if fit not in FITS:
        raise ValueError(f"Got fit {fit!r}, expected one of {', '.join(FITS)}.")
    height, width = latents.shape[-2:]
    if fit == "squash":
        return _resize(latents, grid, grid).unsqueeze(1)
    short = min(height, width)
    latents = _resize(latents, max(grid, round(height * grid / short)), max(grid, round(width * grid / short)))
    height, width = latents.shape[-2:]
    long_dim = -2 if height > width else -1
    surplus = max(height, width) - grid
    if fit == "crop":
        return latents.narrow(long_dim, surplus // 2, grid).unsqueeze(1)
    tiles = 1 + math.ceil(surplus / (grid * TILE_STEP))
    starts = [round(i * surplus / max(1, tiles - 1)) for i in range(tiles)]
    return torch.stack([latents.narrow(long_dim, start, grid) for start in starts], dim=1)


def _resize(latents: Tensor, height: int, width: int) -> Tensor:
    if latents.shape[-2:] == (height, width):
        return latents
    # each side by its own method, should one shrink and the other grow
    reduced = (min(height, latents.shape[-2]), min(width, latents.shape[-1]))
    if latents.shape[-2:] != reduced:
        latents = area_average(latents, *reduced)
    if reduced != (height, width):
        latents = F.interpolate(latents, (height, width), mode="bilinear", align_corners=False)
    return latents
