"""ReNO: maximise a reward by gradient steps on the starting noise (arXiv 2406.04312), per item of a batch.

For one image this is the original algorithm, step by step. For a batch every item has its own norm prior, gradient
clip, momentum, best and end, so that four images at once are four single runs.

Two things are ours, and off by default: the gradient may be that of randomly augmented latents, and a second reward, the
validation reward, may be evaluated, which is never optimised.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .augmentations import Augmentations
from .rewards import Reward

Generate = Callable[[Tensor, list[int]], Tensor]
Optimizer = Literal["nesterov", "sgd", "adam"]
OPTIMIZERS: tuple[str, ...] = ("nesterov", "sgd", "adam")
OVERFLOW_TRIES = 3  # smaller and smaller cotangents before a non-finite gradient counts as one
OVERFLOW_BACKOFF = 2.0**-8


@dataclass(frozen=True)
class RenoSettings:
    """Settings of a run. The defaults are the original's; traces hold the fields under these names.

    Attributes:
        iterations: evaluations of the generator; one fewer steps are taken.
        learning_rate: 5 for turbo models; 10 for Hyper-SDXL.
        optimizer: `nesterov` and `sgd` have momentum 0.9, `adam` has eps 1e-2.
        gradient_clip: longest gradient of one item, L2.
        prior_weight: of the norm prior that keeps the noise Gaussian.
        patience: an item ends after this many iterations without a new best, of the validation reward where there is one; 0 never.
        target: an item ends at this reward; None never.
        views: augmentations of the latents before the gradient is taken; None: none, as in the original. All that is reported
            and kept is evaluated on the latents themselves.
        watch_keeps: keep the latents with the highest validation reward, among all whose reward is no lower than the first.
    """

    iterations: int = 50
    learning_rate: float = 5.0
    optimizer: Optimizer = "nesterov"
    gradient_clip: float = 0.1
    prior_weight: float = 0.01
    patience: int = 0
    target: float | None = None
    views: Augmentations | None = None
    watch_keeps: bool = False

    def __post_init__(self):
        for name in ("iterations", "patience"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"Got {name} = {getattr(self, name)}, expected a whole number.")
        for name in ("iterations", "learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"Got {name} = {getattr(self, name)}, expected a positive number.")
        for name in ("prior_weight", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Got {name} = {getattr(self, name)}, expected 0 or more.")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"Got target = {self.target}, expected a finite number, or None for no target.")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"Got optimizer {self.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}.")


@dataclass(frozen=True)
class Iteration:
    """Results of one evaluation, for the items that took part.

    Attributes:
        index: from 0, the untouched noise.
        items: batch indices of the items, in the order of the lists below.
        rewards: weighted sums. terms: unweighted values by name. norms: L2 of each item's noise.
        gradient_norms: before the clip; empty in the last iteration, which takes no step.
        seconds: since the start.
        validation: weighted sums of the validation reward; empty without one.
    """

    index: int
    items: list[int]
    rewards: list[float]
    terms: dict[str, list[float]]
    norms: list[float]
    gradient_norms: list[float]
    seconds: float
    validation: list[float] = field(default_factory=list)


@dataclass
class RenoState:
    """Best noise and latents so far. Tensors are (B, C, H, W), lists have one entry per item.

    Attributes:
        rewards: of the best latents (B,). values: what decides the best (B,): the reward or, with `watch_keeps`, the validation reward.
    """

    noise: Tensor
    latents: Tensor
    first_latents: Tensor
    rewards: Tensor
    values: Tensor
    best_iteration: list[int]
    stop_reasons: list[str]
    iterations: list[Iteration] = field(default_factory=list)


OnStep = Callable[[RenoState], bool | None]


def optimize_noise(
    generate: Generate,
    reward: Reward,
    noise: Tensor,
    settings: RenoSettings,
    on_step: OnStep | None = None,
    validation: Reward | None = None,
) -> RenoState:
    """Optimise starting noise so that what `generate` makes of it scores higher, also in a caller's no_grad or inference mode.

    Args:
        generate: (noise (b, C, H, W), their batch indices) → raw latents (b, C, H, W), differentiable; b shrinks as
            items end.
        reward: on raw latents; higher is better.
        noise: (B, C, H, W) of unit variance. It is optimised in float32, whatever the networks compute in.
        on_step: called after every evaluation with the state so far; true ends the run and keeps the best. What it
            raises goes through.
        validation: a reward that is evaluated without a gradient, and not optimised.

    Returns:
        The state: never worse in reward than the first noise, item by item.

    Raises:
        ValueError: the reward, or with `watch_keeps` the validation reward, is NaN or infinite for every item; or what `generate`
            or the reward returns has another shape, or no gradient to the noise; or `watch_keeps` without a validation reward.
    """
    if settings.watch_keeps and validation is None:
        raise ValueError(
            "Got watch_keeps without a validation reward, expected one. Connect it to `watch`, or switch watch_keeps off."
        )
    with torch.inference_mode(False), torch.enable_grad():
        return _optimize(generate, reward, noise, settings, on_step, validation)


def _optimize(
    generate: Generate,
    reward: Reward,
    noise: Tensor,
    settings: RenoSettings,
    on_step: OnStep | None,
    validation: Reward | None,
) -> RenoState:
    noise = noise.detach().float().clone().requires_grad_()
    run = _NoiseOptimizer(noise, settings, validation)
    state, active, started = _untouched(noise.detach()), list(range(len(noise))), time.perf_counter()
    for index in range(settings.iterations):
        last = index == settings.iterations - 1
        iteration = run.evaluate(generate, reward, state, active, index, last)
        state.iterations.append(replace(iteration, seconds=time.perf_counter() - started))
        active = run.still_active(state, active, index)
        if on_step is not None and on_step(state):
            _end(state, active, "stopped")
            break
        if not active:
            break
    else:
        _end(state, active, "iterations")
    if not state.rewards.isfinite().any():
        broken = any(math.isfinite(value) for value in state.iterations[0].rewards)
        which = "validation reward" if settings.watch_keeps and broken else "reward"
        raise ValueError(
            f"The {which} is NaN or infinite for every item of the batch on its first noise. Try fp32 or bf16 weights."
        )
    return state


class _NoiseOptimizer:
    """One run: the noise, its optimiser, and what each item needs to decide its end."""

    def __init__(self, noise: Tensor, settings: RenoSettings, validation: Reward | None):
        self.noise, self.settings, self.validation = noise, settings, validation
        self.optimizer = _optimizer(noise, settings)
        self.first: Tensor | None = None  # rewards (B,) of the untouched noise
        self.best = [-math.inf] * len(noise)  # the floats that the state's values hold, read back once
        self.highest = [-math.inf] * len(noise)  # of the validation reward where there is one, for patience
        self.stale = [0] * len(noise)
        self.overflows = [0] * len(noise)

    def evaluate(
        self, generate: Generate, reward: Reward, state: RenoState, active: list[int], index: int, last: bool
    ) -> Iteration:
        """Evaluate the active items, keep what is the best so far and, but for the last time, take a step."""
        with torch.set_grad_enabled(not last):
            latents = generate(self.noise[active], active)
            _check_step("generator", latents, (len(active), *self.noise.shape[1:]), not last)
            leaf = latents.detach().requires_grad_(not last)
            terms, rewards, objective = self._evaluate(reward, leaf, index)
            _check_step("reward", objective, (len(active),), not last)
        validated = self._validated(latents)
        if index == 0:
            self.first = rewards.detach().float()
            for kept in (state.first_latents, state.latents):
                kept.copy_(latents.detach())
        self._keep_best(state, latents.detach().float(), rewards.detach().float(), validated, active)
        norms = _norms(self.noise.detach()[active])
        gradient_norms = None
        if not last:
            gradient_norms = self._step(latents, leaf, objective, active)
        return _read_back(index, active, rewards, terms, norms, gradient_norms, validated)

    def _evaluate(self, reward: Reward, leaf: Tensor, index: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Terms and reward of the latents, and the objective: the reward itself, or that of the augmented latents."""
        augment = self.settings.views
        if augment is None or not leaf.requires_grad:
            terms = reward.evaluate(leaf, check=False)
            rewards = reward.weigh(terms)
            return terms, rewards, rewards
        objective = reward.weigh(reward.evaluate(augment(leaf, index), check=False))
        with torch.no_grad():
            terms = reward.evaluate(leaf.detach(), check=False)
        return terms, reward.weigh(terms), objective

    @torch.no_grad()
    def _validated(self, latents: Tensor) -> Tensor | None:
        if self.validation is None:
            return None
        return self.validation.weigh(self.validation.evaluate(latents.detach().float(), check=False)).float()

    def _keep_best(
        self, state: RenoState, latents: Tensor, rewards: Tensor, validated: Tensor | None, active: list[int]
    ) -> None:
        """Keep an item's noise and latents where they are better than before. No synchronisation."""
        values, better = rewards, rewards.isfinite()
        if self.settings.watch_keeps and validated is not None and self.first is not None:
            values, better = validated, better & validated.isfinite() & (rewards >= self.first[active])
        better = better & (values > state.values[active])
        mask = _like(better, latents)
        state.noise[active] = torch.where(mask, self.noise.detach()[active], state.noise[active])
        state.latents[active] = torch.where(mask, latents, state.latents[active])
        state.rewards[active] = torch.where(better, rewards, state.rewards[active])
        state.values[active] = torch.where(better, values, state.values[active])

    def _step(self, latents: Tensor, leaf: Tensor, objective: Tensor, active: list[int]) -> Tensor:
        """Take a step; returns the gradient norms (b,) before the clip."""
        # Algorithm 1 of ReNO with z the noise, x0 = G(z) the latents, R the reward and K the norm prior:
        #   c = −∂R/∂x0 at x0                  backward through the reward: `leaf` is x0, `cotangent` is c
        #   g = (∂G/∂z)ᵀ c + λ ∇K(z)           backward through the generator, λ = `prior_weight`
        #   g ← g · min(1, clip / |g|)         per item
        #   z ← z − η · momentum(g)            `optimizer`
        (cotangent,) = torch.autograd.grad(-objective.sum(), leaf)
        # The generator's backward is linear in the cotangent, so a power of two per item costs no accuracy and keeps
        # half-precision activations' gradients away from both ends of their range.
        backoff = torch.tensor([OVERFLOW_BACKOFF ** self.overflows[i] for i in active], device=leaf.device)
        scale = _power_of_two(cotangent.float().flatten(1).abs().amax(dim=1)) / backoff
        cotangent = (cotangent.float() / _like(scale, cotangent)).to(latents.dtype)
        (gradient,) = torch.autograd.grad(latents, self.noise, cotangent)
        gradient[active] = gradient[active] * _like(scale, latents) + self.settings.prior_weight * _prior_gradient(
            self.noise.detach()[active]
        )
        norms = _norms(gradient[active])
        clip = (self.settings.gradient_clip / (norms + 1e-6)).clamp(max=1.0)
        gradient[active] = torch.where(_like(norms.isfinite(), latents), gradient[active] * _like(clip, latents), 0.0)
        self.noise.grad = gradient
        self.optimizer.step()
        self.noise.grad = None
        return norms

    def still_active(self, state: RenoState, active: list[int], index: int) -> list[int]:
        """List the items that go on; the others get their stop reason."""
        iteration, first = state.iterations[-1], state.iterations[0].rewards
        going_on = []
        for k, item in enumerate(active):
            reward = iteration.rewards[k]
            value = iteration.validation[k] if self.settings.watch_keeps else reward
            allowed = math.isfinite(reward) and (not self.settings.watch_keeps or reward >= first[item])
            if allowed and math.isfinite(value) and value > self.best[item]:
                self.best[item], state.best_iteration[item] = value, index
            value = iteration.validation[k] if iteration.validation else reward
            rises = math.isfinite(value) and value > self.highest[item]
            self.highest[item] = value if rises else self.highest[item]
            self.stale[item] = 0 if rises else self.stale[item] + 1
            finite_gradient = not iteration.gradient_norms or math.isfinite(iteration.gradient_norms[k])
            self.overflows[item] = 0 if finite_gradient else self.overflows[item] + 1
            reason = self._stop_reason(iteration.rewards[k], item)
            if reason:
                state.stop_reasons[item] = reason
            else:
                going_on.append(item)
        return going_on

    def _stop_reason(self, reward: float, item: int) -> str:
        if not math.isfinite(reward):
            return "non-finite reward"
        if self.overflows[item] >= OVERFLOW_TRIES:
            return "non-finite gradient"
        if self.settings.target is not None and reward >= self.settings.target:
            return "target reached"
        if self.settings.patience and self.stale[item] >= self.settings.patience:
            return "patience" if self.validation is None else "watch turned down"
        return ""


