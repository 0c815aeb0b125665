"""Steer a sampler: a bounded step up an objective, taken on the x0 prediction of every sampling step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..models.frames import by_clip, frames_in
from .concepts import ConceptDirections
from .gate import Flags
from .rewards import Encoder, Reward, WindowEncoder, seen_by

MARGIN = 20.0  # log-odds below its threshold to which a flagged image is pushed: in effect until sampling ends


@dataclass(frozen=True)
class GuidanceSettings:
    """Strength of steering.

    Attributes:
        strength: RMS of one correction, in standard deviations of the model's latents, where the noise is total.
        momentum: share of the last step's direction that lives on in the next, 0 to below 1.
    """

    strength: float = 1.0
    momentum: float = 0.0

    def __post_init__(self):
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"Got strength = {self.strength}, expected 0 or more.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Got momentum = {self.momentum}, expected 0 to below 1.")


class Objective(Protocol):
    """Objective of one sampling: raw latents (B, C, H, W) → value (B,), and which images need steering at all, bool (B,).

    It is given the noise level as a `rewards.Encoder` is.
    """

    @property
    def encoders(self) -> list[Encoder]: ...

    def start(self) -> None:
        """Begin a new sampling."""

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class ClimbReward:
    """Steer every image up a reward."""

    reward: Reward

    @property
    def encoders(self) -> list[Encoder]:
        return self.reward.encoders

    def start(self) -> None:
        pass

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]:
        value = self.reward.weigh(self.reward.evaluate(raw_latents, noise_level, check=False))
        return value, torch.ones_like(value, dtype=torch.bool)


class ConceptMonitor:
    """Check predictions in mid-sampling, and remember which images were flagged.

    An image that was flagged once stays flagged until sampling ends. Its score is that of its worst window, in its worst frame.

    Attributes:
        flagged: bool (B, categories) on the CPU, True where a category was flagged in this sampling; None before the first check.
    """

    def __init__(self, encoder: WindowEncoder, concepts: ConceptDirections):
        self.encoder, self.concepts = encoder, concepts
        self.flagged: Tensor | None = None

    @property
    def encoders(self) -> list[Encoder]:
        return [self.encoder]

    def start(self, flagged: Tensor | None = None) -> None:
        """Begin a new sampling, of images that were flagged before as `flagged` says."""
        self.flagged = flagged

    def check(self, raw_latents: Tensor, noise_level: float | None = None) -> Flags:
        """Check raw latents (B, C, H, W) or (B, C, T, H, W), whose verdict is returned and added to `flagged`.

        Args:
            noise_level: see `rewards.Encoder`.
        """
        windows = self.encoder.encode_windows(seen_by(self.encoder, raw_latents), noise_level).windows
        scores = self.concepts.worst(by_clip(windows, frames_in(raw_latents.shape)).flatten(1, 2))
        flags = Flags(scores, self.concepts.names, self.concepts.thresholds)
        before = self.flagged
        self.flagged = flags.categories if before is None or before.shape != flags.categories.shape else before | flags.categories
        return flags

    def flagged_items(self, size: int) -> list[int]:
        """Places of the flagged images in a batch of this size."""
        if self.flagged is None or len(self.flagged) != size:
            return []
        return self.flagged.any(dim=1).nonzero().flatten().tolist()


class AvoidConcepts:
    """Push flagged images away from the categories that they were flagged for, until sampling ends; leave the others alone.

    Stopping where the log-odds fall below the threshold again would only change the encoder's verdict: a few steps of
    gradient do that without changing the image, which the next steps then finish as if nothing had been. Deprecated: the push
    removes hardly anything (docs/safety-study.md), and stays for saved workflows.
    """

    def __init__(self, monitor: ConceptMonitor):
        self.monitor = monitor

    @property
    def encoders(self) -> list[Encoder]:
        return self.monitor.encoders

    def start(self) -> None:
        self.monitor.start()

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]:
        scores = self.monitor.check(raw_latents, noise_level).scores
        over = scores - torch.tensor(self.monitor.concepts.thresholds, device=scores.device)
        value = -((over + MARGIN).relu() * self.monitor.flagged.to(over)).sum(dim=1)
        return value, value.detach() < 0


def correction(
    objective: Objective,
    denoised: Tensor,
    to_raw: Callable[[Tensor], Tensor],
    noise_level: float,
    settings: GuidanceSettings,
    last_direction: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the correction to add to the x0 prediction, per image of the batch.

    The correction has the direction of the objective's gradient and an RMS of at most strength × noise level: the less
    the image is decided, the more may change, and nothing at all at the end, where a change would only be a pattern that
    pleases the encoder. Because samplers move in proportion to the noise that they remove, the sum over a sampling hardly
    depends on the number of steps. An item whose value or gradient is not finite is left alone. Of a clip, every frame keeps the bound.

    Args:
        denoised: x0 prediction (B, C, H, W) or (B, C, T, H, W) in the model's space.
        to_raw: model space → raw latents, differentiable.
        noise_level: share of noise in what the network saw, 0 to 1.
        last_direction: what this function returned at the step before, for momentum.

    Returns:
        (correction shaped as `denoised` in float32, or None where no item needs one; direction for the next step).
    """
    x0 = denoised.detach().float().clone().requires_grad_()
    value, active = objective(to_raw(x0), noise_level)
    if not bool(active.any()):
        return None, None
    (gradient,) = torch.autograd.grad(value.sum(), x0)
    norm = gradient.flatten(1).norm(dim=1)
    usable = _like(active.to(norm.device) & norm.isfinite() & (norm > 0), x0)
    direction = torch.where(usable, gradient / _like(norm, x0), 0.0)
    if settings.momentum and last_direction is not None:
        direction = settings.momentum * last_direction + (1 - settings.momentum) * direction
    length = settings.strength * noise_level * math.sqrt(x0[0].numel())
    return torch.where(usable, _bounded_in_every_frame(direction * length, length), 0.0), direction


def _bounded_in_every_frame(change: Tensor, length: float) -> Tensor:
    """Bound a clip's correction (B, C, T, H, W) in each frame by its share of `length`: one bad frame is not to take it all."""
    if change.ndim != 5 or change.shape[2] == 1:
        return change
    of_frame = change.pow(2).sum(dim=(1, 3, 4), keepdim=True).sqrt()
    share = length / math.sqrt(change.shape[2])
    return change * (share / of_frame.clamp(min=1e-12)).clamp(max=1.0)


def _like(per_item: Tensor, x: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts over x (B, ...)."""
    return per_item.view(-1, *[1] * (x.ndim - 1))
