"""Rates with their uncertainty, and the paired test: small helpers for honest tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest


@dataclass(frozen=True)
class Rate:
    """`hits` of `n`, with the Wilson 95 % interval."""

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


def bootstrap_by_prompt(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], draws: int = 4000
) -> tuple[float, float]:
    """95 % interval of the mean of `second` less that of `first`, both noises × prompts: prompts are drawn with replacement."""
    differences = torch.tensor(second, dtype=torch.float64).mean(0) - torch.tensor(first, dtype=torch.float64).mean(0)
    rows = torch.randint(len(differences), (draws, len(differences)), generator=torch.Generator().manual_seed(0))
    low, high = differences[rows].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar p-value for paired verdicts: only the pairs that differ count."""
    gains = sum(b and not a for a, b in zip(first, second))
    losses = sum(a and not b for a, b in zip(first, second))
    return float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
