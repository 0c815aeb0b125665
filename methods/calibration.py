"""Calibrate a gate's threshold on scores of allowed and of unwanted images, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

CONFIDENCE = 0.95
ROUNDING = 1e-4  # of a log-odds
FEW = 20  # images of either kind below which nothing can be said


class CalibrationError(ValueError):
    """The scores cannot be calibrated; the message says what came, what was expected and what to do."""


@dataclass(frozen=True)
class Share:
    """`hits` of `n`, with the exact (Clopper-Pearson) 95 % interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return exact_interval(self.hits, self.n)

    def as_dict(self) -> dict:
        low, high = self.interval
        return {
            "rate": round(self.value, 6),
            "low": round(low, 6),
            "high": round(high, 6),
            "hits": self.hits,
            "n": self.n,
        }


@dataclass(frozen=True)
class Calibration:
    """Threshold, with its rates on the images that it was chosen on.

    Attributes:
        threshold: the gate blocks from here.
        false_blocks: of the allowed. Although the threshold was chosen on them, the upper end of the interval holds: it is
            the quantile of the order statistic that the threshold is.
        missed: of the unwanted, those that pass.
        auc: chance that an unwanted image scores higher than an allowed one; ties count half.
    """

    threshold: float
    false_blocks: Share
    missed: Share
    auc: float

    @property
    def auc_interval(self) -> tuple[float, float]:
        """95 % interval of `auc`."""
        return auc_interval(self.auc, self.false_blocks.n, self.missed.n)

    @property
    def doubt(self) -> str:
        """Reason to distrust the threshold; "" if there is none."""
        (low, high), fewest = self.auc_interval, min(self.false_blocks.n, self.missed.n)
        if high < 0.5:
            return "it scores allowed images higher than unwanted ones: the folders are swapped, or the phrases say something else"
        if low <= 0.5:
            return (
                f"it cannot tell the two folders apart: the area may be 0.5, which is chance ({low:.2f} to {high:.2f})"
            )
        return f"only {fewest} images of one kind: take at least {FEW}, better some hundreds" if fewest < FEW else ""


def calibrate(allowed: Sequence[float], unwanted: Sequence[float], false_block_rate: float) -> Calibration:
    """Find the strictest threshold that blocks at most this share of the allowed images.

    Args:
        allowed, unwanted: log-odds of images that may pass, and of those that must not.
        false_block_rate: 0 to below 1.

    Raises:
        ValueError: no images, numbers that are not finite, or no such rate.
    """
    for name, scores in (("allowed", allowed), ("unwanted", unwanted)):
        if not scores:
            raise ValueError(
                f"Got no {name} images, expected at least one, and some hundreds for a rate that means something."
            )
        if not all(map(math.isfinite, scores)):
            raise ValueError(f"Got a score of the {name} images that is no finite number. Remove the broken image.")
    if not 0 <= false_block_rate < 1:
        raise ValueError(f"Got the false block rate {false_block_rate}, expected 0 to below 1, for example 0.01.")
    falling = sorted(allowed, reverse=True)
    # a little above the largest score that must pass, which is another in its last digits in a batch or on another device
    threshold = falling[math.floor(false_block_rate * len(falling) + 1e-9)] + ROUNDING
    return Calibration(
        threshold,
        Share(sum(score >= threshold for score in allowed), len(allowed)),
        Share(sum(score < threshold for score in unwanted), len(unwanted)),
        auc(allowed, unwanted),
    )


def roc(allowed: Sequence[float], unwanted: Sequence[float]) -> list[tuple[float, float, float]]:
    """List every threshold that makes a difference, falling: (threshold, share of allowed blocked, share of unwanted blocked)."""
    points = [(math.inf, 0.0, 0.0)]
    marked = sorted([(score, 0) for score in allowed] + [(score, 1) for score in unwanted], reverse=True)
    blocked = [0, 0]
    for index, (score, kind) in enumerate(marked):
        blocked[kind] += 1
        if index + 1 == len(marked) or marked[index + 1][0] != score:
            points.append((score, blocked[0] / len(allowed), blocked[1] / len(unwanted)))
    return points


def auc(allowed: Sequence[float], unwanted: Sequence[float]) -> float:
    """Area under `roc`."""
    points = roc(allowed, unwanted)
    return sum((x1 - x0) * (y0 + y1) / 2 for (_, x0, y0), (_, x1, y1) in pairwise(points))


def auc_interval(area: float, allowed: int, unwanted: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of an area under the ROC curve from so many images of both kinds; honest at 1 too.

    Newcombe 2006 (Statistics in Medicine 25, 559), method 5: Hanley and McNeil's variance at the area that is asked about.
    """
    z, pairs, more = NormalDist().inv_cdf((1 + confidence) / 2), allowed * unwanted, (allowed + unwanted) / 2 - 1

    def spread(true: float) -> float:
        return z * math.sqrt(true * (1 - true) / pairs * (1 + more * ((1 - true) / (2 - true) + true / (1 + true))))

    low = area * _solve(lambda share: share * area + spread(share * area), area)
    return low, area + (1 - area) * _solve(lambda s: area + s * (1 - area) - spread(area + s * (1 - area)), area)


def exact_interval(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson interval: rates at which neither so many nor so few hits as `hits` of `n` are a surprise.

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"Got {hits} hits of {n}, expected 0 ≤ hits ≤ n and n at least 1.")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _solve(lambda rate: 1 - _at_most(hits - 1, n, rate), tail)
    high = 1.0 if hits == n else 1 - _solve(lambda rate: 1 - _at_most(n - hits - 1, n, rate), tail)
    return low, high


def least_provable_rate(n: int, confidence: float = CONFIDENCE) -> float:
    """The smallest rate that `n` images without a single hit can show not to be exceeded; about 3/n."""
    return 1 - (1 - confidence) ** (1 / n)


def _at_most(k: int, n: int, rate: float) -> float:
    """Probability of at most k hits of n."""
    if rate <= 0 or rate >= 1:
        return 1.0 if rate <= 0 or k >= n else 0.0
    hit, miss, whole = math.log(rate), math.log1p(-rate), math.lgamma(n + 1)
    terms = (
        math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * hit + (n - i) * miss) for i in range(k + 1)
    )
    return min(1.0, math.fsum(terms))


def _solve(rising, value: float) -> float:
    """Find the rate at which a rising function has this value."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
