"""Unit-length CLIP features of latents: the shared first half of every reward."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..models.fit import Fit, cover, fit_latents, safety_windows
from ..models.resample import resample

Tower = Callable[[Tensor], Tensor]
Resize = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


class WindowFeatures(NamedTuple):
    """Features of an image, all float32 of unit length.

    Attributes:
        average: (B, D), mean direction of the windows that its fit cuts it into; for rewards.
        windows: (B, T, D), every window by itself, and those that the fit leaves out; for safety, where the worst decides.
    """

    average: Tensor
    windows: Tensor


def encode_latents(
    tower: Tower, raw_latents: Tensor, grid: int, fit: Fit, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Features of raw latents of any size.

    Args:
        tower: (N, C, grid, grid) → (N, D), a Latent-CLIP's `visual`.
        raw_latents: (B, C, H, W).
        grid, fit: see `models.fit.fit_latents`; the features of several tiles are averaged.
        dtype: what the tower computes in.

    Returns:
        (B, D) float32 of unit length.
    """
    windows = fit_latents(raw_latents.float(), grid, fit)
    features = tower(rearrange(windows, "b t c h w -> (b t) c h w").to(dtype)).float()
    return average_unit(rearrange(features, "(b t) d -> b t d", t=windows.shape[1]))


def encode_windows(
    tower: Tower, raw_latents: Tensor, grid: int, fit: Fit, dtype: torch.dtype = torch.float32, closer: bool = False
) -> WindowFeatures:
    """Features of raw latents of any size, with those of the windows that a safety check needs.

    Args:
        tower, raw_latents, grid, fit, dtype: see `encode_latents`, whose result is the `average`.
        closer: see `models.fit.safety_windows`.
    """
    raw_latents = raw_latents.float()
    windows = fit_latents(raw_latents, grid, fit)
    whole, windows = windows.shape[1], torch.cat([windows, safety_windows(raw_latents, grid, fit, closer)], dim=1)
    features = tower(rearrange(windows, "b t c h w -> (b t) c h w").to(dtype)).float()
    features = rearrange(features, "(b t) d -> b t d", t=windows.shape[1])
    return WindowFeatures(average_unit(features[:, :whole]), F.normalize(features, dim=-1))


def encode_pixels(
    tower: Tower,
    pixels: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    resize: Resize = "shortest",
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Features of pictures, prepared as open_clip does: resized, centre crop, normalised.

    Bicubic weights reach a little below 0 and above 1 beside edges. That is kept, as torchvision keeps it: clamping changes a
    cosine by at most 0.001, and takes the gradient of every pixel that it touches (docs/paper-to-code.md).

    Args:
        tower: (B, 3, size, size) → (B, D).
        pixels: (B, 3, H, W) in 0..1.
        mean, std: (3,) of the tower's training.
        resize: `shortest` brings the shorter side to `size`, `squash` both (SigLIP).
        interpolation: of that.

    Returns:
        (B, D) float32 of unit length.
    """
    height, width = pixels.shape[-2:]
    short = min(height, width)
    new_height, new_width = (size, size) if resize == "squash" else (size * height // short, size * width // short)
    if (new_height, new_width) != (height, width):
        pixels = resample(pixels, new_height, new_width, interpolation)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)  # torchvision's CenterCrop
    pixels = pixels[..., top : top + size, left : left + size]
    pixels = (pixels - mean.to(pixels).view(3, 1, 1)) / std.to(pixels).view(3, 1, 1)
    return F.normalize(tower(pixels.to(dtype)).float(), dim=-1)


def encode_pixel_windows(
    tower: Tower,
    pixels: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    resize: Resize = "shortest",
    interpolation: Interpolation = "bicubic",
) -> WindowFeatures:
    """Features of pictures as `encode_pixels` reads them, and of overlapping squares that show all of them.

    Args:
        tower, pixels, size, mean, std, dtype, resize, interpolation: see `encode_pixels`, whose result is the `average`.
    """

    def encode(part: Tensor) -> Tensor:
        return encode_pixels(tower, part, size, mean, std, dtype, resize, interpolation)

    squares = cover(pixels, min(pixels.shape[-2:])).unbind(dim=1)
    windows = torch.stack([encode(square) for square in squares], dim=1)
    return WindowFeatures(windows[:, 0] if len(squares) == 1 else encode(pixels), windows)


def average_unit(features: Tensor) -> Tensor:
    """Mean direction over dim 1: (B, T, D) → (B, D), every vector counted with unit length."""
    features = F.normalize(features, dim=-1)
    return features[:, 0] if features.shape[1] == 1 else F.normalize(features.mean(dim=1), dim=-1)
