"""Comparison of two sets of scores of the same prompts, paired by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import EvaluationError
from .benchmarks import Benchmark, Prompt, Score
from .run_folder import prompts_of, read_run
from .scoring import Scored, read_scores
from .statistics import Estimate, mcnemar, mean_over_prompts, paired_difference


@dataclass(frozen=True)
class Comparison:
    """Difference `second` − `first`, over prompts and by task.

    Attributes:
        mcnemar: exact p of verdicts with one picture per prompt; None otherwise, since pictures of one prompt are not independent.
    """

    first: str
    second: str
    scorer: str
    difference: Estimate
    tasks: dict[str, Estimate]
    mcnemar: float | None

    def __str__(self) -> str:
        exact = "" if self.mcnemar is None else f", exact McNemar p = {self.mcnemar:.2g}"
        lines = [f"{self.scorer}: {self.second} − {self.first} = {_figures(self.difference, exact)}"]
        return "\n".join([*lines, *(f"  {task}: {_figures(estimate)}" for task, estimate in self.tasks.items())])


def _figures(estimate: Estimate, more: str = "") -> str:
    return f"{estimate}, p = {estimate.p:.2g}{more}, {estimate.prompts} prompts"


def per_prompt(scores: Sequence[Score]) -> dict[int, float]:
    """Mean score over the pictures of each prompt."""
    found: dict[int, list[float]] = {}
    for score in scores:
        found.setdefault(score.prompt, []).append(score.value)
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def by_task(prompts: Sequence[Prompt], scores: Sequence[Score]) -> dict[str, np.ndarray]:
    """Means (n,) of the prompts of each task, in the list's order."""
    means = per_prompt(scores)
    found: dict[str, list[float]] = {}
    for prompt in prompts:
        if prompt.index in means:
            found.setdefault(prompt.task, []).append(means[prompt.index])
    return {task: np.array(values) for task, values in found.items()}


def overall(benchmark: Benchmark, prompts: Sequence[Prompt], scores: Sequence[Score]) -> Estimate:
    """Headline figure with its interval: the mean of the tasks' means or of the prompts', as `Benchmark.mean_of_tasks` says."""
    tasks = list(by_task(prompts, scores).values())
    return mean_over_prompts(tasks if benchmark.mean_of_tasks else [np.concatenate(tasks)])


def compare(prompts: Sequence[Prompt], first: Scored, second: Scored) -> Comparison:
    """Compare two arms, paired by prompt.

    Raises:
        EvaluationError: the scores are by different scorers, or of different prompts.
    """
    if first.scorer != second.scorer:
        raise EvaluationError(f"Got scores by {first.scorer} and by {second.scorer}, expected the same scorer for both.")
    before, after = per_prompt(first.scores), per_prompt(second.scores)
    if before.keys() != after.keys():
        lone = min(before.keys() ^ after.keys())
        raise EvaluationError(f"Prompt {lone} is scored in one of {first.arm} and {second.arm} only, expected the same prompts.")
    order = list(before)
    task_of = {prompt.index: prompt.task for prompt in prompts}
    tasks = {
        task: paired_difference([before[i] for i in order if task_of[i] == task], [after[i] for i in order if task_of[i] == task])
        for task in dict.fromkeys(task_of[i] for i in order)
    }
    one_each = first.verdicts and len(order) == len(first.scores) == len(second.scores)
    exact = mcnemar([bool(before[i]) for i in order], [bool(after[i]) for i in order]) if one_each else None
    difference = paired_difference([before[i] for i in order], [after[i] for i in order])
    return Comparison(first.arm, second.arm, first.scorer, difference, tasks if len(tasks) > 1 else {}, exact)


def compare_runs(first: Path, second: Path, first_arm: str, second_arm: str) -> list[Comparison]:
    """Compare an arm of one run with an arm of another or the same run, by every scorer that has scored both.

    Raises:
        EvaluationError: the runs differ in prompts, pictures per prompt or seeds; or no scorer has scored both arms.
    """
    one, other = read_run(first), read_run(second)
    for key in ("benchmark", "images", "seed", "batch"):
        if one[key] != other[key]:
            raise EvaluationError(f"{first} has {key} {one[key]!r}, {second} {other[key]!r}: they are not pairs.")
    prompts = prompts_of(one)
    if prompts != prompts_of(other):
        raise EvaluationError(f"{first} and {second} have other prompts: they are not pairs.")
    before = {s.scorer: s for s in read_scores(first) if s.arm == first_arm}
    after = {s.scorer: s for s in read_scores(second) if s.arm == second_arm}
    if not before.keys() & after.keys():
        raise EvaluationError(
            f"{first_arm} is scored by {', '.join(before) or 'nothing'}, {second_arm} by {', '.join(after) or 'nothing'}, "
            "expected a scorer that has both. Run score first."
        )
    return [compare(prompts, before[name], after[name]) for name in before if name in after]
