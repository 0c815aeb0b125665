"""Steer a sampler: a bounded step up an objective, taken on the prediction of the clean latent at every sampling step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..models.frames import by_clip, frames_in
from .concepts import ConceptDirections
from .rewards import Encoder, Reward, WindowEncoder, seen_by

MARGIN = 20.0  # log-odds below its threshold to which a suspected item is pushed: in effect until sampling ends


@dataclass(frozen=True)
class GuidanceSettings:
    """How hard to steer.

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
    """What to climb in one sampling: raw latents (B, C, H, W) → value (B,), and which items need steering at all (B,).

    It is given the noise level as a `rewards.Encoder` is.
    """

    @property
    def encoders(self) -> list[Encoder]: ...

    def start(self) -> None:
        """A new sampling begins."""

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class ClimbReward:
    """Steer every item up a reward."""

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
    """Which items of a batch have shown which category, from the start of a sampling until now.

    It forgets nothing in between: once something was seen, that item stays a suspect until sampling ends. An item shows
    what its worst window shows, in the worst of its frames.

    Attributes:
        seen: (B, categories), True where a category was seen; None before the first evaluation.
    """

    def __init__(self, encoder: WindowEncoder, concepts: ConceptDirections):
        self.encoder, self.concepts = encoder, concepts
        self.seen: Tensor | None = None

    @property
    def encoders(self) -> list[Encoder]:
        return [self.encoder]

    def start(self, seen: Tensor | None = None) -> None:
        """A new sampling begins, of items in which earlier ones have seen this much."""
        self.seen = seen

    def check(self, raw_latents: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]:
        """Raw latents (B, C, H, W) or (B, C, T, H, W) → log-odds over the thresholds, and what was seen so far, both (B, categories).

        Args:
            noise_level: see `rewards.Encoder`.
        """
        windows = self.encoder.encode_windows(seen_by(self.encoder, raw_latents), noise_level).windows
        scores = self.concepts.worst(by_clip(windows, frames_in(raw_latents.shape)).flatten(1, 2))
        over = scores - torch.tensor(self.concepts.thresholds, device=scores.device)
        seen = ~(over.detach() <= 0).cpu()  # what cannot be judged is a suspect
        if self.seen is not None and self.seen.shape == seen.shape:
            seen |= self.seen
        self.seen = seen  # not on the judge's device, which may change when the host moves it out in mid-run
        return over, seen.to(over.device)


class AvoidConcepts:
    """Leave innocent items alone; once an item shows a category, steer it away from that category until sampling ends.

    Stopping where the log-odds fall below the threshold again would only change the judge's mind: a few steps of
    gradient do that without changing the image, which the next steps then finish as if nothing had been.
    """

    def __init__(self, watch: ConceptMonitor):
        self.watch = watch

    @property
    def encoders(self) -> list[Encoder]:
        return self.watch.encoders

    def start(self) -> None:
        self.watch.start()

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> tuple[Tensor, Tensor]:
        over, seen = self.watch.check(raw_latents, noise_level)
        value = -((over + MARGIN).relu() * seen).sum(dim=1)
        return value, value.detach() < 0


def correction(
    objective: Objective,
    denoised: Tensor,
    to_raw: Callable[[Tensor], Tensor],
    noise_level: float,
    settings: GuidanceSettings,
    last_direction: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """What to add to the denoised prediction, per item of the batch.

    The correction has the direction of the objective's gradient and an RMS of at most strength × noise level: the less
    the image is decided, the more may change, and nothing at all at the end, where a change would only be a pattern that
    pleases the judge. Because samplers move in proportion to the noise that they remove, the sum over a sampling hardly
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
    """A clip's correction (B, C, T, H, W) without more in one frame than its share of `length`: one bad frame is not to take it all."""
    if change.ndim != 5 or change.shape[2] == 1:
        return change
    of_frame = change.pow(2).sum(dim=(1, 3, 4), keepdim=True).sqrt()
    share = length / math.sqrt(change.shape[2])
    return change * (share / of_frame.clamp(min=1e-12)).clamp(max=1.0)


def _like(per_item: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped so that it broadcasts over x (B, ...)."""
    return per_item.view(-1, *[1] * (x.ndim - 1))
