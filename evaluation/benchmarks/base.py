"""Types that every benchmark shares: prompts, scores, summaries, and the benchmark itself as data and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import EvaluationError


@dataclass(frozen=True)
class Prompt:
    """An entry of a benchmark's prompt list.

    Attributes:
        index: position in the list, from 0.
        task: category of the prompt; results are averaged by task.
        seed: seed of the first picture, if the benchmark fixes it.
        about: other fields of the list that the benchmark's scorer needs.
    """

    index: int
    text: str
    task: str = ""
    seed: int | None = None
    about: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Score of one picture: picture `number` of prompt `prompt`, both from 0. A verdict is 0 or 1."""

    prompt: int
    number: int
    value: float


@dataclass(frozen=True)
class Summary:
    """Figures of a set of scores.

    Attributes:
        overall: the benchmark's headline figure. tasks: means by task, in the list's order. more: other figures.
        percent: True if the figures are shares.
    """

    overall: float
    tasks: dict[str, float]
    more: dict[str, float] = field(default_factory=dict)
    percent: bool = True


@dataclass(frozen=True)
class Benchmark:
    """Formats and figures of one benchmark.

    Attributes:
        images: pictures per prompt in the official protocol.
        read: prompt list (file or folder) → prompts.
        picture: (prompt, number, images) → path inside the arm's folder.
        prepare: (folder, prompts, images) → None; writes the files that its scorer expects beside the pictures.
        results: (results file or folder, prompts, images) → scores.
        summarise: (prompts, scores) → figures.
        scorers: command lines of its own scorer, with {folder} for the arm's folder. They run in the scorer's environment.
        verdicts: True if scores are 0 or 1. lower_is_better: True for shares of unsafe pictures.
        mean_of_tasks: True if the headline figure is the mean of the tasks' means, False if it is the mean over prompts.
        lists: prompt lists that ship with the pack, by the name that stands for the file on the command line.
    """

    name: str
    images: int
    read: Callable[[Path], list[Prompt]]
    picture: Callable[[Prompt, int, int], Path]
    results: Callable[[Path, Sequence[Prompt], int], list[Score]]
    summarise: Callable[[Sequence[Prompt], Sequence[Score]], Summary]
    prepare: Callable[[Path, Sequence[Prompt], int], None] = lambda folder, prompts, images: None
    scorers: tuple[str, ...] = ()
    verdicts: bool = True
    lower_is_better: bool = False
    mean_of_tasks: bool = False
    lists: Mapping[str, Path] = field(default_factory=dict)


def complete(scores: Sequence[Score], prompts: Sequence[Prompt], images: int, source: Path) -> list[Score]:
    """Return the scores in order, after a check that every picture has exactly one: a mean over some of them would be wrong.

    Raises:
        EvaluationError: a score is missing, is there twice, or belongs to no picture.
    """
    wanted = [(prompt.index, number) for prompt in prompts for number in range(images)]
    found: dict[tuple[int, int], Score] = {}
    for score in scores:
        if (score.prompt, score.number) in found:
            raise EvaluationError(f"{source}: prompt {score.prompt}, picture {score.number} is there twice, expected once.")
        found[score.prompt, score.number] = score
    missing = [place for place in wanted if place not in found]
    extra = sorted(found.keys() - set(wanted))
    if missing or extra:
        what = [f"{len(missing)} missing, the first: prompt {missing[0][0]}, picture {missing[0][1]}"] if missing else []
        what += [f"{len(extra)} too many, the first: prompt {extra[0][0]}, picture {extra[0][1]}"] if extra else []
        raise EvaluationError(
            f"{source}: {len(found)} results, expected {len(wanted)} ({len(prompts)} prompts × {images} pictures): {'; '.join(what)}. "
            "Generate or score what is missing, or give the list and number of pictures that they were made with."
        )
    return [found[place] for place in wanted]


def means_by_task(prompts: Sequence[Prompt], scores: Sequence[Score]) -> dict[str, float]:
    """Mean score of each task, in the list's order."""
    tasks: dict[str, list[float]] = {prompt.task: [] for prompt in prompts}
    task_of = {prompt.index: prompt.task for prompt in prompts}
    for score in scores:
        tasks[task_of[score.prompt]].append(score.value)
    return {task: sum(values) / len(values) for task, values in tasks.items() if values}
