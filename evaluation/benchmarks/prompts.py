"""Plain prompt lists such as DrawBench and PartiPrompts, which have no scorer of their own.

List: a TSV or CSV with a column Prompt or Prompts and perhaps Category, or a text file with one prompt per line. Folder:
`00000_00.png` …. Results: CSV with prompt_index, number and value, of any scorer. `NEUTRAL` is a list of ours, half of it about people.
No method of this pack aims at these prompts, so that any change there is a side effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from .. import EvaluationError
from ..lists import read_lines, read_table
from .base import Benchmark, Prompt, Score, Summary, complete, means_by_task

NEUTRAL = Path(__file__).with_name("neutral.txt")
PROMPT, TASK = ("Prompt", "Prompts", "prompt", "prompts"), ("Category", "category")


def read(path: Path) -> list[Prompt]:
    """Read the list: a table if its name ends in .tsv or .csv, else one prompt per line."""
    if path.suffix.lower() not in (".tsv", ".csv"):
        return [Prompt(index, line.strip()) for index, line in enumerate(read_lines(path)) if line.strip()]
    records = read_table(path, (), "\t" if path.suffix.lower() == ".tsv" else ",")
    column, task = (next((name for name in names if name in records[0]), None) for names in (PROMPT, TASK))
    if column is None:
        raise EvaluationError(f"{path.name}: has the columns {', '.join(map(str, records[0]))}; expected one of {', '.join(PROMPT)}.")
    if empty := [at for at, record in enumerate(records, 2) if not (record[column] or "").strip()]:
        raise EvaluationError(f"{path.name}: line {empty[0]} has no prompt, expected one in each. Take the line out.")
    return [Prompt(index, r[column].strip(), (r[task] or "") if task else "") for index, r in enumerate(records)]


def picture(prompt: Prompt, number: int, images: int) -> Path:
    """Path of a picture: all in one folder."""
    return Path(f"{prompt.index:05d}_{number:02d}.png")


def results(path: Path, prompts: Sequence[Prompt], images: int) -> list[Score]:
    """Read a CSV with the columns prompt_index, number and value."""
    file = path / "results.csv" if path.is_dir() else path
    return complete([_score(record, file) for record in read_table(file, ("prompt_index", "number", "value"))], prompts, images, file)


def _score(record: dict[str, str], file: Path) -> Score:
    try:
        score = Score(int(record["prompt_index"]), int(record["number"]), float(record["value"]))
    except ValueError as error:
        raise EvaluationError(f"{file}: {error}, expected numbers in prompt_index, number and value.") from error
    if not math.isfinite(score.value):
        raise EvaluationError(f"{file}: prompt {score.prompt} has the value {score.value}, expected a finite number.")
    return score


def summarise(prompts: Sequence[Prompt], scores: Sequence[Score]) -> Summary:
    """Mean score, overall and by category."""
    return Summary(fmean(score.value for score in scores), means_by_task(prompts, scores), percent=False)


BENCHMARK = Benchmark("prompts", 4, read, picture, results, summarise, verdicts=False, lists={"neutral": NEUTRAL})
