"""Selection of the best items of a batch."""

import math

from torch import Tensor

from .variety import choose, rank

__all__ = ["keep_best", "rank"]


def keep_best(
    scores: Tensor,
    keep: int,
    threshold: float | None = None,
    features: Tensor | None = None,
    variety: float = 0.0,
) -> tuple[list[int], list[int]]:
    """Split a batch into the best and the rest, both from best to worst. A NaN is never among the best.

    Args:
        scores: (B,).
        keep: at most this many are kept, at least 1.
        threshold: if given, only scores of at least this much are kept.
        features, variety: see `variety.choose`.

    Raises:
        ValueError: `keep` below 1, a threshold that is NaN, or negative variety.
    """
    if keep < 1:
        raise ValueError(f"Got keep = {keep}, expected at least 1.")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("Got NaN as threshold, expected the least score to keep.")
    if not 0 <= variety < math.inf:
        raise ValueError(f"Got variety = {variety}, expected 0 or more.")
    order = rank(scores)
    least = -math.inf if threshold is None else threshold
    good = [i for i in order if scores[i].item() >= least]
    best = [good[place] for place in choose(scores[good], keep, None if features is None else features[good], variety)]
    return best, [i for i in order if i not in best]
