"""Objectives of a Latent-CLIP: open_clip's losses on captions, and agreement with a teacher, alone or together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models.latent_clip import LatentCLIP


@dataclass
class Batch:
    """Inputs of a step: latents (B, C, grid, grid), and whatever the objectives ask for.

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

    def check(self, batch: Batch) -> None:
        """Refuse a batch that lacks what an objective reads.

        Raises:
            ValueError: says what is lacking.
        """
        if self.contrastive and batch.tokens is None:
            raise ValueError("Got samples without captions, expected some: the contrastive loss compares with them.")
        if self.distil and batch.teacher is None:
            raise ValueError(
                "Got samples without a teacher's features, expected some. Embed again with --teacher, or leave --distil out."
            )
        if self.affinity and (batch.teacher is None or batch.tokens is None):
            raise ValueError(
                "Got samples without a teacher's features or without captions, expected both: --affinity compares how each picture "
                "goes with each caption. Embed again with both, or leave --affinity out."
            )


class TrainTask(nn.Module):
    """A model with its losses: the module that DistributedDataParallel wraps.

    Args:
        rank, world_size: of this process, for the negatives that the others hold.
        local_loss, gather_with_grad: as open_clip's options.
        accum_freq: chunks of a batch; the activations of one chunk at a time are held, and features are computed twice.
    """

    def __init__(
        self, model: LatentCLIP, objectives: Objectives, rank: int = 0, world_size: int = 1,
        local_loss: bool = True, gather_with_grad: bool = True, accum_freq: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.objectives, self.accum_freq = model, objectives, accum_freq
        self.pairs: nn.Module | None = None
        if objectives.contrastive and objectives.siglip:
            self.pairs = SigLipLoss(rank=rank, world_size=world_size)
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))  # of SigLIP's paper; no part of the finished model
        elif objectives.contrastive:
            self.pairs = ClipLoss(local_loss, gather_with_grad, rank=rank, world_size=world_size)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return weighted losses by name, each a scalar.

        Raises:
            ValueError: the batch lacks what an objective reads.
        """
        self.objectives.check(batch)
        image, losses = self._image(batch), {}
        if self.pairs is not None:
            text = self._text(batch)
            more = (self.logit_bias,) if self.objectives.siglip else ()
            losses["contrastive"] = self.objectives.contrastive * self.pairs(image, text, self.model.logit_scale.exp(), *more)
        if self.objectives.distil:
            cosine = (image.float() * batch.teacher.float()).sum(-1)
            losses["distil"] = self.objectives.distil * (1 - cosine).mean()
        if self.objectives.affinity:
            with torch.no_grad():  # the teacher's own text tower, which is not trained (`run.objectives_of`)
                text, scale = self._text(batch).float(), self.model.logit_scale.exp().float()
            losses["affinity"] = self.objectives.affinity * affinity(image.float(), batch.teacher.float(), text, scale)
        return losses

    def _image(self, batch: Batch) -> Tensor:
        """Return unit features (B, D) of the latents."""
        if batch.noise_level is None:
            return self._in_chunks(self.model.visual, batch.latents)
        return self._in_chunks(lambda latents, level: self.model.visual(latents, noise_level=level), batch.latents, batch.noise_level)

    def _text(self, batch: Batch) -> Tensor:
        """Return unit features (B, D) of the tokens."""
        assert batch.tokens is not None  # the reader gives them where an objective reads captions
        return self._in_chunks(self.model.text, batch.tokens)

    def _in_chunks(self, tower: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return unit features of a batch, the same whatever `accum_freq` is.

        A chunk keeps no activations; the backward pass computes them again, chunk by chunk (GradCache, arXiv 2101.06983, as open_clip's
        --accum-freq, whose temperature however gets the gradient of every chunk).
        """

        def features(*chunk: Tensor) -> Tensor:
            return F.normalize(tower(*chunk), dim=-1)

        if self.accum_freq == 1:
            return features(*inputs)
        chunks = zip(*(tensor.chunk(self.accum_freq) for tensor in inputs))
        return torch.cat([checkpoint(features, *chunk, use_reentrant=False) for chunk in chunks])


def affinity(student: Tensor, teacher: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Divergence of a student's choice among captions, and among pictures, from its teacher's (affinity mimicking, TinyCLIP, arXiv 2309.12314).

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
    """Set the logit scale that each loss starts from in its paper: 10 for SigLIP, 1 / 0.07 for CLIP."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0 if siglip else 1 / 0.07))
