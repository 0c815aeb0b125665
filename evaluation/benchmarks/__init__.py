"""One benchmark, one file: how its prompts are read, where its pictures lie, how its results are read and summed up.

Formats are those of the benchmark's own repository, so that its scorer runs on our folders and its results are read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import EvaluationError


@dataclass(frozen=True)
class Prompt:
    """A line of a benchmark's list.

    Attributes:
        index: its place in the list, from 0.
        task: what it tests; results are summed up by task.
        seed: of its first picture, where the benchmark says so.
        about: what else stands in the list, as its scorer needs it.
    """

    index: int
    text: str
    task: str = ""
    seed: int | None = None
    about: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What a scorer says of one picture: picture `number` of prompt `prompt`, both from 0; a verdict is 0 or 1."""

    prompt: int
    number: int
    value: float


@dataclass(frozen=True)
class Summary:
    """Figures of a set of scores.

    Attributes:
        overall: the figure that the benchmark is known by. tasks: means by task, in the list's order. more: other figures.
        percent: whether they are shares.
    """

    overall: float
    tasks: dict[str, float]
    more: dict[str, float] = field(default_factory=dict)
    percent: bool = True


@dataclass(frozen=True)
class Benchmark:
    """What the harness must know of a benchmark.

    Attributes:
        images: pictures per prompt, officially.
        read: the list's file → prompts.
        picture: (prompt, number) → path inside the arm's folder.
        prepare: writes what its scorer expects beside the pictures, or does nothing: (folder, prompts, images).
        results: (results file or folder, prompts, images) → scores.
        summarise: (prompts, scores) → figures.
        scorers: commands of its own scorer, with {folder} for the arm's folder, to be run in its own environment.
        verdicts: whether its scores are 0 or 1. lower_is_better: as for shares of unsafe pictures.
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


def lines_of(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without empty ones at the end.

    Raises:
        EvaluationError: it cannot be read, or has no lines.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}). Name a text file in UTF-8.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise EvaluationError(f"{path}: is empty, expected one prompt a line.")
    return lines


def complete(scores: Sequence[Score], prompts: Sequence[Prompt], images: int, source: Path) -> list[Score]:
    """The scores in order, if there is exactly one for every picture: a mean over what happens to be there would be wrong.

    Raises:
        EvaluationError: one is missing, is there twice, or belongs to no picture.
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
    """Mean of the scores of each task, in the order in which the list has them."""
    tasks: dict[str, list[float]] = {prompt.task: [] for prompt in prompts}
    task_of = {prompt.index: prompt.task for prompt in prompts}
    for score in scores:
        tasks[task_of[score.prompt]].append(score.value)
    return {task: sum(values) / len(values) for task, values in tasks.items() if values}
