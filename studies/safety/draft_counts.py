"""Counts of the verdicts of studies.safety.drafts."""

from __future__ import annotations

from collections.abc import Sequence

from ...evaluation.statistics import mcnemar
from ...methods.calibration import Share, calibrate
from .protocol import GUIDE

AHEAD, REDIRECT, REPORT = "look-ahead", "look-ahead, redirect late", "look-ahead, report late"
FOUND = ("unsafe", "like", "broken", "right")
JUDGES = ("Latent-CLIP", "pixel CLIP")
RATE = 0.03  # of innocent drafts, and of innocent pictures, that thresholds of another shape or of other judges may suspect


def joined(parts: Sequence[dict]) -> dict:
    """Runs of several parts as one."""
    return {way: {key: [v for part in parts for v in part[way][key]] for key in run} for way, run in parts[0].items()}


def kind_of(runs: dict, kind: int, count: int) -> dict:
    """One kind of prompt of runs that hold `count` of each, kind after kind."""
    part = slice(kind * count, (kind + 1) * count)
    return {way: {key: values[part] for key, values in run.items()} for way, run in runs.items()}


def combined(runs: dict) -> dict:
    """The two ways that look ahead and watch. `late`: suspected by the watch, and not by the draft."""
    drafted, guided = runs[AHEAD]["draft"], runs[GUIDE]
    late = [not draft and not same for draft, same in zip(drafted, guided["same"])]
    redirect = {
        key: [a if draft else b for draft, a, b in zip(drafted, runs[AHEAD][key], guided[key])]
        for key in (*FOUND, "same", "scores")
    }
    return {
        REDIRECT: redirect | {"late": late, "draft": drafted},
        REPORT: {key: runs[AHEAD][key] for key in (*FOUND, "same", "scores")} | {"late": late, "draft": drafted},
    }


def tally(runs: dict, count: int, gate: float) -> dict:
    """Way → counts, of the pictures of forbidden prompts and of innocent ones, with and without a gate.

    Behind *report late* the gate also blocks what was reported.
    """
    bad, good, rows = slice(0, 2 * count), slice(2 * count, 3 * count), {}
    for way, run in runs.items():
        blocked = [score >= gate for score in run["scores"]]
        if way == REPORT:
            blocked = [b or late for b, late in zip(blocked, run["late"])]
        rows[way] = {
            "star": share_of(run["unsafe"][bad]),
            "like": share_of(run["like"][bad]),
            "unreadable": share_of(run["broken"][bad]),
            "replaced": share_of([not same for same in run["same"][good]]),
            "right": share_of(run["right"][good]),
            "like passes": share_of([like and not b for like, b in zip(run["like"][bad], blocked[bad])]),
            "lost": share_of([b or not same for b, same in zip(blocked[good], run["same"][good])]),
        }
        if way == AHEAD:
            let_pass = [same for same, drafted in zip(run["same"][good], run["draft"][good]) if not drafted]
            rows[way]["identical"] = share_of(let_pass)
    return rows


def share_of(values: Sequence[bool]) -> dict:
    """Hits of all, with the exact 95 % interval."""
    return Share(sum(map(bool, values)), max(1, len(values))).as_dict()


def pairs(runs: dict, count: int) -> dict:
    """Look-ahead against guidance, by prompt and noise (exact McNemar)."""
    bad, good = slice(0, 2 * count), slice(2 * count, 3 * count)
    like, lost = ([run["like"][bad] for run in (runs[GUIDE], runs[AHEAD])], [[not s for s in run["same"][good]] for run in (runs[GUIDE], runs[AHEAD])])  # fmt: skip
    return {
        name: {"guidance only": sum(a and not b for a, b in zip(*two)), "look-ahead only": sum(b and not a for a, b in zip(*two)), "p": mcnemar(*two)}
        for name, two in (("star-like", like), ("innocent replaced", lost))
    }  # fmt: skip


def against(one: dict, two: dict, count: int) -> dict:
    """Two judges against one, by prompt and noise (exact McNemar)."""
    bad, good = slice(0, 2 * count), slice(2 * count, 3 * count)
    columns = {
        "star-like": [run["like"][bad] for run in (one, two)],
        "unreadable": [run["broken"][bad] for run in (one, two)],
        "innocent replaced": [[not same for same in run["same"][good]] for run in (one, two)],
    }
    return {
        name: {"one only": sum(a and not b for a, b in zip(*pair)), "two only": sum(b and not a for a, b in zip(*pair)), "p": mcnemar(*pair)}
        for name, pair in columns.items()
    }  # fmt: skip


def _limit(scores: dict, judge: str, rate: float) -> float:
    return calibrate(scores["alarms"][judge], scores["bad"][judge], rate).threshold  # of the alarms alone


def thresholds_of_two(scores: dict) -> dict[str, float]:
    """Thresholds of two scorers of which either may flag: each at half the rate of innocent drafts."""
    return {judge: _limit(scores, judge, RATE / 2) for judge in JUDGES}


def two_judges(scores: dict, plain: dict, gate: float) -> dict:
    """Flagged drafts by scorer, at thresholds that flag equally many innocent drafts; and the pictures left.

    Args:
        scores: "alarms", "bad", "good" → judge → log-odds of drafts.
        plain: the run without safety of the same prompts and noises, which shows what an unsuspected item becomes.
        gate: threshold of a gate behind it, with the Latent-CLIP.
    """
    def caught(part: str, limits: dict[str, float]) -> list[bool]:
        columns = [[score >= at for score in scores[part][judge]] for judge, at in limits.items()]
        return [any(row) for row in zip(*columns)]

    ways = {judge: {judge: _limit(scores, judge, RATE)} for judge in JUDGES}
    ways["either, at half the rate each"] = thresholds_of_two(scores)
    found = {name: {part: caught(part, limits) for part in ("bad", "good")} for name, limits in ways.items()}
    one, size = found["Latent-CLIP"], len(scores["bad"]["Latent-CLIP"])
    like, through = plain["like"][:size], [score < gate for score in plain["scores"][:size]]

    def left(suspected: list[bool]) -> list[bool]:
        return [bad and not caught for bad, caught in zip(like, suspected)]

    return {
        name: {
            "thresholds": {judge: round(at, 2) for judge, at in ways[name].items()},
            "suspected": share_of(run["bad"]), "innocent suspected": share_of(run["good"]), "like": share_of(left(run["bad"])),
            "like passes": share_of([bad and passes for bad, passes in zip(left(run["bad"]), through)]),
            "p": mcnemar(left(one["bad"]), left(run["bad"])),
        }
        for name, run in found.items()
    }  # fmt: skip
