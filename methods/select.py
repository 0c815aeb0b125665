"""Which items of a batch to keep."""

import math

from torch import Tensor


def rank(scores: Tensor) -> list[int]:
    """Indices from the best score to the worst; equal scores keep their order, NaN comes last. (B,) → B indices."""
    return sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i].item()))


def keep_best(scores: Tensor, keep: int, threshold: float | None = None) -> tuple[list[int], list[int]]:
    """Split a batch into the best and the rest, both from best to worst. A NaN is never among the best.

    Args:
        scores: (B,).
        keep: at most this many are kept, at least 1.
        threshold: if given, only scores of at least this much are kept.

    Raises:
        ValueError: `keep` below 1, or the threshold is NaN.
    """
    if keep < 1:
        raise ValueError(f"Got keep = {keep}, expected at least 1.")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("Got NaN as threshold, expected the least score to keep.")
    order = rank(scores)
    least = -math.inf if threshold is None else threshold
    best = [i for i in order[:keep] if scores[i].item() >= least]
    return best, [i for i in order if i not in best]
