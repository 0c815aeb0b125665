"""What a Latent-CLIP is trained for: open_clip's losses on captions, and a teacher's features, alone or together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn

from ..models.latent_clip import LatentCLIP


@dataclass
class Batch:
    """What a step reads: latents (B, C, grid, grid), and whatever the objectives ask for.

    Attributes:
        tokens: (B, context). teacher: unit features (B, D). noise_level: (B,).
    """

    latents: Tensor
    tokens: Tensor | None = None
    teacher: Tensor | None = None
    noise_level: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """A copy on another device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        latents = self.latents.to(device, non_blocking=True)
        return Batch(latents, moved(self.tokens), moved(self.teacher), moved(self.noise_level))


@dataclass(frozen=True)
class Objectives:
    """Weights of the terms; 0 leaves one out.

    Attributes:
        contrastive: CLIP's loss, or SigLIP's with `siglip`, between latents and captions.
        distil: 1 - cosine to the teacher's features of the picture.
    """

    contrastive: float = 0.0
    distil: float = 0.0
    siglip: bool = False

    def __post_init__(self) -> None:
        if min(self.contrastive, self.distil) < 0 or self.contrastive + self.distil <= 0:
            raise ValueError("Got no objective, expected a weight above 0 for the captions, the teacher or both.")


class Task(nn.Module):
    """A model with its losses: what DistributedDataParallel wraps.

    Args:
        rank, world_size: of this process, for the negatives that the others hold.
        local_loss, gather_with_grad: as open_clip's options.
    """

    def __init__(
        self, model: LatentCLIP, objectives: Objectives, rank: int = 0, world_size: int = 1,
        local_loss: bool = True, gather_with_grad: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.objectives = model, objectives
        self.pairs: nn.Module | None = None
        if objectives.contrastive and objectives.siglip:
            self.pairs = SigLipLoss(rank=rank, world_size=world_size)
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))  # of SigLIP's paper; no part of the finished model
        elif objectives.contrastive:
            self.pairs = ClipLoss(local_loss, gather_with_grad, rank=rank, world_size=world_size)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses by name, each a scalar.

        Raises:
            ValueError: the batch lacks what an objective reads.
        """
        told = {} if batch.noise_level is None else {"noise_level": batch.noise_level}
        image = F.normalize(self.model.visual(batch.latents, **told), dim=-1)
        losses = {}
        if self.pairs is not None:
            if batch.tokens is None:
                raise ValueError(
                    "Got samples without captions, expected some: the contrastive loss compares with them."
                )
            text = F.normalize(self.model.text(batch.tokens), dim=-1)
            scale = self.model.logit_scale.exp().clamp(max=100)
            more = (self.logit_bias,) if self.objectives.siglip else ()
            losses["contrastive"] = self.objectives.contrastive * self.pairs(image, text, scale, *more)
        if self.objectives.distil:
            if batch.teacher is None:
                raise ValueError(
                    "Got samples without a teacher's features, expected some. Embed again with --teacher, or leave --distil out."
                )
            cosine = (image.float() * batch.teacher.float()).sum(-1)
            losses["distil"] = self.objectives.distil * (1 - cosine).mean()
        return losses


def start_temperature(model: LatentCLIP, siglip: bool) -> None:
    """The scale that each loss starts from in its paper: 10 for SigLIP, 1 / 0.07 for CLIP."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0 if siglip else 1 / 0.07))
