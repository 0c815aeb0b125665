"""GenEval (arXiv 2310.11513, github.com/djghosh13/geneval): 553 prompts of six tasks, checked by an object detector.

List: `evaluation_metadata.jsonl`. Folder: `00000/metadata.jsonl` and `00000/samples/0000.png` …. Results: `results.jsonl` of its
evaluate_images.py; the overall score is the mean of the tasks' means, not of the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ...models.strict_json import short
from .. import EvaluationError
from ..lists import read_lines
from ..records import read_records, write_once
from .base import Benchmark, Prompt, Score, Summary, complete, means_by_task


def read(path: Path) -> list[Prompt]:
    """Read the list: one JSON object per line with tag, include and prompt."""
    return [_prompt(index, line, path.name) for index, line in enumerate(read_lines(path))]


def _prompt(index: int, line: str, name: str) -> Prompt:
    try:
        data = json.loads(line)
        if not isinstance(data["prompt"], str) or not isinstance(data["include"], list) or not isinstance(data["tag"], str):
            raise TypeError("prompt and tag must be texts and include a list")
        return Prompt(index, data["prompt"], data["tag"], about=data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(
            f"{name}: line {index + 1} is {line[:60]!r} ({error!r}), expected GenEval's metadata with tag, include and "
            "prompt. Take evaluation_metadata.jsonl of its repository."
        ) from error


def picture(prompt: Prompt, number: int, images: int) -> Path:
    """Path of a picture, as GenEval's evaluate_images.py expects it."""
    return Path(f"{prompt.index:05d}", "samples", f"{number:04d}.png")


def prepare(folder: Path, prompts: Sequence[Prompt], images: int) -> None:
    """Write each prompt's metadata beside its samples, as GenEval's generation scripts do."""
    for prompt in prompts:
        write_once(folder / f"{prompt.index:05d}" / "metadata.jsonl", json.dumps(prompt.about), parts=folder.parent)


def results(path: Path, prompts: Sequence[Prompt], images: int) -> list[Score]:
    """Read results.jsonl; prompt and picture of a line come from its filename."""
    file = path / "results.jsonl" if path.is_dir() else path
    by_index = {prompt.index: prompt for prompt in prompts}
    scores = []
    for line, record in enumerate(read_records(file), 1):
        try:
            parts = str(record["filename"]).replace("\\", "/").split("/")
            index, number = int(parts[-3]), int(parts[-1].split(".")[0])
            correct = record["correct"]
            if correct not in (True, False):
                raise ValueError(f"the verdict is {short(correct)}")
        except (KeyError, ValueError, IndexError) as error:
            raise EvaluationError(
                f"{file}: line {line} has no filename like 00000/samples/0000.png, or no verdict ({error!r}). "
                "Expected results.jsonl of GenEval's evaluate_images.py."
            ) from error
        if index in by_index and record.get("prompt", by_index[index].text) != by_index[index].text:
            raise EvaluationError(
                f"{file}: line {line} is about {record['prompt']!r}, expected {by_index[index].text!r}. They are of another list."
            )
        scores.append(Score(index, number, float(bool(correct))))
    return complete(scores, prompts, images, file)


def summarise(prompts: Sequence[Prompt], scores: Sequence[Score]) -> Summary:
    """Compute the figures of GenEval's summary_scores.py: shares by task and their mean, correct pictures, prompts with a correct picture."""
    tasks = means_by_task(prompts, scores)
    solved = {score.prompt for score in scores if score.value}
    more = {
        "correct images": fmean(score.value for score in scores),
        "prompts with a correct image": len(solved) / len({score.prompt for score in scores}),
    }
    return Summary(fmean(tasks.values()), tasks, more)


BENCHMARK = Benchmark(
    "geneval", 4, read, picture, results, summarise, prepare,
    ('python evaluation/evaluate_images.py "{folder}" --outfile "{folder}/results.jsonl" --model-path MASK2FORMER_FOLDER',),
    mean_of_tasks=True,
)  # fmt: skip
