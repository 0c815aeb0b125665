"""Scores of a run's pictures: made by a scorer of ours or read from a benchmark's own, one line of `scores.jsonl` for each picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..models.strict_json import short
from . import EvaluationError
from .benchmarks import Benchmark, Prompt, Score, complete
from .plan import SCORES
from .records import SCORE_FIELDS, append_records, only_run, read_records
from .run_folder import pictures_of, prompts_of, read_run
from .scorers import Scorer, check_numbers, read_picture

AT_ONCE = 64  # pictures between two writes


@dataclass(frozen=True)
class Scored:
    """All scores of one arm by one scorer, one for every picture of the run."""

    arm: str
    scorer: str
    note: str
    scores: list[Score]
    verdicts: bool
    lower_is_better: bool


def score_run(folder: Path, scorer: Scorer, arms: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> int:
    """Score what is not scored yet; how many that was.

    Raises:
        EvaluationError: pictures are missing, damaged, or not the ones that were made.
    """
    run = read_run(folder)
    with only_run(folder):
        prompts = {prompt.index: prompt for prompt in prompts_of(run)}
        wanted = list(arms) or list(run["arms"])
        pictures = [record for record in pictures_of(folder) if record["arm"] in wanted]
        _check_complete(run, pictures, wanted, folder)
        scored = read_records(folder / SCORES, SCORE_FIELDS)
        there = {(r["arm"], r["prompt"], r["number"], r["sha256"]) for r in scored if r["scorer"] == scorer.name}
        new = [r for r in pictures if (r["arm"], r["prompt"], r["number"], r["sha256"]) not in there]
        for start in range(0, len(new), AT_ONCE):
            part = new[start : start + AT_ONCE]
            values = [scorer.score(read_picture(folder / r["file"], r["sha256"]), prompts[r["prompt"]]) for r in part]
            check_numbers(values, scorer.name)
            append_records(folder / SCORES, [_record(scorer, r, value) for r, value in zip(part, values)])
            say(f"{start + len(part)} of {len(new)}")
        return len(new)


REWARD = "reward of the workflow"


def keep_rewards(folder: Path, say: Callable[[str], None] = lambda line: None) -> int:
    """Take what the workflows themselves reported as scores of `REWARD`; how many pictures that was.

    An arm whose workflow reports none for some picture is left out, and said.

    Raises:
        EvaluationError: no arm reports any.
    """
    run, pictures = read_run(folder), pictures_of(folder)

    def score(picture: Tensor, prompt: Prompt) -> float:
        raise EvaluationError("a reward is what the server reported when it made the picture")

    scorer = Scorer(REWARD, "what the arms chose by or climbed, as their nodes reported it: no judgement", score)
    count = 0
    for arm in run["arms"]:
        made = [r for r in pictures if r["arm"] == arm]
        without = sum(r["reward"] is None for r in made)
        if without or not made:
            few = f" for {without} of its {len(made)} pictures" if without < len(made) else " for its pictures"
            say(f"{arm}: its workflow reports no finite reward{few}")
            continue
        keep_results(folder, arm, [Score(r["prompt"], r["number"], r["reward"]) for r in made], scorer)
        count += len(made)
    if not count:
        raise EvaluationError("No workflow reports a reward. Put Score Latents before its decoder, and run generate into another folder.")
    return count


def keep_results(folder: Path, arm: str, scores: Sequence[Score], scorer: Scorer) -> None:
    """Add results that were made elsewhere for one arm, such as those of a benchmark's own scorer; the last ones count."""
    with only_run(folder):
        read_records(folder / SCORES, SCORE_FIELDS)  # nothing is added to a file that is not one of scores
        pictures = {(r["prompt"], r["number"]): r for r in pictures_of(folder) if r["arm"] == arm}
        elsewhere = {"arm": arm, "sha256": None}  # of pictures that were made elsewhere too
        append_records(
            folder / SCORES,
            [
                _record(scorer, pictures.get((s.prompt, s.number), {**elsewhere, "prompt": s.prompt, "number": s.number}), s.value)
                for s in scores
            ],
        )


def official_scorer(benchmark: Benchmark, source: str) -> Scorer:
    """A benchmark's own scorer, for results that it has left in `source`."""

    def score(picture: Tensor, prompt: Prompt) -> float:
        raise EvaluationError(f"{benchmark.name}'s own scorer runs in its own environment; its results are read from files.")

    return Scorer(official(benchmark), f"read from {source}", score, benchmark.verdicts, benchmark.lower_is_better)


def official(benchmark: Benchmark) -> str:
    """The name under which a benchmark's own results are kept."""
    return f"{benchmark.name} (its own scorer)"


def read_scores(folder: Path) -> list[Scored]:
    """What is scored in full, by arm and scorer, in the order of the arms.

    Raises:
        EvaluationError: a scorer has some pictures of an arm and not all: a mean would be of other pictures than in the next column.
    """
    run = read_run(folder)
    prompts = prompts_of(run)
    now = {(r["arm"], r["prompt"], r["number"]): r["sha256"] for r in pictures_of(folder)}
    found: dict[tuple[str, str], dict[tuple[int, int], dict]] = {}
    for number, record in enumerate(read_records(folder / SCORES, SCORE_FIELDS), 1):
        if record["arm"] not in run["arms"]:
            raise EvaluationError(f"{folder / SCORES}: line {number} is of the arm {short(record['arm'])}; the run has {', '.join(run['arms'])}.")
        place = record["arm"], record["prompt"], record["number"]
        if record["sha256"] not in (None, now.get(place)):
            continue  # of a picture that was made again since
        found.setdefault((record["scorer"], record["arm"]), {})[place[1:]] = record
    scored = []
    for scorer, arm in sorted(found, key=lambda key: (key[0], list(run["arms"]).index(key[1]))):
        records = list(found[scorer, arm].values())
        scores = [Score(record["prompt"], record["number"], record["value"]) for record in records]
        scores = complete(scores, prompts, run["images"], Path(f"{folder / SCORES} ({scorer}, {arm})"))
        first = records[0]
        scored.append(Scored(arm, scorer, first["note"], scores, first["verdicts"], first["lower_is_better"]))
    return scored


def _record(scorer: Scorer, picture: dict, value: float) -> dict:
    return {
        "arm": picture["arm"], "prompt": picture["prompt"], "number": picture["number"], "sha256": picture["sha256"],
        "scorer": scorer.name, "value": value, "verdicts": scorer.verdicts, "lower_is_better": scorer.lower_is_better, "note": scorer.note,
    }  # fmt: skip


def _check_complete(run: dict, pictures: Sequence[dict], arms: Sequence[str], folder: Path) -> None:
    if unknown := [arm for arm in arms if arm not in run["arms"]]:
        raise EvaluationError(f"{folder}: no arm {unknown[0]!r}, there are {', '.join(run['arms'])}.")
    prompts: list[Prompt] = prompts_of(run)
    for arm in arms:
        made = [Score(r["prompt"], r["number"], 0.0) for r in pictures if r["arm"] == arm and (folder / r["file"]).is_file()]
        complete(made, prompts, run["images"], folder / arm)
