"""A pixel CLIP as the teacher of a Latent-CLIP: features of pictures, and what its patch convolution makes of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.features import encode_pixels
from ..models.pixel_clip import PixelCLIP


class PixelTeacher:
    """A pixel CLIP on a device; see `embed.PictureTeacher`."""

    def __init__(self, clip: PixelCLIP, device: torch.device | str = "cpu") -> None:
        self.clip, self.device = clip, torch.device(device)
        self.tower = clip.model.visual.to(self.device)
        self.mean, self.std = torch.tensor(clip.mean), torch.tensor(clip.std)

    def features(self, pixels: Tensor) -> Tensor:
        """(N, side, side, 3) in 0..1 → unit features (N, D)."""
        pixels = pixels.movedim(-1, 1).to(self.device)
        return encode_pixels(self.tower, pixels, self.clip.image_size, self.mean, self.std)

    def patches(self, pixels: Tensor, grid: int) -> Tensor:
        """(N, side, side, 3) → (N, grid², W): the patch convolution alone, on pictures scaled so that it makes grid×grid patches."""
        convolution = self.tower.conv1
        side = grid * convolution.kernel_size[0]
        pictures = F.interpolate(
            pixels.movedim(-1, 1).to(self.device), (side, side), mode="bicubic", antialias=True, align_corners=False
        )
        mean, std = (value.to(self.device).view(3, 1, 1) for value in (self.mean, self.std))
        return convolution((pictures - mean) / std).flatten(2).movedim(1, 2)
