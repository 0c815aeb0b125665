"""Cache of the stages of Shapes World, and initialisation of its networks. The loop is training/loop.py.

Checkpoints are safetensors in an ignored folder; nothing here is needed to *use* the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..training import loop
from ..training.loop import Draw, Recipe

__all__ = ["CACHE", "Draw", "Recipe", "cached", "fit", "initialise"]

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "shapes_world"


def fit(
    model: nn.Module, recipe: Recipe, loss_of: Callable[[Draw], tuple[Tensor, dict[str, float]]],
    after: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """`training.loop.fit` with its checkpoint in the cache folder."""
    loop.fit(model, recipe, loss_of, CACHE / f"{recipe.name}.safetensors", after=after)


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
