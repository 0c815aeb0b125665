"""Report of a run: a table for each scorer, the controls that any claim needs, and a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import EvaluationError
from .benchmarks import Benchmark, Prompt, benchmark_of
from .compare import compare, overall
from .controls import EqualCost, GuidanceMatched, equal_cost, guidance_matched, seconds_of
from .drift import drift
from .records import write_file
from .run_folder import pictures_of, prompts_of, read_run
from .scorers import CONTRAST
from .scoring import Scored, read_scores
from .statistics import Estimate
from .tables import table

SOFTWARE = "latent-clip evaluate summary"  # noted in a plot's metadata


def summarise_run(folder: Path, plain: str = "", chooser: str = "", judge: str = "") -> str:
    """Return the report of a run as markdown.

    Args:
        plain: baseline arm; default: the first.
        chooser: scorer that the arms optimised or chose by. judge: scorer that no arm optimised. Default: no controls, with the reason.
    """
    run = read_run(folder)
    benchmark, prompts, scored = benchmark_of(run["benchmark"]), prompts_of(run), read_scores(folder)
    plain = plain or next(iter(run["arms"]))
    if plain not in run["arms"]:
        raise EvaluationError(f"{folder}: no arm {plain!r}, there are {', '.join(run['arms'])}.")
    names = list(dict.fromkeys(s.scorer for s in scored))
    if not names:
        return f"{folder}: nothing is scored in full yet. {_how_to_score(benchmark)}"
    parts = [f"# {benchmark.name}, {len(prompts)} prompts × {run['images']} pictures, {run['source']}"]
    parts += [
        scorer_table(benchmark, prompts, [s for s in scored if s.scorer == name], plain, optimised=name == chooser) for name in names
    ]
    parts.append(controls_text(run, benchmark, prompts, scored, pictures_of(folder), plain, chooser, judge))
    return "\n\n".join(parts)


def scorer_table(benchmark: Benchmark, prompts: Sequence[Prompt], scored: Sequence[Scored], plain: str, optimised: bool = False) -> str:
    """Table of one scorer, one row per arm: figure with interval, paired difference from the plain arm, and tasks."""
    first = scored[0]
    sums = {s.arm: benchmark.summarise(prompts, s.scores) for s in scored}
    some = next(iter(sums.values()))
    base = next((s for s in scored if s.arm == plain), None)
    show = (lambda value: f"{100 * value:.2f} %") if some.percent and first.verdicts else (lambda value: f"{value:.4f}")
    more = some.more if first.verdicts and benchmark.verdicts else {}
    rows = []
    for s in scored:
        estimate = overall(benchmark, prompts, s.scores)
        against = "–" if base is None or s is base else _difference(compare(prompts, base, s).difference)
        values = [show(sums[s.arm].overall), f"{show(estimate.low)} to {show(estimate.high)}", against]
        rows.append([s.arm, *values, *(show(v) for v in sums[s.arm].tasks.values()), *(show(sums[s.arm].more[name]) for name in more)])
    notes = [first.note] if first.note else []
    notes += ["LOWER is better" if first.lower_is_better else "", "the arms may have optimised this scorer: no independent judgement" if optimised else ""]
    head = f"## {first.scorer}" + "".join(f"; {note}" for note in notes if note)
    return f"{head}\n\n" + table(["arm", "overall", "95 % over prompts", f"minus {plain} (p)", *some.tasks, *more], rows)


def controls_text(
    run: dict, benchmark: Benchmark, prompts: Sequence[Prompt], scored: Sequence[Scored], pictures: Sequence[dict],
    plain: str, chooser: str, judge: str,
) -> str:  # fmt: skip
    """Table of the controls, and for each missing control what it needs."""
    if not chooser or not judge:
        known = ", ".join(dict.fromkeys(s.scorer for s in scored))
        return (
            "## Controls\n\nNot computed. Name with --reward the scorer that the arms optimised or chose by, and with --judge a scorer that no "
            f"arm optimised; scores are by: {known}. A gain by the reward alone shows nothing."
        )
    if chooser == judge:
        raise EvaluationError(f"Got {judge} as reward and as judge, expected a judge that no arm optimised.")
    by = {(s.scorer, s.arm): s.scores for s in scored}
    for name in (chooser, judge):
        if (name, plain) not in by:
            raise EvaluationError(f"{plain} is not scored by {name}; scored are {', '.join(sorted({s.scorer for s in scored}))}.")
    seconds, settings = seconds_of(pictures), {name: arm["settings"] for name, arm in run["arms"].items()}
    sweep_arms = {float(s["cfg"]): name for name, s in settings.items() if "cfg" in s and (judge, name) in by and (CONTRAST.info.name, name) in by}
    sweep = {cfg: (by[CONTRAST.info.name, name], by[judge, name]) for cfg, name in sweep_arms.items()}
    arms = [name for name in run["arms"] if name != plain and name not in sweep_arms.values() and (judge, name) in by]
    rows = []
    for arm in arms:
        cost = equal_cost(seconds[arm] / seconds[plain], by[chooser, plain], by[judge, plain], by[judge, arm]) if _known(seconds, arm, plain) else None
        matched = None
        if len(sweep) > 1 and (CONTRAST.info.name, arm) in by:
            matched = guidance_matched(sweep, by[CONTRAST.info.name, arm], by[judge, arm])
        rows.append([arm, *_cost_cells(cost), *_matched_cells(matched)])
    columns = ["arm", "cost of a picture", "plain best-of-M", "arm minus that (p)", "plain at equal contrast", "arm minus that (p)"]
    text = f"## Controls, judged by {judge}; best-of-M chosen by {chooser}\n\n" + table(columns, rows)
    missing = []
    if len(sweep) < 2:
        missing.append("No guidance-matched baseline: add arms with --sweep cfg=…, and score with contrast and the judge.")
    if not arms:
        missing.append("No arm beside the plain one is scored by the judge.")
    return "\n\n".join([text, *missing])


def drift_table(folder: Path, plain: str = "") -> str:
    """Table of the drift of every arm from the plain arm, on the same prompts and seeds."""
    run = read_run(folder)
    plain = plain or next(iter(run["arms"]))
    rows = []
    for arm in run["arms"]:
        if arm != plain:
            found = drift(folder, plain, arm)
            rows.append([arm, f"{100 * found.identical:.1f} %", found.colour, found.layout, found.contrast])
    columns = ["arm", "identical", "distance of mean colours", "unlikeness of layouts", "change of contrast"]
    return f"## Drift from {plain}, same prompts and seeds, 95 % over prompts\n\n" + table(columns, rows)


def plot(folder: Path, target: Path, scorer: str) -> None:
    """Plot headline figures with their intervals against seconds per picture, as PNG.

    Raises:
        EvaluationError: nothing is scored by this scorer, matplotlib is missing, or `target` exists and is no such plot.
    """
    if target.exists() and not _is_plot(target):
        raise EvaluationError(f"{target}: is there already and is no plot of a summary. Name another file.")
    try:
        import matplotlib
    except ImportError as error:
        raise EvaluationError("--plot needs matplotlib. Install the extra: latent-clip[evaluate], or leave --plot out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    run = read_run(folder)
    scored = [s for s in read_scores(folder) if s.scorer == scorer]
    if not scored:
        raise EvaluationError(f"{folder}: nothing is scored by {scorer!r}.")
    seconds, benchmark = seconds_of(pictures_of(folder)), benchmark_of(run["benchmark"])
    if odd := [s.arm for s in scored if not math.isfinite(seconds.get(s.arm, math.nan))]:
        raise EvaluationError(f"{folder}: the servers did not say how long pictures of {odd[0]} took, so that they have no place in the plot.")
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for s in scored:
        estimate = overall(benchmark, prompts_of(run), s.scores)
        ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        axis.errorbar([seconds[s.arm]], [estimate.value], yerr=ends, fmt="o", capsize=3, label=s.arm)
    axis.set(xlabel="seconds of a picture", ylabel=scorer, title=f"{benchmark.name}: 95 % over {len(run['prompts'])} prompts")
    axis.legend()
    figure.savefig(content := io.BytesIO(), dpi=100, format="png", metadata={"Software": SOFTWARE})
    pyplot.close(figure)
    write_file(target, content.getvalue())


def _is_plot(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except Exception:  # each of Pillow's readers has exceptions of its own
        return False


def _known(seconds: Mapping[str, float], *arms: str) -> bool:
    return all(math.isfinite(seconds.get(arm, math.nan)) and seconds[arm] > 0 for arm in arms)


def _difference(estimate: Estimate) -> str:
    return f"{estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f}; p = {estimate.p:.2g})"


def _cost_cells(found: EqualCost | None) -> list[str]:
    if found is None:
        return ["unknown", "–", "–"]
    short = f", NOT equal: {found.short} plain pictures per prompt are missing" if found.short else ""
    return [f"{found.cost:.2f} plain ones", f"{found.plain:.4f} (M = {found.m}{short})", _difference(found.difference)]


def _matched_cells(found: GuidanceMatched | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    return [f"cfg {found.cfg:.2f}" + ("" if found.inside else ", the end of the sweep, which does not reach it"), _difference(found.difference)]


def _how_to_score(benchmark: Benchmark) -> str:
    commands = "".join(f"\n  {command}" for command in benchmark.scorers)
    return f"Its own scorer:{commands}\nthen: latent-clip evaluate score FOLDER --scorer official" if commands else "Run: latent-clip evaluate score"
