"""Latents with a time axis. A video VAE writes (B, C, T, H, W): T frames, each a picture; a still image is one frame."""

from typing import Literal, get_args

from torch import Size, Tensor

Frames = Literal["mean", "worst"]
FRAMES: tuple[str, ...] = get_args(Frames)


def frames_in(shape: Size | tuple[int, ...]) -> int:
    """T of raw latents (B, C, T, H, W); 1 for (B, C, H, W)."""
    return shape[2] if len(shape) == 5 else 1


def pictures_of(raw_latents: Tensor) -> Tensor:
    """Flatten clips to images, one per frame, clip by clip: (B, C, T, H, W) → (B·T, C, H, W); pictures as they are."""
    return raw_latents.movedim(2, 1).flatten(0, 1) if raw_latents.ndim == 5 else raw_latents


def clips_of(pictures: Tensor, like: Tensor) -> Tensor:
    """The reverse of `pictures_of`: pictures (B·T, C, H, W) in the shape that `like` has, (B, C, T, H, W) or (B, C, H, W)."""
    return by_clip(pictures, like.shape[2]).movedim(1, 2) if like.ndim == 5 else pictures


def by_clip(values: Tensor, frames: int) -> Tensor:
    """Group results per image of `pictures_of` by clip: (B·T, ...) → (B, T, ...)."""
    return values.view(-1, frames, *values.shape[1:])
