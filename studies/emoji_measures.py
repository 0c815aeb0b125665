"""How well a CLIP reads drawings whose names are known: naming, and retrieval both ways."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluation.statistics import paired_difference
from ..models.latent_clip import LatentCLIP
from .emoji_pictures import Drawing
from .emoji_towers import features_of, texts_of

AMONG = 100
TASKS = ("named of all, top-1", "named of all, top-5", f"named of {AMONG}, top-1", f"named of {AMONG}, top-5",
         "picture by name, R@1", "picture by name, R@5", "name by picture, R@1", "name by picture, R@5")  # fmt: skip


def ranks(scores: Tensor) -> Tensor:
    """How many others score at least as high as the right one, by row of (N, N) whose right ones are the diagonal: (N,)."""
    return (scores >= scores.diagonal()[:, None]).sum(1) - 1


def ranks_among(scores: Tensor, count: int, seed: int) -> Tensor:
    """`ranks` among the right one and `count` - 1 others that are drawn for each row.

    Raises:
        ValueError: there are fewer than `count`.
    """
    total = len(scores)
    if total < count:
        raise ValueError(f"Got {total} names, expected at least {count}.")
    rng, found = random.Random(seed), []
    for row in range(total):
        others = [other if other < row else other + 1 for other in rng.sample(range(total - 1), count - 1)]
        found.append((scores[row, others] >= scores[row, row]).sum())
    return torch.stack(found)


def verdicts(images: Tensor, texts: Tensor, plain: Tensor) -> dict[str, list[bool]]:
    """Whether each of N drawings is read right, by task.

    Args:
        images: unit features (N, D). texts: of their names in all templates. plain: of the bare names, for retrieval.
    """
    named, bare = images @ texts.T, images @ plain.T
    found = (ranks(named), ranks_among(named, AMONG, seed=0), ranks(bare.T), ranks(bare))
    hits = [rank < k for rank in found for k in (1, 5)]
    return {task: hit.tolist() for task, hit in zip(TASKS, hits)}


def read(model: LatentCLIP, drawings: Sequence[Drawing], stored: Tensor) -> dict[str, list[bool]]:
    """`verdicts` of a tower about drawings as it reads them."""
    names = [drawing.name for drawing in drawings]
    images = features_of(model, stored)
    return verdicts(images, texts_of(model, names), texts_of(model, names, ("{}",)))


def points(first: Sequence[bool], second: Sequence[bool]) -> str:
    """second − first in percentage points, paired, with the bootstrap's 95 % interval."""
    found = paired_difference(first, second)
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
