"""Controls for any claimed gain: best-of-M plain pictures at equal cost, and plain guidance at equal contrast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from . import EvaluationError
from .benchmarks import Score
from .compare import per_prompt
from .statistics import Estimate, paired_difference


@dataclass(frozen=True)
class EqualCost:
    """Comparison of an arm with the best of M plain pictures.

    Attributes:
        cost: seconds per picture, as a multiple of the plain arm's. m: plain pictures for that cost, at most those that exist.
        plain, arm: mean scores by the judge. difference: arm − best of M plain pictures, over prompts.
        short: plain pictures per prompt that are missing for an equal cost; 0 if none.
    """

    cost: float
    m: int
    plain: float
    arm: float
    difference: Estimate
    short: int


def seconds_of(pictures: Sequence[dict]) -> dict[str, float]:
    """Median seconds per picture of each arm, as reported by the servers; nan if not reported."""
    found: dict[str, list[float]] = {}
    for record in pictures:
        found.setdefault(record["arm"], []).extend([record["seconds"]] if record["seconds"] is not None else [])
    return {arm: median(values) if values else math.nan for arm, values in found.items()}


def equal_cost(cost: float, chosen_by: Sequence[Score], judged_by: Sequence[Score], arm: Sequence[Score]) -> EqualCost:
    """Compare an arm with plain best-of-M, M = rounded cost: chosen by one scorer, judged by another, averaged over all choices of M.

    Args:
        cost: seconds per picture of the arm, as a multiple of the plain arm's.
        chosen_by, judged_by: scores of the plain arm by chooser and judge. arm: scores of the other arm by the judge.

    Raises:
        EvaluationError: cost is not finite.
    """
    if not math.isfinite(cost):
        raise EvaluationError("The servers did not say how long pictures took, so that nothing has an equal cost.")
    images = max(score.number for score in judged_by) + 1
    wanted = max(1, round(cost))
    m = min(wanted, images)
    values = expected_best(chosen_by, judged_by, m)
    after = per_prompt(arm)
    order = list(values)
    difference = paired_difference([values[i] for i in order], [after[i] for i in order])
    mean = lambda found: sum(found[i] for i in order) / len(order)  # noqa: E731
    return EqualCost(cost, m, mean(values), mean(after), difference, wanted - m)


def expected_best(chosen_by: Sequence[Score], judged_by: Sequence[Score], m: int) -> dict[int, float]:
    """Expected judge's score, by prompt, of the chooser's best picture among m, over all choices of m.

    Among n pictures, the one of rank r (from 0) by the chooser is best in C(n − 1 − r, m − 1) of the C(n, m) choices. Tied pictures
    share these.
    """
    judged = {(score.prompt, score.number): score.value for score in judged_by}
    by_prompt: dict[int, list[tuple[float, float]]] = {}
    for score in chosen_by:
        by_prompt.setdefault(score.prompt, []).append((score.value, judged[score.prompt, score.number]))
    best = {}
    for prompt, pairs in by_prompt.items():
        pairs.sort(reverse=True)
        ranked_by, values = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        values = np.array([values[ranked_by == score].mean() for score in ranked_by])  # ties share
        n = len(pairs)
        weights = np.array([math.comb(n - 1 - rank, m - 1) for rank in range(n)]) / math.comb(n, m)
        best[prompt] = float(weights @ values)
    return best


@dataclass(frozen=True)
class GuidanceMatched:
    """Comparison of an arm with plain guidance of the same contrast.

    Attributes:
        contrast: mean contrast of the arm. cfg: guidance scale with that contrast, interpolated in the sweep.
        inside: True if the sweep reaches that contrast.
        difference: arm − plain at that cfg, over prompts, by the judge.
    """

    contrast: float
    cfg: float
    inside: bool
    difference: Estimate


def guidance_matched(
    sweep: Mapping[float, tuple[Sequence[Score], Sequence[Score]]], arm_contrast: Sequence[Score], arm: Sequence[Score]
) -> GuidanceMatched:
    """Compare an arm with plain guidance at equal contrast, since rewards rise with guidance while pictures burn.

    Args:
        sweep: cfg → (contrasts, scores by the judge) of plain pictures.

    Raises:
        EvaluationError: the sweep has fewer than two points.
    """
    if len(sweep) < 2:
        raise EvaluationError(f"Got a sweep of {len(sweep)} guidance scales, expected at least two. Add --sweep cfg=1,2,4,8.")
    points = sorted((_mean(contrasts), cfg) for cfg, (contrasts, _) in sweep.items())
    target = _mean(arm_contrast)
    inside = points[0][0] <= target <= points[-1][0]
    (low, below), (high, above) = next(
        (pair for pair in pairwise(points) if pair[0][0] <= target <= pair[1][0]),
        (points[0], points[0]) if target < points[0][0] else (points[-1], points[-1]),
    )
    share = (target - low) / (high - low) if high > low else 0.0
    first, second = per_prompt(sweep[below][1]), per_prompt(sweep[above][1])
    after = per_prompt(arm)
    plain = {i: (1 - share) * first[i] + share * second[i] for i in after}
    difference = paired_difference([plain[i] for i in after], [after[i] for i in after])
    return GuidanceMatched(target, (1 - share) * below + share * above, inside, difference)


def _mean(scores: Sequence[Score]) -> float:
    return sum(score.value for score in scores) / len(scores)
