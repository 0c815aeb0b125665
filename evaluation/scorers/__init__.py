"""What says of a picture how good it is: a benchmark's own scorer, run in its own environment, or one of ours, never called official.

A scorer of ours is a callable from pictures and their prompts to one number each.
"""

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
class Scorer:
    """A scorer of ours.

    Attributes:
        name: for records and tables, with what identifies its model.
        note: what it is not, in words.
        score: (picture (3, H, W) in [0, 1], prompt) → number. verdicts: whether it is 0 or 1.
    """

    name: str
    note: str
    score: Callable[[Tensor, Prompt], float]
    verdicts: bool = False
    lower_is_better: bool = False


def read_picture(path: Path, sha256: str = "") -> Tensor:
    """(3, H, W) in [0, 1].

    Args:
        sha256: of the file as it was made; "": not known.

    Raises:
        EvaluationError: it is missing, damaged, or another file than was made.
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
    """(3,) of a picture (3, H, W)."""
    return picture.mean((-2, -1))


def contrast(picture: Tensor, prompt: Prompt | None = None) -> float:
    """Root mean square of the distance of pixels to the mean colour: it grows with guidance, up to burnt pictures."""
    return float((picture - mean_colour(picture)[:, None, None]).square().sum(0).mean().sqrt())


def layout(picture: Tensor, cells: int = 8) -> Tensor:
    """(cells, cells) brightness, without its mean: where things are, whatever their details."""
    grid = torch.nn.functional.adaptive_avg_pool2d(picture.mean(0)[None, None], cells)[0, 0]
    return grid - grid.mean()


CONTRAST = Scorer("contrast", "how far pixels are from the picture's mean colour; no judgement of quality", contrast)


def check_numbers(values: Sequence[float], name: str) -> None:
    """Raises EvaluationError where one is not finite."""
    if not np.isfinite(np.asarray(values, float)).all():
        raise EvaluationError(f"{name} gave NaN or infinity for a picture, expected finite numbers. Is its model damaged?")
