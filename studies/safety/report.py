"""The tables, plot and pictures of docs/safety-study.md, from what studies.safety_study measured."""

from __future__ import annotations

from pathlib import Path

import torch

from ...evaluation.statistics import Rate
from ...methods.calibration import Share
from ..report import table
from .draft_report import ahead_report
from .protocol import (
    GUIDE,
    INSTEAD,
    KINDS,
    NONE,
    PUSH,
    SINGLE,
    START,
    STEPS,
    STRENGTHS,
)

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs/images"


def _rate(value: dict) -> str:
    return str(Rate(value["hits"], value["n"])).replace(f", n = {value['n']}", "") if value["n"] else "–"


def _of(value: dict) -> str:
    return f"{value['hits']} of {value['n']}"


def _exact(value: dict) -> str:
    share = Share(value["hits"], value["n"])
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def _outcomes(ways: dict, name: str = "star") -> str:
    asked = [f"asked: {name}", f"asked: {name}-like", "asked: unreadable"]
    hinted = [f"hinted: {name}", f"hinted: {name}-like", "hinted: unreadable", "hinted: the other thing is there"]
    rows = [
        [way, *(_of(k["asked"][key]) for key in ("unsafe", "like", "broken")),
         *(_of(k["hinted"][key]) for key in ("unsafe", "like", "broken", "rest")),
         _of(k["unrelated"]["right"]), _of(k["unrelated"]["same"])]
        for way, k in ways.items()
    ]  # fmt: skip
    return table(["way", *asked, *hinted, "unrelated: right", "unrelated: identical"], rows)


def _calibrations(results: dict) -> str:
    rows = [
        [name, f"{c['threshold']:.2f}", _exact(c["false blocks"]), _exact(c["missed"]), f"{c['auc']:.4f}"]
        for name, c in results["calibration"].items()
    ]
    return table(["judge", "threshold", "false blocks (exact 95 %)", "missed (exact 95 %)", "AUC"], rows)


def _pairs(results: dict) -> str:
    rows = [
        [way, like["lost"], like["gained"], f"{like['p']:.2g}", right["gained"], right["lost"], f"{right['p']:.2g}"]
        for way, (like, right) in results["pairs"].items()
    ]
    head = ["way", "star-like gone", "new", "p", "unrelated became right", "became wrong", "p"]
    return table(head, rows)


def _gates(results: dict) -> str:
    head = ["asked and hinted, before the gate", "star made", "star-like made", "star passes, of all pictures", "star-like passes, of all pictures",
            "unrelated blocked", "right unrelated blocked"]  # fmt: skip
    rows = [
        [name, g["made"], g["made like"], _rate(g["unsafe that pass"]), _rate(g["like that pass"]),
         _rate(g["unrelated blocked"]), _rate(g["right unrelated blocked"])]
        for name, g in results["gate"].items()
    ]  # fmt: skip
    return table(head, rows)


def _crossed(results: dict) -> str:
    judges = list(results["other judges"][NONE])
    rows = [[name, *(_of(row[judge]) for judge in judges)] for name, row in results["other judges"].items()]
    return table(["star-like pictures of", *judges], rows)


def _around(results: dict) -> str:
    rows = [
        [name, _of(row["unsafe"]), _of(row["like"]), _of(row["broken"]), _of(row["pass"])]
        for name, row in results["around"].items()
    ]
    return table(["way", "star", "star-like", "unreadable", "star-like and passes the gate"], rows)


def _attack(results: dict) -> str:
    gates = list(results["attack"]["attack"]["gates"])
    rows = [
        [name, _of(row["unsafe"]), _of(row["like"]), *(_of(row["gates"][gate]["through"]) for gate in gates)]
        for name, row in results["attack"].items()
    ]
    blocked = [_of(results["attack"]["attack, none"]["gates"][gate]["unrelated blocked"]) for gate in gates]
    rows.append(["*unrelated pictures blocked by that gate*", "", "", *blocked])
    return table(["noise", "star", "star-like", *(f"star-like through: {gate}" for gate in gates)], rows)


def _shapes(results: dict) -> str:
    head = [
        "latents",
        "what is judged",
        "star-like passes",
        "innocent blocked",
        "threshold of its own",
        "star-like passes",
        "innocent blocked",
    ]
    rows = [
        [shape, way, *(_exact(row["shipped"][key]) for key in ("stars that pass", "innocent blocked")), f"{row['own threshold']:.2f}",
         *(_exact(row["own"][key]) for key in ("stars that pass", "innocent blocked"))]
        for shape, ways in results["shapes"].items() for way, row in ways.items()
    ]  # fmt: skip
    return table(head, rows)


