"""Random augmentations of latents, so that Optimize Noise cannot overfit to one exact input of its encoder.

What fools an encoder is a pattern that fits its patches to the cell; moved a little, and under a little noise, it fits no more,
while what the picture shows is still there.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.frames import clips_of, pictures_of


@dataclass(frozen=True)
class Augmentations:
    """Strength of the augmentations; calling it augments latents.

    Attributes:
        shift: of the whole picture, at most, down or up and to either side, as a share of its height and width; the edge is repeated.
        noise: standard deviation, as a share of the latent's own.
        seed: of the augmentations; the same seed gives the same ones in the same order.
    """

    shift: float = 0.125
    noise: float = 0.13
    seed: int = 0

    def __post_init__(self):
        for name, end in (("shift", 0.5), ("noise", math.inf)):
            value = getattr(self, name)
            if not (0 <= value <= end and math.isfinite(value)):
                expected = "0 to 0.5" if name == "shift" else "0 or more"
                raise ValueError(f"Got the augmentations' {name} = {value}, expected {expected}.")

    def __call__(self, raw_latents: Tensor, index: int) -> Tensor:
        """Augmentation number `index` of raw latents (B, C, H, W) or (B, C, T, H, W), of the same shape and differentiable.

        All items are shifted alike and get the same noise, each in proportion to its own standard deviation, so that an item is
        augmented as it would be alone.
        """
        return clips_of(self._augmented(pictures_of(raw_latents), index), raw_latents)

    def _augmented(self, raw_latents: Tensor, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        shifted = self._shifted(raw_latents, generator)
        if not self.noise:
            return shifted
        noise = torch.randn(raw_latents.shape[1:], generator=generator).to(raw_latents)
        spread = raw_latents.detach().flatten(1).std(dim=1).view(-1, 1, 1, 1)
        return shifted + self.noise * spread * noise

    def _shifted(self, raw_latents: Tensor, generator: torch.Generator) -> Tensor:
        height, width = raw_latents.shape[-2:]
        down, right = (round(self.shift * side) for side in (height, width))
        top, left = (int(torch.randint(0, 2 * reach + 1, (1,), generator=generator)) for reach in (down, right))
        padded = F.pad(raw_latents, (right, right, down, down), mode="replicate")
        return padded[..., top : top + height, left : left + width]
