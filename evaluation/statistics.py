"""Rates and means with confidence intervals, and paired tests over prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class Rate:
    """Rate of `hits` in `n`, with the Wilson 95 % interval."""

    hits: int
    n: int

    @classmethod
    def of(cls, verdicts: Sequence[bool]) -> Rate:
        return cls(sum(map(bool, verdicts)), len(verdicts))

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        bounds = binomtest(self.hits, self.n).proportion_ci(method="wilson")
        return float(bounds.low), float(bounds.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}-{100 * high:.1f}, n = {self.n})"

    def as_json(self) -> dict:
        return {
            "rate": round(self.value, 4),
            "low": round(self.interval[0], 4),
            "high": round(self.interval[1], 4),
            "n": self.n,
        }


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar p-value of paired verdicts; only pairs that differ count."""
    gains = sum(b and not a for a, b in zip(first, second))
    losses = sum(a and not b for a, b in zip(first, second))
    return float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0


@dataclass(frozen=True)
class Estimate:
    """Mean over prompts, or difference of two means, with its 95 % bootstrap interval over prompts.

    `p` is the two-sided p-value of a sign-flip permutation test on the prompts' differences; None for a mean.
    """

    value: float
    low: float
    high: float
    prompts: int
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"

    def as_json(self) -> dict:
        found = {"value": self.value, "low": self.low, "high": self.high, "p": self.p}
        return {**{key: None if x is None else round(x, 6) for key, x in found.items()}, "prompts": self.prompts}


DRAWS = 10_000
_CHUNK = 4_000_000  # random numbers at once


def mean_over_prompts(tasks: Sequence[np.ndarray], draws: int = DRAWS) -> Estimate:
    """Mean of the tasks' means, each task (n,) values of prompts; the bootstrap resamples prompts within their task."""
    rng = np.random.default_rng(0)
    sampled = np.mean([_resampled_means(np.asarray(values, float), draws, rng) for values in tasks], axis=0)
    low, high = np.quantile(sampled, [0.025, 0.975])
    value = float(np.mean([np.mean(values) for values in tasks]))
    return Estimate(value, float(low), float(high), sum(map(len, tasks)))


def paired_difference(first: Sequence[float], second: Sequence[float], draws: int = DRAWS) -> Estimate:
    """Mean of second − first over prompts, each (n,) one value per prompt in the same order.

    Raises:
        ValueError: the numbers of prompts differ, or are 0.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"Got {len(first)} and {len(second)} prompts, expected as many of both, and at least one.")
    differences = np.asarray(second, float) - np.asarray(first, float)
    rng = np.random.default_rng(0)
    low, high = np.quantile(_resampled_means(differences, draws, rng), [0.025, 0.975])
    observed, extreme = abs(differences.mean()), 0
    for count in _chunks(draws, len(differences)):
        signs = rng.integers(0, 2, (count, len(differences)), dtype=np.int8) * 2 - 1
        extreme += int((abs(signs @ differences) / len(differences) >= observed - 1e-12).sum())
    return Estimate(float(differences.mean()), float(low), float(high), len(differences), (extreme + 1) / (draws + 1))


def _resampled_means(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    means = [values[rng.integers(0, len(values), (n, len(values)))].mean(1) for n in _chunks(draws, len(values))]
    return np.concatenate(means)


def _chunks(draws: int, width: int) -> Iterator[int]:
    size = max(1, _CHUNK // max(1, width))
    for start in range(0, draws, size):
        yield min(size, draws - start)
