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
        affinity: divergence from the teacher's similarities to the captions, see `affinity`.
    """

    contrastive: float = 0.0
    distil: float = 0.0
    siglip: bool = False
    affinity: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.contrastive, self.distil, self.affinity)
        if min(weights) < 0 or sum(weights) <= 0:
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
            scale = self.model.logit_scale.exp()
            more = (self.logit_bias,) if self.objectives.siglip else ()
            losses["contrastive"] = self.objectives.contrastive * self.pairs(image, text, scale, *more)
        if self.objectives.distil:
            if batch.teacher is None:
                raise ValueError(
                    "Got samples without a teacher's features, expected some. Embed again with --teacher, or leave --distil out."
                )
            cosine = (image.float() * batch.teacher.float()).sum(-1)
            losses["distil"] = self.objectives.distil * (1 - cosine).mean()
        if self.objectives.affinity:
            losses["affinity"] = self.objectives.affinity * self._affinity(image, batch)
        return losses

    def _affinity(self, image: Tensor, batch: Batch) -> Tensor:
        if batch.teacher is None or batch.tokens is None:
            raise ValueError(
                "Got samples without a teacher's features or without captions, expected both: --affinity compares how each picture "
                "goes with each caption. Embed again with both, or leave --affinity out."
            )
        with torch.no_grad():  # the teacher's own text tower, which is not trained (`run.objectives_of`)
            text = F.normalize(self.model.text(batch.tokens), dim=-1)
            scale = self.model.logit_scale.exp().float()
        return affinity(image.float(), batch.teacher.float(), text.float(), scale)


def affinity(student: Tensor, teacher: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """How far a student's choice among captions, and among pictures, is from its teacher's (affinity mimicking of TinyCLIP, arXiv 2309.12314).

    A cosine to the teacher's features is mostly about what differs between prompts; among pictures of one caption this is about what
    differs between them.

    Args:
        student, teacher, text: unit features (B, D) of the same pictures and of their captions.
        scale: exp of the log temperature of both.

    Returns:
        Mean of the two divergences, a scalar.
    """
    ours, theirs = scale * student @ text.T, scale * teacher @ text.T
    both = [
        F.kl_div(a.log_softmax(-1), b.log_softmax(-1), reduction="batchmean", log_target=True)
        for a, b in ((ours, theirs), (ours.T, theirs.T))
    ]
    return (both[0] + both[1]) / 2


def limit_temperature(model: LatentCLIP) -> None:
    """Keep the scale of the logits between 1 and 100, as open_clip does after every step."""
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))


def start_temperature(model: LatentCLIP, siglip: bool) -> None:
    """The scale that each loss starts from in its paper: 10 for SigLIP, 1 / 0.07 for CLIP."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0 if siglip else 1 / 0.07))