def norm_prior(noise: Tensor) -> Tensor:
    """r²/2 − (d − 1) ln r: the negative log density of the norm r of a d-dimensional Gaussian. (B, ...) → (B,)."""
    r, d = _norms(noise), noise[0].numel()
    return r**2 / 2 - (d - 1) * r.log()


def _prior_gradient(noise: Tensor) -> Tensor:
    """Gradient of `norm_prior` in closed form: (1 − (d − 1) / r²) z."""
    return (1 - (noise[0].numel() - 1) / _like(_norms(noise), noise) ** 2) * noise


def _optimizer(noise: Tensor, settings: RenoSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam([noise], lr=settings.learning_rate, eps=1e-2)
    return torch.optim.SGD([noise], lr=settings.learning_rate, momentum=0.9, nesterov=settings.optimizer == "nesterov")


def _untouched(noise: Tensor) -> RenoState:
    """State before the first evaluation: no latents yet, and rewards below any finite one."""
    latents = torch.full_like(noise, torch.nan)
    rewards = noise.new_full((len(noise),), -torch.inf)
    return RenoState(
        noise.clone(), latents, latents.clone(), rewards, rewards.clone(), [0] * len(noise), [""] * len(noise)
    )


def _read_back(
    index: int,
    active: list[int],
    rewards: Tensor,
    terms: dict[str, Tensor],
    norms: Tensor,
    gradient_norms: Tensor | None,
    validated: Tensor | None,
) -> Iteration:
    """Read every number for the trace back in one transfer, the only synchronisation of an iteration."""
    extra = [part for part in (gradient_norms, validated) if part is not None]
    parts = [rewards, *terms.values(), norms, *extra]
    values = torch.stack([part.detach().float().to(rewards.device) for part in parts]).tolist()
    names = list(terms)
    after_terms = 1 + len(names)
    return Iteration(
        index=index,
        items=list(active),
        rewards=values[0],
        terms=dict(zip(names, values[1:after_terms])),
        norms=values[after_terms],
        gradient_norms=values[after_terms + 1] if gradient_norms is not None else [],
        seconds=0.0,
        validation=values[-1] if validated is not None else [],
    )


def _end(state: RenoState, active: list[int], reason: str) -> None:
    for item in active:
        state.stop_reasons[item] = reason


def _check_step(what: str, result: Tensor, shape: tuple[int, ...], gradient: bool) -> None:
    if tuple(result.shape) != shape:
        raise ValueError(f"The {what} returned the shape {tuple(result.shape)}, expected {shape}: one item per noise.")
    if gradient and not result.requires_grad:
        raise ValueError(
            f"The {what} returned numbers without a gradient, so there is nothing to optimise. Run its networks with gradients "
            "enabled, and detach nothing on the way from its input."
        )


def _norms(x: Tensor) -> Tensor:
    return x.float().flatten(1).norm(dim=1)


def _power_of_two(x: Tensor) -> Tensor:
    return torch.where((x > 0) & x.isfinite(), 2.0 ** x.clamp(min=1e-30).log2().floor(), 1.0)


def _like(per_item: Tensor, x: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts over x (B, ...)."""
    return per_item.view(-1, *[1] * (x.ndim - 1))
