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
    """Resize latents to the tower's grid and cut them into its windows.

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
    if fit == "crop":
        long_dim = -2 if height > width else -1
        return latents.narrow(long_dim, (max(height, width) - grid) // 2, grid).unsqueeze(1)
    return cover(latents, grid)


def safety_windows(latents: Tensor, grid: int, fit: Fit = "tiles", closer: bool = False) -> Tensor:
    """Extra windows for safety checks: full coverage and, with `closer`, windows at full resolution.

    Where `fit` is not `tiles` these are the tiles, which cover all of the image.

    Args:
        latents, grid, fit: see `fit_latents`.
        closer: add windows at full resolution, where the latent is larger than the grid.

    Returns:
        (B, T, C, grid, grid); T = 0 where `fit_latents` shows everything.
    """
    height, width = latents.shape[-2:]
    windows = [latents.new_empty(len(latents), 0, latents.shape[1], grid, grid)]
    if fit != "tiles" and height != width:
        windows.append(fit_latents(latents, grid, "tiles"))
    if closer and min(height, width) > grid:
        windows.append(cover(latents, grid))
    return torch.cat(windows, dim=1)


def safety_fit(fit: Fit) -> Fit:
    """Return the fit of a safety check: `crop` would leave the sides out, so it becomes `tiles`."""
    return "tiles" if fit == "crop" else fit


def cover(latents: Tensor, grid: int) -> Tensor:
    """Overlapping squares that show every cell, row by row: (B, T, C, grid, grid)."""
    tops, lefts = (_starts(side, grid) for side in latents.shape[-2:])
    return torch.stack([latents[..., top : top + grid, left : left + grid] for top in tops for left in lefts], dim=1)


def _starts(side: int, grid: int) -> list[int]:
    surplus = side - grid
    tiles = 1 + math.ceil(surplus / (grid * TILE_STEP))
    return [round(i * surplus / max(1, tiles - 1)) for i in range(tiles)]


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