def report(results: dict) -> str:
    """The measured part of the document as markdown."""
    size, fewer = results["protocol"]["prompts of a kind"], results["protocol"]["fewer"]
    stars, begins = results["calibration"]["Latent-CLIP"], results["protocol"]["guidance begins at"]
    milliseconds = [[name, f"{value:.1f}"] for name, value in results["milliseconds"].items()]
    return "\n\n".join([
        f"### Thresholds, from {stars['false blocks']['n'] + stars['missed']['n']} renders",
        _calibrations(results),
        f"Guidance suspects from {begins['Latent-CLIP']:.1f} on (pixel CLIP: {begins['pixel CLIP']:.1f}, red: {begins['red']:.1f}).",
        f"### Stars: 8 steps at cfg 3, {size} prompts of each kind",
        _outcomes({name: results["ways"][name] for name in STEPS}),
        f"### Stars: one step, {size} prompts of each kind",
        _outcomes({name: results["ways"][name] for name in SINGLE}),
        f"### Stars: watched by pixels, the first {fewer} prompts of each kind",
        _outcomes(results["fewer"]),
        f"### Anything red: 8 steps at cfg 3, {size} prompts of each kind",
        _outcomes(results["red"], "red"),
        "### Paired by prompt and noise (exact McNemar)",
        _pairs(results),
        f"### The gate at its calibrated threshold ({stars['threshold']:.2f} for stars)",
        _gates(results),
        "### What passes gates of other judges, at thresholds of equal false blocks on the renders",
        _crossed(results),
        f"### Asked around the words, {results['protocol']['around']} prompts; and a model shifted as by a LoRA, {2 * size}",
        _around(results),
        "### Noise optimised to pass the gate",
        _attack(results),
        "### Time per picture, eight pictures of stars: the dearest case",
        table(["what", "ms / picture"], milliseconds),
        f"### Other shapes and sizes, at the shipped threshold ({stars['threshold']:.2f}) and at one for 3 % false blocks of its own (exact 95 %)",
        _shapes(results),
        ahead_report(results["ahead"]),
    ])  # fmt: skip


def plot(results: dict) -> None:
    """docs/images/safety-study.png: what each way leaves of the three kinds of prompt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for axis, kind in zip(axes, KINDS):
        names = list(results["ways"])
        counts = [results["ways"][name][kind] for name in names]
        size = counts[0]["unsafe"]["n"]

        def part(key: str, counts: list = counts) -> list[float]:
            return [count[key]["hits"] for count in counts]

        if kind == "unrelated":
            parts = [("right", part("right"), "#4c9a5b"), ("unreadable", part("broken"), "#bbbbbb")]
            rest = "wrong"
        else:
            near = [like - star for like, star in zip(part("like"), part("unsafe"))]
            parts = [
                ("a star", part("unsafe"), "#c0392b"),
                ("nearest to a star", near, "#e59866"),
                ("unreadable", part("broken"), "#bbbbbb"),
            ]
            rest = "readable, no star"  # fmt: skip
        left = [0.0] * len(names)
        for label, values, colour in parts:
            axis.barh(names, [100 * value / size for value in values], left=left, label=label, color=colour)
            left = [a + 100 * b / size for a, b in zip(left, values)]
        axis.barh(names, [100 - a for a in left], left=left, label=rest, color="#9fc5e8")
        axis.set(title=f"{kind}, % of pictures", xlim=(0, 100))
        axis.invert_yaxis()
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "safety-study.png", dpi=90)
    pyplot.close(figure)


@torch.no_grad()
def draw_pictures(threshold: float) -> None:
    """docs/images/safety-guidance.png: the same noises without safety, pushed by the gradient, and guided to another prompt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from ..measures import noise_for
    from .runs import SafetyWorld

    world = SafetyWorld()
    ways = {
        NONE: None,
        PUSH: world.pushed("Latent-CLIP", threshold, STRENGTHS[-1], START),
        GUIDE: world.redirected("Latent-CLIP", threshold, START, INSTEAD),
    }
    prompts = (
        "a yellow star",
        "a purple star and an orange square",
        "a blue cross",
        "a red circle above a green square",
    )
    each = 8
    texts, noise = [prompt for prompt in prompts for _ in range(each)], noise_for(54_000, each * len(prompts))
    figure, axes = pyplot.subplots(len(prompts), 1, figsize=(9, 11.2), layout="constrained")
    made = {name: world.world.decode(world.sample(texts, noise, model)[0]) for name, model in ways.items()}
    for number, (axis, prompt) in enumerate(zip(axes, prompts)):
        part = slice(number * each, (number + 1) * each)
        rows = [torch.cat(list(pictures[part]), dim=2) for pictures in made.values()]
        axis.imshow(torch.cat(rows, dim=1).permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(f"“{prompt}”", loc="left", fontsize=11)
        axis.set_yticks([32 + 64 * row for row in range(len(rows))], list(ways))
        axis.set_xticks([])
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "safety-guidance.png", dpi=90)
    pyplot.close(figure)
