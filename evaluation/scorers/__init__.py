"""Scorers of pictures: adapters for a benchmark's own scorer (adapter.py), and scorers of ours, which are never called official."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...models.pictures import Skipped, read_upright
from .. import EvaluationError
from ..benchmarks import Prompt


@dataclass(frozen=True)
class ScorerInfo:
    """Name and kind of a scorer, as kept with each of its scores.

    Attributes:
        name: for records and tables; identifies the model.
        note: caveat in words, such as another detector than the official one.
        verdicts: True if scores are 0 or 1.
    """

    name: str
    note: str
    verdicts: bool = False
    lower_is_better: bool = False


@dataclass(frozen=True)
class PictureScorer:
    """A scorer that runs here: (picture (3, H, W) in [0, 1], prompt) → number."""

    info: ScorerInfo
    score: Callable[[Tensor, Prompt], float]


def read_picture(path: Path, sha256: str = "") -> Tensor:
    """Read a picture as (3, H, W) in [0, 1].

    Args:
        sha256: expected hash of the file; "" for no check.

    Raises:
        EvaluationError: the file is missing or damaged, or its hash differs.
    """
    again = "Remove it and run generate again: it makes what is missing."
    try:
        content = path.read_bytes()
        pixels = np.asarray(read_upright(content, shortest=1), dtype=np.float32)
    except (OSError, Skipped) as error:
        raise EvaluationError(f"{path}: no picture ({error}). {again}") from error
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise EvaluationError(f"{path}: is not the picture that this run made. {again}")
    return torch.from_numpy(pixels / 255).movedim(-1, 0)


def mean_colour(picture: Tensor) -> Tensor:
    """Mean colour (3,) of a picture (3, H, W)."""
    return picture.mean((-2, -1))


def contrast(picture: Tensor, prompt: Prompt | None = None) -> float:
    """Root mean square distance of pixels to the mean colour. It grows with guidance, up to burnt pictures."""
    return float((picture - mean_colour(picture)[:, None, None]).square().sum(0).mean().sqrt())


def layout(picture: Tensor, cells: int = 8) -> Tensor:
    """Brightness on a (cells, cells) grid minus its mean: the layout of a picture without its details."""
    grid = torch.nn.functional.adaptive_avg_pool2d(picture.mean(0)[None, None], cells)[0, 0]
    return grid - grid.mean()


CONTRAST = PictureScorer(ScorerInfo("contrast", "distance of pixels from the picture's mean colour; no measure of quality"), contrast)


def check_numbers(values: Sequence[float], name: str) -> None:
    """Raise EvaluationError if a value is not finite."""
    if not np.isfinite(np.asarray(values, float)).all():
        raise EvaluationError(f"{name} gave NaN or infinity for a picture, expected finite numbers. Is its model damaged?")
