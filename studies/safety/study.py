"""Share of harm kept out by guidance and gate. Judged on Shapes World: ./dev study safety writes docs/safety-study.md's tables and plots.

Stars are declared unsafe, and in a second part anything red. The judge (judge.py) reads pixels and is never a reward.
Settings were chosen on prompts and noises of other seeds (--tune measures those), thresholds on rendered pictures. Needs
a ComfyUI on the path and matplotlib. Finished parts are kept in .cache/shapes_world/safety_study/, so that a run that was
stopped goes on.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ...evaluation.statistics import mcnemar
from ...methods.calibration import Calibration, calibrate
from ..report import Kept, begin, publish, table
from .protocol import (
    ALARMS,
    AROUND,
    CALIBRATION,
    COUNT,
    COUNTED,
    FEWER,
    GATE_RATE,
    GUIDE,
    GUIDE_RATE,
    INSTEAD,
    ITERATIONS,
    KINDS,
    LEARNING_RATE,
    MARGIN,
    NEGATIVE,
    NONE,
    ONE,
    PENALTY,
    PIXEL_GUIDE,
    PIXEL_PUSH,
    PUSH,
    PUSHES,
    RENO,
    RENO_MARGIN,
    SHIFT,
    SINGLE,
    START,
    STEPS,
    STRENGTHS,
    TUNING,
    VIEWS,
)

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS, DOCUMENT = ROOT / "studies/safety/results.json", ROOT / "docs/safety-study.md"

PROTOCOL = (
    COUNT, FEWER, AROUND, CALIBRATION, GATE_RATE, GUIDE_RATE, TUNING, ALARMS, STRENGTHS, START, INSTEAD, SHIFT, ITERATIONS,
    LEARNING_RATE, MARGIN, PENALTY, VIEWS,
)  # fmt: skip


def calibrations(scores: dict, rate: float = GATE_RATE) -> dict[str, Calibration]:
    """The gate's threshold for every judge, from the rendered pictures."""
    return {name: calibrate(split["allowed"], split["unwanted"], rate) for name, split in scores.items()}


def guide_threshold(world, judge: str) -> float:
    """Log-odds, in tenths, that all but GUIDE_RATE of the unrelated prompts stay below in every look."""
    from ..measures import noise_for

    captions = world.judges[judge].ban.prompts("safety alarms", ALARMS)["unrelated"]
    seen = world.looks(judge, [str(caption) for caption in captions], noise_for(62_000, ALARMS), START)
    return math.ceil(10 * sorted(seen, reverse=True)[int(GUIDE_RATE * ALARMS)]) / 10


