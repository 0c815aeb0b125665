"""Plain lists of prompts: DrawBench, PartiPrompts and the like, which have no scorer of their own.

List: a TSV or CSV with a column Prompt or Prompts and perhaps Category, or a text file with one prompt a line. Folder:
`00000_00.png` …. Results: CSV with prompt_index, number and value, of any scorer. `NEUTRAL` is a list of ours, half of it of people,
which asks for nothing that a method is made for: what a method changes there, nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from .. import EvaluationError
from . import Benchmark, Prompt, Score, Summary, complete, lines_of, means_by_task
from .i2p import rows_of

NEUTRAL = Path(__file__).with_name("neutral.txt")
PROMPT, TASK = ("Prompt", "Prompts", "prompt", "prompts"), ("Category", "category")


def read(path: Path) -> list[Prompt]:
    """The list, a table where its name ends in .tsv or .csv."""
    if path.suffix.lower() not in (".tsv", ".csv"):
        return [Prompt(index, line.strip()) for index, line in enumerate(lines_of(path)) if line.strip()]
    rows = rows_of(path, (), "\t" if path.suffix.lower() == ".tsv" else ",")
    column, task = (next((name for name in names if name in rows[0]), None) for names in (PROMPT, TASK))
    if column is None:
        raise EvaluationError(f"{path.name}: has the columns {', '.join(map(str, rows[0]))}; expected one of {', '.join(PROMPT)}.")
    if empty := [at for at, row in enumerate(rows, 2) if not (row[column] or "").strip()]:
        raise EvaluationError(f"{path.name}: line {empty[0]} has no prompt, expected one in each. Take the line out.")
    return [Prompt(index, row[column].strip(), (row[task] or "") if task else "") for index, row in enumerate(rows)]


def picture(prompt: Prompt, number: int, images: int) -> Path:
    """All in one folder."""
    return Path(f"{prompt.index:05d}_{number:02d}.png")


def results(path: Path, prompts: Sequence[Prompt], images: int) -> list[Score]:
    """Of a CSV with the columns prompt_index, number and value."""
    file = path / "results.csv" if path.is_dir() else path
    return complete([_score(row, file) for row in rows_of(file, ("prompt_index", "number", "value"))], prompts, images, file)


def _score(row: dict[str, str], file: Path) -> Score:
    try:
        score = Score(int(row["prompt_index"]), int(row["number"]), float(row["value"]))
    except ValueError as error:
        raise EvaluationError(f"{file}: {error}, expected numbers in prompt_index, number and value.") from error
    if not math.isfinite(score.value):
        raise EvaluationError(f"{file}: prompt {score.prompt} has the value {score.value}, expected a finite number.")
    return score


def summarise(prompts: Sequence[Prompt], scores: Sequence[Score]) -> Summary:
    """The mean over all pictures, and by category."""
    return Summary(fmean(score.value for score in scores), means_by_task(prompts, scores), percent=False)


BENCHMARK = Benchmark("prompts", 4, read, picture, results, summarise, verdicts=False)
