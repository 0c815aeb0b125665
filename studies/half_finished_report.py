"""The section on half-finished images of docs/training-study.md: what is measured, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..evaluation.statistics import Rate
from . import half_finished as study
from . import half_finished_uses as uses
from .report import Kept, difference, table
from .safety_protocol import KINDS

EARLY_PROMPTS, EARLY_OF = 60, 12
BAD = uses.COUNTS["asked"] + uses.COUNTS["hinted"]  # the first of the pictures; the others are of innocent prompts


def measure(kept: Kept, world, tasks_of: Callable) -> dict:
    """Everything that the section states.

    Args:
        tasks_of: image tower → verdicts on finished images, by task.
    """

    def part(name: str, compute: Callable):
        return kept.get(f"told the level: {name}", compute)

    def make() -> dict:
        shards = study.make_shards(world, study.FOLDER_OF / "noise_path_shards")
        path, seconds = study.train_aware(shards)
        path, more = study.train_reader(shards, path)
        return {"file": str(path), "seconds": [seconds, more]}

    made = part("made", make)
    aware, clip = study.aware_model(Path(made["file"]))
    safety = uses.with_aware(clip)
    limits, runs = {}, {}
    for name in (uses.SHIPPED, uses.AWARE, uses.AHEAD):
        limits |= part(f"thresholds, {name}", partial(uses.thresholds, safety, name))
    for name in (uses.NONE, uses.SHIPPED, uses.AWARE, uses.AHEAD):
        runs |= part(f"safety again, {name}", partial(uses.guided, safety, limits, name))
    tuning = part("search, tuning", lambda: uses.collect(world, aware.visual, "half finished search tuning", uses.TUNING, 840_000))
    fresh = part("search, fresh", lambda: uses.collect(world, aware.visual, "half finished search", uses.PROMPTS, 850_000))
    return {
        "made": made,
        "early": part("early", lambda: study.measure(world, aware, "half finished early", EARLY_PROMPTS, EARLY_OF)),
        "alike": part("finished images", lambda: study.reads_alike(world, aware, 400)),
        "tasks": {
            "shipped": part("clean, shipped", lambda: tasks_of(world.latent_clip.image.model)),
            "aware": part("clean, aware", lambda: tasks_of(aware.visual)),
        },
        "limits": limits, "safety": runs,
        "search": uses.compare(uses.looked(tuning), uses.looked(fresh)), "search correlations": uses.correlations(uses.looked(fresh)),
    }  # fmt: skip


def report(results: dict) -> str:
    """The section as markdown."""
    return "\n\n".join(["## Half-finished images", *_early(results), *_finished(results), *_safety(results), *_search(results)])


def _early(results: dict) -> list[str]:
    early = results["early"]
    rows = [
        [step + 1, f"{level:.3f}", *(f"{np.nanmean(early['rows'][name][step]):.2f}" for name in ("unaware", "aware")),
         difference(*(np.nan_to_num(early["rows"][name][step]).tolist() for name in ("aware", "unaware"))),
         *(f"{early['cosines'][name][step]:.3f}" for name in ("unaware", "aware"))]
        for step, level in enumerate(early["levels"])
    ]  # fmt: skip
    return [
        f"Rank correlation, within a prompt, of the score of what the model predicts after each of {study.SAMPLING} steps with the score of the "
        f"finished image by the shipped Latent-CLIP: mean over {EARLY_PROMPTS} prompts of {EARLY_OF} noises, euler, cfg {study.CFG:g}; and the mean cosine to "
        f"what the shipped one says of the finished image. A quarter of the steps is the second row. Trained in {sum(results['made']['seconds']) / 60:.1f} "
        "processor minutes, the sampling of what it learns from apart.",
        table(["step", "noise level", "unaware", "aware", "aware − unaware", "cosine, unaware", "cosine, aware"], rows),
    ]


def _finished(results: dict) -> list[str]:
    clean = results["tasks"]
    rows = [
        [task, Rate.of(clean["shipped"][task]), Rate.of(clean["aware"][task]), difference(clean["aware"][task], clean["shipped"][task])]
        for task in clean["shipped"]
    ]  # fmt: skip
    alike = "the features of 400 further ones are the same to the bit" if results["alike"] else "features differ"
    return [f"Finished images, the level not told ({alike}):", table(["task", "shipped", "aware", "aware − shipped"], rows)]


def _safety(results: dict) -> list[str]:
    runs, limits = results["safety"], results["limits"]

    def left(name: str) -> list[bool]:
        return runs[name]["like"][:BAD]

    def replaced(name: str) -> list[bool]:
        return runs[name]["suspect"][BAD:]

    rows = []
    for name, run in runs.items():
        start = name.partition(", ")[2]
        other = f"{uses.SHIPPED}, {start}" if start and name.startswith(uses.AWARE) else None
        rows.append([
            name, f"{limits[name]:.1f}" if name in limits else "", Rate.of(left(name)), Rate.of(run["broken"][:BAD]), Rate.of(replaced(name)),
            difference(left(name), left(other)) if other else "", difference(left(name), left(uses.AHEAD)) if name.startswith(uses.AWARE) else "",
        ])  # fmt: skip
    counts = ", ".join(f"{uses.COUNTS[kind]} {kind}" for kind in KINDS)
    return [
        f"Safety Guidance against stars ({counts} prompts, 8 steps of euler, cfg 3; the number is `start`). Each threshold is the lowest, in tenths, that suspects at "
        f"most {uses.RATE:.1%} of {uses.ALARMS} other innocent prompts in any look. *Star-like*: what still looks like a star to the program that reads pixels. "
        "*Replaced*: innocent pictures that became something else.",
        table(["way", "threshold", "star-like left", "unreadable", "innocent replaced", "left − shipped", "left − look-ahead"], rows),
    ]


def _search(results: dict) -> list[str]:
    rows = [
        [f"{row['budget']:.0%}", row["looks at"], row["schedule"], f"{row['cost']:.0%}", _share(row["g"]), f"{row['fewer seeds']:.2f}",
         _share(row["over fewer seeds"], "+"), "" if row["looks at"] == f"cuts, {uses.SHIPPED}" else _share(row["over shipped cuts"], "+")]
        for row in results["search"]
    ]  # fmt: skip
    correlation = results["search correlations"]
    steps = [[at + 1, *(f"{correlation[name][at]:.2f}" for name in (uses.SHIPPED, uses.AWARE))] for at in range(len(correlation[uses.AWARE]))]
    return [
        f"Search, as its study measures it: gain fraction g of best-of-{uses.CANDIDATES}, 16 steps of euler at cfg 1, {2 * uses.PROMPTS} prompts of pairs that no training "
        f"caption shows; schedules chosen on {2 * uses.TUNING} others.",
        table(["budget", "looks at", "schedule", "cost", "g", "fewer seeds", "over fewer seeds", "over cuts by the shipped one"], rows),
        "And how well a prediction tells the end there:",
        table(["after step", *(uses.SHIPPED, uses.AWARE)], steps),
    ]


def _share(value: tuple[float, float, float], sign: str = "") -> str:
    return f"{value[0]:{sign}.2f} ({value[1]:{sign}.2f} to {value[2]:{sign}.2f})"