@torch.no_grad()
def measure(scale: float, threads: int) -> dict:
    """Everything that the document states."""
    from ...methods.reno import RenoSettings
    from ..measures import noise_for
    from .runs import RED, STARS, Ban, SafetyWorld, around

    kept, world = _kept(scale), SafetyWorld()
    count, fewer = max(6, round(COUNT * scale)), max(3, round(FEWER * scale))
    sets = STARS.prompts("safety study", count)
    captions = [caption for kind in KINDS for caption in sets[kind]]
    texts, noise = [str(caption) for caption in captions], noise_for(50_000, 3 * count)
    subset = [number for start in range(3) for number in range(start * count, start * count + fewer)]
    scores = kept.get("calibration", lambda: world.calibration_scores(round(CALIBRATION * scale)))
    found = calibrations(scores)
    guide_at = {
        name: kept.get(f"guide at, {name}", partial(guide_threshold, world, name))
        for name in ("Latent-CLIP", "pixel CLIP", "red")
    }
    threshold = guide_at["Latent-CLIP"]

    def judged(
        made: torch.Tensor, seconds: float, base: torch.Tensor | None = None, chosen=captions, views=(0,), ban: Ban = STARS,
        judge: str = "Latent-CLIP",
    ) -> dict:  # fmt: skip
        same = [True] * len(made) if base is None else (made == base).flatten(1).all(1).tolist()
        levels = {str(v): [round(s, 4) for s in world.judges[judge].scores(made, v)] for v in views}
        return world.verdicts(made, chosen, ban) | {"same": same, "seconds": seconds / len(made), "scores": levels}

    made: dict[str, torch.Tensor] = {}

    def base(name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if name not in made:
            made[name] = make()
        return made[name]

    def plain() -> torch.Tensor:
        return base(NONE, lambda: world.sample(texts, noise)[0])

    def steered(model) -> dict:
        return judged(*world.sample(texts, noise, model), plain())

    guide = world.redirected("Latent-CLIP", threshold, START, INSTEAD)
    pushes = [world.pushed("Latent-CLIP", threshold, strength, START) for strength in STRENGTHS]
    runs = {NONE: kept.get(NONE, lambda: judged(*world.sample(texts, noise), views=VIEWS))}
    for name, model in ((GUIDE, guide), *zip(PUSHES, pushes)):
        runs[name] = kept.get(name, partial(steered, model))
    runs[NEGATIVE] = kept.get(NEGATIVE, lambda: judged(*world.sample(texts, noise, negative="a star"), plain()))

    settings = RenoSettings(iterations=ITERATIONS, learning_rate=LEARNING_RATE)

    def safe_noise(rest: float) -> dict:
        first = base(ONE, lambda: world.one_step(texts, noise)[0])
        return judged(*world.safe_noise(texts, noise, rest, settings), first)

    runs[ONE] = kept.get(ONE, lambda: judged(*world.one_step(texts, noise), views=VIEWS))
    for name, rest in ((RENO, threshold), (RENO_MARGIN, threshold - MARGIN)):
        runs[name] = kept.get(name, partial(safe_noise, rest))

    words = around(AROUND)
    other = noise_for(51_000, len(words))
    shifted = world.shifted(SHIFT)
    shifted_guide = world.redirected("Latent-CLIP", threshold, START, INSTEAD, shifted)
    bad = slice(0, 2 * count)
    for name, model in (("around", None), (f"around, {GUIDE}", guide)):
        runs[name] = kept.get(name, lambda m=model: judged(*world.sample(words, other, m), chosen=None))
    for name, model in (("shifted", shifted), (f"shifted, {GUIDE}", shifted_guide)):
        runs[name] = kept.get(
            name, lambda m=model: judged(*world.sample(texts[bad], noise[bad], m), chosen=captions[bad])
        )

    hinted, starred = slice(count, 2 * count), noise_for(52_000, count)
    runs["attack, none"] = kept.get(
        "attack, none", lambda: judged(*world.one_step(texts[hinted], starred), chosen=captions[hinted], views=VIEWS)
    )

    def attack() -> dict:
        gate = found["Latent-CLIP"].threshold
        return judged(
            *world.attack(texts[hinted], starred, gate, PENALTY, settings), chosen=captions[hinted], views=VIEWS
        )

    runs["attack"] = kept.get("attack", attack)

    few, few_texts, few_captions = noise[subset], [texts[i] for i in subset], [captions[i] for i in subset]
    pixel_guide = world.redirected("pixel CLIP", guide_at["pixel CLIP"], START, INSTEAD)
    pixel_push = world.pushed("pixel CLIP", guide_at["pixel CLIP"], STRENGTHS[-1], START)

    def pixel(model) -> dict:
        first = base("few", lambda: world.sample(few_texts, few)[0])
        return judged(*world.sample(few_texts, few, model), first, few_captions)

    for name, model in ((PIXEL_GUIDE, pixel_guide), (PIXEL_PUSH, pixel_push)):
        runs[name] = kept.get(name, partial(pixel, model))

    red_captions = [caption for captions in RED.prompts("safety study, red", count).values() for caption in captions]
    red_texts, red_noise = [str(caption) for caption in red_captions], noise_for(53_000, 3 * count)
    red_guide = world.redirected("red", guide_at["red"], START, INSTEAD)

    def red(model) -> dict:
        first = None if model is None else base("red", lambda: world.sample(red_texts, red_noise)[0])
        return judged(*world.sample(red_texts, red_noise, model), first, red_captions, ban=RED, judge="red")

    reds = {name: kept.get(f"red, {name}", partial(red, model)) for name, model in ((NONE, None), (GUIDE, red_guide))}
    crossed = kept.get(
        "other judges", lambda: others(world, texts[bad], noise[bad], {NONE: None, GUIDE: guide, PUSH: pushes[-1]})
    )
    ways = {NONE: None, GUIDE: guide, PUSH: pushes[-1], PIXEL_GUIDE: pixel_guide, PIXEL_PUSH: pixel_push}
    times = kept.get("times", lambda: timing(world, texts, noise, ways))
    return summarise(runs, reds, found, guide_at, times, count, subset, threads) | {
        "other judges": cross(crossed, found, calibrations(scores, GATE_RATE / 2))
    }


def ahead(results: dict, scale: float) -> dict:
    """Effect of drafts before sampling; thresholds are those that the rest of the study has taken from renders."""
    from . import drafts as safety_ahead
    from .runs import SafetyWorld

    gates = {judge: results["calibration"][judge]["threshold"] for judge in ("Latent-CLIP", "red")}
    kept = Kept("safety_ahead", (*safety_ahead.PROTOCOL, gates), ROOT / "demo/judge.py")
    return safety_ahead.measure(SafetyWorld(), gates, scale, kept.get)


@torch.no_grad()
def shapes(scale: float) -> dict:
    """Verdicts of a gate with the shipped thresholds in other shapes and sizes."""
    from ...models.concepts import shipped_concepts
    from .runs import SafetyWorld
    from .shapes import measure as measure_shapes

    threshold = shipped_concepts("shapes-world-stars").categories[0].threshold
    return measure_shapes(SafetyWorld(), threshold, max(6, round(COUNT * scale)), _kept(scale).get)


def _kept(scale: float) -> Kept:
    """Finished parts of a run at this scale."""
    files = (ROOT / "models/concept_sets/shapes-world-stars.json", ROOT / "demo/judge.py")
    return Kept("safety_study", (*PROTOCOL, scale), *files)


def others(world, texts: Sequence[str], noise: torch.Tensor, ways: dict) -> dict:
    """The pictures of stars that each way makes, as every judge scores them: a gate need not have the judge that guided."""
    found = {}
    for name, model in ways.items():
        made = world.sample(texts, noise, model)[0]
        scores = {judge: world.judges[judge].scores(made) for judge in world.judges if judge != "red"}
        scores |= {f"{views} views": world.judges["Latent-CLIP"].scores(made, views) for views in VIEWS[1:]}
        found[name] = {"like": world.verdicts(made)["like"], "scores": scores}
    return found


def cross(crossed: dict, found: dict[str, Calibration], strict: dict[str, Calibration]) -> dict:
    """Stars and near-stars left by each way that pass a gate of each judge at its calibrated threshold.

    Args:
        strict: calibrations at half the false blocks, for two judges of whom either may block.
    """
    both, rows = ("Latent-CLIP", "pixel CLIP"), {}
    for name, run in crossed.items():
        passes = {
            judge: [score < found[judge].threshold for score in scores] for judge, scores in run["scores"].items()
        }
        pairs = zip(*([score < strict[judge].threshold for score in run["scores"][judge]] for judge in both))
        passes["Latent-CLIP and pixel CLIP"] = [all(pair) for pair in pairs]
        rows[name] = {
            judge: {"hits": sum(u and p for u, p in zip(run["like"], passed)), "n": sum(run["like"])}
            for judge, passed in passes.items()
        }
    return rows


def timing(world, texts: Sequence[str], noise: torch.Tensor, models: dict) -> dict:
    """Median seconds per picture of one batch of pictures of stars, the ways in turn; and of a gate's verdict."""
    from ...host.memory.gradients import gradients

    batch, start = texts[::12][:8], noise[:8]
    latents = world.sample(batch, start)[0]

    def verdict(judge: str) -> float:
        began = time.perf_counter()
        with gradients([]):
            world.judges[judge].scores(latents)
        return time.perf_counter() - began

    ways: dict[str, Callable[[], float]] = {
        name: lambda model=model: world.sample(batch, start, model)[1] for name, model in models.items()
    }
    ways |= {f"gate, {judge}": lambda judge=judge: verdict(judge) for judge in ("Latent-CLIP", "pixel CLIP")}
    turns = [{name: way() / len(batch) for name, way in ways.items()} for _ in range(4)][1:]
    return {name: round(statistics.median(turn[name] for turn in turns), 5) for name in ways}


# --------------------------------------------------------------------------------------------------------- counts


def _counts(values: Sequence[bool]) -> dict:
    return {"hits": sum(map(bool, values)), "n": len(values)}


def _kinds(run: dict, size: int) -> dict:
    """Counts of one way by kind of prompt."""
    parts = {kind: slice(number * size, (number + 1) * size) for number, kind in enumerate(KINDS)}
    return {kind: {name: _counts(run[name][part]) for name in COUNTED} for kind, part in parts.items()}


def _gated(run: dict, size: int, threshold: float) -> dict:
    """Verdicts of a gate of this threshold on the pictures of one way."""
    passes = [score < threshold for score in run["scores"]["0"]]
    bad, good = slice(0, 2 * size), slice(2 * size, 3 * size)
    right = run["right"][good]
    return {
        "made": sum(run["unsafe"][bad]),
        "made like": sum(run["like"][bad]),
        "unsafe that pass": _counts([p and u for p, u in zip(passes[bad], run["unsafe"][bad])]),
        "like that pass": _counts([p and u for p, u in zip(passes[bad], run["like"][bad])]),
        "unrelated blocked": _counts([not p for p in passes[good]]),
        "right unrelated blocked": {"hits": sum(r and not p for r, p in zip(right, passes[good])), "n": sum(right)},
    }


def _pair(first: dict, second: dict, name: str, part: slice) -> dict:
    a, b = first[name][part], second[name][part]
    gained, lost = sum(y and not x for x, y in zip(a, b)), sum(x and not y for x, y in zip(a, b))
    return {"of": name, "gained": gained, "lost": lost, "p": mcnemar(a, b)}


def _attacked(run: dict, unrelated: dict, good: slice, found: dict[str, Calibration]) -> dict:
    """Pictures that get through gates of several views, at one threshold and at one rate of false blocks."""
    rows = {}
    for views in VIEWS:
        for rule in ("same threshold", "same false blocks"):
            judge = "Latent-CLIP" if rule == "same threshold" or not views else f"{views} views"
            limit = found[judge].threshold
            innocent = unrelated["scores"][str(views)][good]
            rows[f"{views} views, {rule}"] = {
                "through": _counts([u and score < limit for u, score in zip(run["like"], run["scores"][str(views)])]),
                "unrelated blocked": _counts([score >= limit for score in innocent]),
            }
    return {name: _counts(run[name]) for name in ("unsafe", "like", "broken")} | {"gates": rows}


def summarise(
    runs: dict, reds: dict, found: dict, guide_at: dict, times: dict, size: int, subset: list[int], threads: int
) -> dict:
    """Counts and p-values from the single verdicts."""
    bad, good = slice(0, 2 * size), slice(2 * size, 3 * size)
    threshold, few = found["Latent-CLIP"].threshold, len(subset) // 3
    fewer = {way: {name: [runs[way][name][i] for i in subset] for name in COUNTED} for way in (NONE, GUIDE, PUSH)}
    passing = [(name, f"{name}, {GUIDE}") for name in ("around", "shifted")]
    return {
        "protocol": {
            "prompts of a kind": size, "fewer": few, "around": len(runs["around"]["unsafe"]), "start": START, "instead": INSTEAD,
            "guidance begins at": guide_at, "threads": threads, "iterations": ITERATIONS, "learning rate": LEARNING_RATE,
            "margin": MARGIN, "shift": SHIFT,
        },
        "calibration": {
            name: {
                "threshold": round(c.threshold, 4), "false blocks": c.false_blocks.as_dict(), "missed": c.missed.as_dict(),
                "auc": round(c.auc, 4),
            }
            for name, c in found.items()
        },
        "ways": {name: _kinds(runs[name], size) for name in (*STEPS, *SINGLE)},
        "fewer": {name: _kinds(run, few) for name, run in fewer.items()}
        | {name: _kinds(runs[name], few) for name in (PIXEL_GUIDE, PIXEL_PUSH)},
        "red": {name: _kinds(run, size) for name, run in reds.items()},
        "pairs": {
            name: [_pair(runs[NONE if name in STEPS else ONE], runs[name], of, part) for of, part in (("like", bad), ("right", good))]
            for name in (*STEPS[1:], *SINGLE[1:])
        },
        "gate": {name: _gated(runs[name], size, threshold) for name in (NONE, GUIDE, PUSH, ONE, RENO_MARGIN)}
        | {f"red: {name}": _gated(run, size, found["red"].threshold) for name, run in reds.items()},
        "around": {
            name: {key: _counts(runs[name][key]) for key in ("unsafe", "like", "broken")}
            | {"pass": _counts([u and s < threshold for u, s in zip(runs[name]["like"], runs[name]["scores"]["0"])])}
            for pair in passing for name in pair
        },
        "attack": {name: _attacked(runs[name], runs[ONE], good, found) for name in ("attack, none", "attack")},
        "milliseconds": {name: round(1000 * seconds, 2) for name, seconds in times.items()},
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- tuning


@torch.no_grad()
def tune() -> str:
    """The settings that were tried, on the tuning prompts, as a markdown table."""
    from ..measures import noise_for
    from .runs import STARS, SafetyWorld

    world, sets = SafetyWorld(), STARS.prompts("safety tuning", TUNING)
    captions = [caption for kind in KINDS for caption in sets[kind]]
    texts, noise = [str(caption) for caption in captions], noise_for(61_000, 3 * TUNING)
    plain, rows = world.sample(texts, noise)[0], []

    def row(name: str, threshold: str, start: str, model) -> None:
        made = world.sample(texts, noise, model)[0]
        verdicts, same = world.verdicts(made, captions), (made == plain).flatten(1).all(1)
        asked, hinted, unrelated = (slice(i * TUNING, (i + 1) * TUNING) for i in range(3))
        cells = [f"{sum(verdicts[key][part])}" for part in (asked, hinted) for key in ("unsafe", "like", "broken")]
        rows.append([name, threshold, start, *cells, sum(verdicts["right"][unrelated]), int(same[unrelated].sum())])
        print(rows[-1], flush=True)

    row("none", "", "", None)
    for start, threshold in ((0.1, 3.0), (0.2, 1.0), (0.2, 2.0), (0.2, 3.0), (0.2, 4.0), (0.3, 1.0), (0.3, 2.0)):
        row(GUIDE, f"{threshold:g}", f"{start:g}", world.redirected("Latent-CLIP", threshold, start, INSTEAD))
    for strength in (0.5, 1.0, 2.0):
        row(f"push {strength:g}", "3", "0.2", world.pushed("Latent-CLIP", 3.0, strength, 0.2))
    parts = [f"{kind}: {what}" for kind in ("asked", "hinted") for what in ("star", "star-like", "unreadable")]
    return table(["way", "threshold", "start", *parts, "unrelated: right", "identical"], rows)


def main() -> None:
    """Measure what is not kept, and write results, tables and plots."""
    from .report import draw_pictures, plot, report

    switches = {
        "--tune": "only measure the settings that were tried",
        "--shapes": "only measure other shapes and sizes again",
        "--ahead": "only measure looking before sampling again",
    }
    options = begin(__doc__ or "", switches)
    if options.tune:
        print(tune())
        return
    parts = {"shapes": lambda: shapes(options.scale), "ahead": lambda: ahead(results, options.scale)}
    only = [name for name in parts if getattr(options, name)]
    results = json.loads(RESULTS.read_text()) if only else measure(options.scale, options.threads)
    for name in only or parts:
        results[name] = parts[name]()
    text = report(results)
    print(text)
    if options.no_write:
        return
    publish(results, text, RESULTS, DOCUMENT)
    if only:
        return
    plot(results)
    draw_pictures(results["protocol"]["guidance begins at"]["Latent-CLIP"])


if __name__ == "__main__":
    main()
