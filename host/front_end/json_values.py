"""Numbers and rewards as JSON, which has no NaN and no infinity."""

import math

from torch import Tensor

from ...methods.rewards import Reward


def rounded(values: Tensor) -> list[float | None]:
    """Return numbers rounded to 6 digits for JSON; None for NaN and infinity."""
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]


def rounded_table(table: Tensor) -> list[list[float | None]]:
    """Apply `rounded` to every line of a table (B, N)."""
    return [rounded(line) for line in table]


def numbers(values: list[float]) -> list[float | None]:
    """Numbers for JSON with all digits; None for NaN and infinity."""
    return [value if math.isfinite(value) else None for value in values]


def reward_terms(reward: Reward | None) -> list[dict]:
    """Name and weight of every term; none without a reward."""
    return [] if reward is None else [{"name": term.name, "weight": term.weight} for term in reward.terms]
