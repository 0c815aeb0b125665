"""What one patch tells by itself: a linear readout of the cell at the centre of a shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.scenes import Scene


def cells_of(given: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """What a patch convolution is given at the centre of every shape: (shapes, numbers of a patch), for inputs (N, C, H, W) of 8×8 patches."""
    size = given.shape[-1] // 8
    patches = F.unfold(given, size, stride=size).movedim(1, 2).unflatten(1, (8, 8))
    return torch.stack([
        patches[n, int(shape.y) // 8, int(shape.x) // 8] for n, scene in enumerate(scenes) for shape in scene.shapes
    ])  # fmt: skip


@torch.enable_grad()
def fit_readout(cells: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on standardised numbers, a little weight decay: cells (N, D) → labels."""
    mean, std = cells.mean(0), cells.std(0).clamp_min(1e-6)
    weight = torch.zeros(cells.shape[1] + 1, classes, requires_grad=True)

    def logits(given: Tensor) -> Tensor:
        return F.pad((given - mean) / std, (0, 1), value=1.0) @ weight

    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits(cells), labels) + 1e-4 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight.requires_grad_(False)
    return lambda given: logits(given).argmax(-1)
