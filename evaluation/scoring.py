"""Scores of a run's pictures, by a scorer of ours or a benchmark's own: one line of `scores.jsonl` for each picture and scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models.strict_json import short
from . import EvaluationError
from .benchmarks import Benchmark, Score, complete
from .plan import SCORES
from .records import SCORE_FIELDS, append_records, only_run, read_records
from .run_folder import pictures_of, prompts_of, read_run
from .scorers import PictureScorer, ScorerInfo, check_numbers, read_picture

AT_ONCE = 64  # pictures between two writes
REWARD = "reward of the workflow"


@dataclass(frozen=True)
class Scored:
    """Scores of all pictures of one arm by one scorer."""

    arm: str
    scorer: str
    note: str
    scores: list[Score]
    verdicts: bool
    lower_is_better: bool


def score_run(folder: Path, scorer: PictureScorer, arms: Sequence[str] = (), log: Callable[[str], None] = lambda line: None) -> int:
    """Score the pictures that have no score yet; return their number.

    Raises:
        EvaluationError: a picture is missing, damaged, or not the file that the run made.
    """
    run = read_run(folder)
    with only_run(folder):
        prompts = {prompt.index: prompt for prompt in prompts_of(run)}
        wanted = list(arms) or list(run["arms"])
        pictures = [record for record in pictures_of(folder) if record["arm"] in wanted]
        _check_complete(run, pictures, wanted, folder)
        scored = read_records(folder / SCORES, SCORE_FIELDS)
        there = {(r["arm"], r["prompt"], r["number"], r["sha256"]) for r in scored if r["scorer"] == scorer.info.name}
        new = [r for r in pictures if (r["arm"], r["prompt"], r["number"], r["sha256"]) not in there]
        for start in range(0, len(new), AT_ONCE):
            part = new[start : start + AT_ONCE]
            values = [scorer.score(read_picture(folder / r["file"], r["sha256"]), prompts[r["prompt"]]) for r in part]
            check_numbers(values, scorer.info.name)
            append_records(folder / SCORES, [_record(scorer.info, r, value) for r, value in zip(part, values)])
            log(f"{start + len(part)} of {len(new)}")
        return len(new)


def keep_rewards(folder: Path, log: Callable[[str], None] = lambda line: None) -> int:
    """Keep the rewards that the workflows' own nodes reported as scores of `REWARD`; return the number of pictures.

    An arm without a reward for some picture is left out and logged.

    Raises:
        EvaluationError: no arm has rewards.
    """
    run, pictures = read_run(folder), pictures_of(folder)
    scorer = ScorerInfo(REWARD, "the arms' own objective, as their nodes reported it: no independent judgement")
    count = 0
    for arm in run["arms"]:
        made = [r for r in pictures if r["arm"] == arm]
        without = sum(r["reward"] is None for r in made)
        if without or not made:
            few = f" for {without} of its {len(made)} pictures" if without < len(made) else " for its pictures"
            log(f"{arm}: its workflow reports no finite reward{few}")
            continue
        keep_results(folder, arm, [Score(r["prompt"], r["number"], r["reward"]) for r in made], scorer)
        count += len(made)
    if not count:
        raise EvaluationError("No workflow reports a reward. Put Score Latents before its decoder, and run generate into another folder.")
    return count


def keep_results(folder: Path, arm: str, scores: Sequence[Score], scorer: ScorerInfo) -> None:
    """Append results from elsewhere for one arm, such as those of a benchmark's own scorer. Later results replace earlier ones."""
    with only_run(folder):
        read_records(folder / SCORES, SCORE_FIELDS)  # refuses a file of another kind before anything is appended
        pictures = {(r["prompt"], r["number"]): r for r in pictures_of(folder) if r["arm"] == arm}
        elsewhere = {"arm": arm, "sha256": None}  # for pictures that this run has not made
        append_records(
            folder / SCORES,
            [
                _record(scorer, pictures.get((s.prompt, s.number), {**elsewhere, "prompt": s.prompt, "number": s.number}), s.value)
                for s in scores
            ],
        )


def official_scorer(benchmark: Benchmark, source: str) -> ScorerInfo:
    """Describe a benchmark's own scorer, whose results were read from `source`."""
    return ScorerInfo(f"{benchmark.name} (its own scorer)", f"read from {source}", benchmark.verdicts, benchmark.lower_is_better)


def read_scores(folder: Path) -> list[Scored]:
    """Read all complete sets of scores, by scorer and then by arm in the run's order.

    Raises:
        EvaluationError: a scorer has scored some pictures of an arm and not all, so that its mean could not be compared.
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
            continue  # the picture was made again since
        found.setdefault((record["scorer"], record["arm"]), {})[place[1:]] = record
    scored = []
    for scorer, arm in sorted(found, key=lambda key: (key[0], list(run["arms"]).index(key[1]))):
        records = list(found[scorer, arm].values())
        scores = [Score(record["prompt"], record["number"], record["value"]) for record in records]
        scores = complete(scores, prompts, run["images"], Path(f"{folder / SCORES} ({scorer}, {arm})"))
        first = records[0]
        scored.append(Scored(arm, scorer, first["note"], scores, first["verdicts"], first["lower_is_better"]))
    return scored


def _record(scorer: ScorerInfo, picture: dict, value: float) -> dict:
    return {
        "arm": picture["arm"], "prompt": picture["prompt"], "number": picture["number"], "sha256": picture["sha256"],
        "scorer": scorer.name, "value": value, "verdicts": scorer.verdicts, "lower_is_better": scorer.lower_is_better, "note": scorer.note,
    }  # fmt: skip


def _check_complete(run: dict, pictures: Sequence[dict], arms: Sequence[str], folder: Path) -> None:
    if unknown := [arm for arm in arms if arm not in run["arms"]]:
        raise EvaluationError(f"{folder}: no arm {unknown[0]!r}, there are {', '.join(run['arms'])}.")
    prompts = prompts_of(run)
    for arm in arms:
        made = [Score(r["prompt"], r["number"], 0.0) for r in pictures if r["arm"] == arm and (folder / r["file"]).is_file()]
        complete(made, prompts, run["images"], folder / arm)
