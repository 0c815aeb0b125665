"""The one training loop of this package: seeded, resumable, with an exponential moving average of the weights.

Every random number of a step comes from (seed, step), so a run that was stopped, killed even, goes on exactly where its last
checkpoint was. Checkpoints are safetensors; nothing here is needed to *use* the weights.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .states import States

Loss = Callable[["Draw"], "tuple[Tensor, Mapping[str, float | Tensor]]"]
Log = Callable[[dict[str, float]], None]


@dataclass
class Draw:
    """The randomness of one step: a torch generator and a Python one, both seeded by (seed, step)."""

    step: int
    torch: torch.Generator
    python: random.Random

    @classmethod
    def of(cls, seed: int, step: int) -> Draw:
        return cls(step, torch.Generator().manual_seed(seed * 1_000_003 + step), random.Random(f"{seed}/{step}"))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.torch)

    def rows(self, total: int, count: int) -> Tensor:
        return torch.randint(total, (count,), generator=self.torch)


@dataclass(frozen=True)
class Recipe:
    """Length and learning rates of one stage: AdamW, linear warm-up, cosine decay, gradient norm clipped.

    Attributes:
        floor: share of `lr` that the cosine ends near.
        ema: decay of the averaged weights, lower in the first steps.
        save_every: steps between checkpoints; 0: whenever a minute has passed.
    """

    name: str
    steps: int
    lr: float
    seed: int = 0
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float = 0.995
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    floor: float = 0.02
    save_every: int = 0
    log_every: int = 25

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.lr * warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


@dataclass(frozen=True)
class Group:
    """Parameters that share a multiple of the recipe's learning rate, and a weight decay (None: the recipe's)."""

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None


class Printed:
    """The log that people read: a line per report, on one process only."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.began = recipe, time.monotonic()

    def __call__(self, numbers: dict[str, float]) -> None:
        texts = "  ".join(f"{key} {value:.4f}" for key, value in numbers.items() if key not in ("step", "lr"))
        where = f"{self.recipe.name} {numbers['step']:.0f}/{self.recipe.steps}"
        print(f"{where}  {time.monotonic() - self.began:.0f} s  {texts}", flush=True)  # noqa: T201


def fit(
    model: nn.Module, recipe: Recipe, loss_of: Loss, path: Path, *, groups: Sequence[Group] | None = None,
    scaler: torch.amp.GradScaler | None = None, log: Log | None = None, writes: bool = True,
    after: Callable[[int], None] | None = None, constrain: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Train the parameters of `model` that require gradients; leave the averaged weights in it.

    Args:
        loss_of: takes the step's `Draw`, returns a scalar loss and numbers to log, which may be scalar tensors on the device.
        path: the checkpoint, made and read here; see `states.States`.
        groups: of the parameters; default: one group.
        scaler: for float16 autocast.
        writes: whether this process writes the checkpoint: one of several does.
        after: called after each step with the number of steps made.
        constrain: called after each step of the optimizer, to keep parameters within bounds.

    Raises:
        ValueError: the loss is no longer finite, or the checkpoint is damaged or of another model.
        OSError: the checkpoint cannot be written.
    """
    torch.manual_seed(recipe.seed)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer, scales = _optimizer(recipe, groups or [Group(list(params.values()))])
    average = {name: p.detach().clone() for name, p in params.items()}
    states = States(path)
    start = _resume(states, params, average, optimizer, scaler)
    log = log or Printed(recipe)
    saved = time.monotonic()
    for step in range(start, recipe.steps):
        for group, scale in zip(optimizer.param_groups, scales):
            group["lr"] = recipe.lr_at(step) * scale
        loss, numbers = loss_of(Draw.of(recipe.seed, step))
        _step(loss, list(params.values()), optimizer, recipe.clip, scaler)
        if constrain:
            constrain()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in params.values()], 1 - decay)
        done, last = step + 1, step + 1 == recipe.steps
        if step % recipe.log_every == 0 or last:
            value = loss.item()
            if not math.isfinite(value) and scaler is None:
                raise ValueError(
                    f"Got a loss of {value} at step {done} of {recipe.name}, expected a finite one. Lower --lr or lengthen --warmup."
                )
            log({"step": done, "loss": value, "lr": recipe.lr_at(step), **{k: float(v) for k, v in numbers.items()}})
        due = done % recipe.save_every == 0 if recipe.save_every else time.monotonic() - saved > 60
        if writes and (due or last):
            _save(states, params, average, optimizer, scaler, done)
            saved = time.monotonic()
        if after:
            after(done)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(average[name])


def _optimizer(recipe: Recipe, groups: Sequence[Group]) -> tuple[Optimizer, list[float]]:
    decays = [recipe.weight_decay if group.weight_decay is None else group.weight_decay for group in groups]
    dicts: list[dict[str, Any]] = [
        {"params": list(group.parameters), "weight_decay": decay} for group, decay in zip(groups, decays)
    ]
    optimizer = torch.optim.AdamW(dicts, recipe.lr, betas=recipe.betas)
    return optimizer, [group.lr_scale for group in groups]


def _step(
    loss: Tensor, params: list[nn.Parameter], optimizer: Optimizer, clip: float, scaler: torch.amp.GradScaler | None
) -> None:
    optimizer.zero_grad(set_to_none=True)
    if scaler is None:
        loss.backward()
        nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        return
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(params, clip)
    scaler.step(optimizer)
    scaler.update()


def _save(
    states: States, params: dict, average: dict, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, step: int
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, p in params.items():
        # a parameter that no loss reaches has no moments
        moments = optimizer.state[p] or {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        tensors |= {
            f"param.{name}": p.detach(),
            f"average.{name}": average[name],
            f"first.{name}": moments["exp_avg"],
            f"second.{name}": moments["exp_avg_sq"],
        }
    # float16 may pass over steps, so the optimizer's own count is less than the loop's
    counts = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    metadata = {"step": str(step), "optimizer_step": str(max(counts, default=0))}
    if scaler is not None:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    states.write(tensors, metadata)


def _resume(
    states: States, params: dict, average: dict, optimizer: Optimizer, scaler: torch.amp.GradScaler | None
) -> int:
    if (state := states.read()) is None:
        return 0
    metadata, step, tensors = state.metadata, state.step, state.tensors
    count = float(metadata.get("optimizer_step", step))
    parts = ("param", "average", "first", "second")
    expected = {f"{part}.{name}": p.shape for name, p in params.items() for part in parts}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError(f"{states.path}: the checkpoint of another model. Remove it, or choose another folder with --logs.")
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(tensors[f"param.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(count),
                "exp_avg": tensors[f"first.{name}"].to(p.device),
                "exp_avg_sq": tensors[f"second.{name}"].to(p.device),
            }
    if scaler is not None and "scaler" in metadata:
        scaler.load_state_dict(json.loads(metadata["scaler"]))
    return step
