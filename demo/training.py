"""The one training loop of Shapes World: seeded, resumable, with an exponential moving average of the weights.

Every random number of a step comes from (seed, step), so a stage that was stopped goes on exactly where it was.
Checkpoints are safetensors in an ignored folder; nothing here is needed to *use* the weights.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "shapes_world"


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
    """How long and how fast one stage trains: AdamW, linear warm-up, cosine decay, gradient norm clipped at 1."""

    name: str
    steps: int
    lr: float
    seed: int = 0
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float = 0.995

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup)
        return self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def fit(model: nn.Module, recipe: Recipe, loss_of: Callable[[Draw], tuple[Tensor, dict[str, float]]]) -> None:
    """Train the parameters of `model` that require gradients; leave the averaged weights in it.

    Args:
        loss_of: takes the step's `Draw`, returns a scalar loss and numbers to log.
    """
    torch.manual_seed(recipe.seed)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(params.values(), recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    average = {name: p.detach().clone() for name, p in params.items()}
    path = CACHE / f"{recipe.name}.safetensors"
    start = _resume(path, params, average, optimizer)
    began = saved = time.monotonic()
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        loss, log = loss_of(Draw.of(recipe.seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(params.values()), 1 - decay)
        if step % 25 == 0 or step + 1 == recipe.steps:
            numbers = "  ".join(f"{key} {value:.4f}" for key, value in {"loss": loss.item(), **log}.items())
            print(f"{recipe.name} {step + 1}/{recipe.steps}  {time.monotonic() - began:.0f} s  {numbers}", flush=True)
        if time.monotonic() - saved > 60 or step + 1 == recipe.steps:
            _save(path, params, average, optimizer, step + 1)
            saved = time.monotonic()
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(average[name])


def _save(path: Path, params: dict, average: dict, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {}
    for name, p in params.items():
        # a parameter that no loss reaches has no moments
        moments = optimizer.state[p] or {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        tensors |= {
            f"param.{name}": p.detach(),
            f"average.{name}": average[name],
            f"first.{name}": moments["exp_avg"],
            f"second.{name}": moments["exp_avg_sq"],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, half, {"step": str(step)})
    half.replace(path)


def _resume(path: Path, params: dict, average: dict, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(tensors[f"param.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"first.{name}"],
                "exp_avg_sq": tensors[f"second.{name}"],
            }
    return step


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache folder, made on first use."""
    path = CACHE / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors, half = make(), path.with_suffix(".part")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, half)
        half.replace(path)
    return load_file(path)


def initialise(model: nn.Module, seed: int, zero: Iterable[str] = ()) -> None:
    """Fill every parameter of a module whose layers skip their own initialisation, as the host's do.

    Matrices and kernels are normal with variance 1 / fan-in, embeddings have std 0.02, norms are the identity; layers
    whose name ends with one of `zero` start at zero, which makes residual branches start as the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            for key, p in module.named_parameters(recurse=False):
                if key == "bias" or name.endswith(tuple(zero)):
                    p.zero_()
                elif isinstance(module, nn.Embedding):
                    p.normal_(0, 0.02, generator=generator)
                elif p.ndim < 2:
                    p.fill_(1.0)
                else:
                    p.normal_(0, p[0].numel() ** -0.5, generator=generator)
