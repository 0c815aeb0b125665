"""Does ReNO work? Judged on Shapes World: ./dev study reno writes docs/reno-study.md's tables and plots.

The judge (judge.py) reads pixels and is never a reward. Settings were chosen on prompts and noises of the seeds "tune
reno" (see docs/reno-study.md); the prompts and noises here are others. Needs a ComfyUI on the path and matplotlib.
Finished parts are kept in .cache/shapes_world/reno_study/, so that a run that was stopped goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from scipy.stats import binomtest
from torch import Tensor

from ...evaluation.statistics import Rate, mcnemar
from ..report import Kept, begin, publish, table

if TYPE_CHECKING:
    from ...demo.captions import Caption
    from .runs import Run

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS, DOCUMENT, IMAGES = ROOT / "studies/reno/results.json", ROOT / "docs/reno-study.md", ROOT / "docs/images"
CATEGORIES = ("single", "and", "relation")

PROMPTS = {"single": 30, "and": 100, "relation": 100}  # 30 is every single caption there is
SEEDS = 3  # noises per prompt
TUNING = 68  # prompts per category that settings were chosen on, from sample_prompts("tune reno …")
EVALUATIONS, LEARNING_RATE = 5, 5.0  # chosen on the tuning prompts with Latent-CLIP; the rest are the defaults
LONG, LONG_PROMPTS = 30, {"single": 10, "and": 24, "relation": 24}  # the long runs that show a hacked reward
KEEP = (1, 2, 3, 5, 7, 10, 15, 20, 30)
LATENT, PIXEL = "Latent-CLIP", "pixel CLIP"

ONE_STEP, RENO, RENO_PIXEL = "one step", f"ReNO, {LATENT}", f"ReNO, {PIXEL}"
BEST_OF, BEST_OF_RENO = f"best of N, {LATENT}", "best of 4, then ReNO"
BEST_OF_TWICE = f"best of 2N, {LATENT}"  # N is a measured time, so what if it were wrong?
FOUR = "four candidates"
METHODS = (ONE_STEP, RENO, RENO_PIXEL, BEST_OF, BEST_OF_TWICE, BEST_OF_RENO)
PAIRS = (
    (ONE_STEP, RENO), (BEST_OF, RENO), (ONE_STEP, RENO_PIXEL), (RENO_PIXEL, RENO), (RENO, BEST_OF_RENO), (ONE_STEP, BEST_OF),
    (BEST_OF_TWICE, RENO),
)  # fmt: skip


def fresh_prompts(study: str, counts: dict[str, int]) -> dict[str, list[Caption]]:
    """Distinct prompts by category, of a study by its name. Those of two things say nothing that a tuning prompt says."""
    from ..measures import sample_prompts

    prompts: dict[str, list[Caption]] = {}
    for name, count in counts.items():
        taken = set() if name == "single" else {caption.meaning() for caption in tuning_prompts(name)}
        prompts[name] = []
        for caption in sample_prompts(f"{study} {name}", 1000, name):
            if caption.meaning() not in taken and len(prompts[name]) < count:
                taken.add(caption.meaning())
                prompts[name].append(caption)
    return prompts


def tuning_prompts(name: str) -> list[Caption]:
    """The prompts of a category that settings were chosen on."""
    from ..measures import sample_prompts

    return sample_prompts(f"tune reno {name}", TUNING, name)


class Study:
    """The maker, the test prompts, and the parts of the protocol that run networks."""

    def __init__(self, scale: float) -> None:
        from ...methods.reno import RenoSettings
        from ..measures import World
        from .runs import Maker

        self.settings = RenoSettings(iterations=EVALUATIONS, learning_rate=LEARNING_RATE)
        every = fresh_prompts("reno study", PROMPTS)
        self.prompts = {name: every[name][: scaled(count, scale)] for name, count in PROMPTS.items()}
        self.long_counts = {name: scaled(count, scale) for name, count in LONG_PROMPTS.items()}
        self.captions = [caption for captions in self.prompts.values() for caption in captions]
        self.texts = [str(caption) for caption in self.captions]
        with torch.no_grad():
            self.maker = Maker(World())

    def timing(self, rounds: int = 3) -> dict:
        """Median seconds per picture of one batch, the ways in turn; what N is follows from the first two."""
        from ..measures import noise_for
        from .runs import BATCH

        batch = self.texts[:: max(1, len(self.texts) // BATCH)][:BATCH]
        noise, maker = noise_for(90_000, len(batch)), self.maker
        ways: dict[str, Callable[[], Run]] = {
            RENO: lambda: maker.reno(LATENT, batch, noise, self.settings),
            FOUR: lambda: maker.best_of(LATENT, batch, noise, 4, seed=1),
            ONE_STEP: lambda: maker.one_step(batch, noise),
            RENO_PIXEL: lambda: maker.reno(PIXEL, batch, noise, self.settings),
        }
        turns = [{name: way().seconds / len(batch) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
        medians = {name: statistics.median(turn[name] for turn in turns) for name in ways}
        spread = {name: [round(f(turn[name] for turn in turns), 5) for f in (min, max)] for name in ways}
        return {"median": medians, "range": spread, "n": round(4 * medians[RENO] / medians[FOUR])}

    def run(self, name: str, seed: int, n: int) -> dict:
        """One of METHODS on every prompt with the noises of one seed, judged."""
        from ..measures import noise_for

        noise, maker, texts = noise_for(60_000 + seed, len(self.texts)), self.maker, self.texts
        if name == BEST_OF_RENO:
            noise = maker.best_of(LATENT, texts, noise, 4, 80_000 + seed).noise
        if name == ONE_STEP:
            made = maker.one_step(texts, noise)
        elif name == BEST_OF:
            made = maker.best_of(LATENT, texts, noise, n, 70_000 + seed)
        elif name == BEST_OF_TWICE:
            made = maker.best_of(LATENT, texts, noise, 2 * n, 70_000 + seed)
        else:
            made = maker.reno(PIXEL if name == RENO_PIXEL else LATENT, texts, noise, self.settings)
        return self.judged(made.latents, self.captions)

    def long_run(self, judge_name: str, changes: dict) -> dict:
        """ReNO far beyond the chosen number of evaluations, judged at KEEP of them, on the first prompts of each category."""
        from ...methods.reno import RenoSettings
        from ..measures import noise_for

        captions = [c for name, count in self.long_counts.items() for c in self.prompts[name][:count]]
        texts, noise = [str(caption) for caption in captions], noise_for(61_000, len(captions))
        settings = RenoSettings(**({"iterations": LONG, "learning_rate": LEARNING_RATE} | changes))
        made = self.maker.reno(judge_name, texts, noise, settings, KEEP)
        return {
            "curve": {str(k): self.judged(latents, captions) for k, latents in made.by_iteration.items()},
            "end": self.judged(made.latents, captions),
            "evaluations": statistics.mean(made.evaluations),
            "norm": made.noise.flatten(1).norm(dim=1).mean().item() / made.noise[0].numel() ** 0.5,
        }

    @torch.no_grad()
    def judged(self, latents: Tensor, captions: list[Caption]) -> dict:
        """Verdicts and both rewards of one picture per caption."""
        from ...demo.judge import judge

        verdicts, texts = judge(self.maker.world.decode(latents), captions), [str(caption) for caption in captions]
        rewards = {name: self.maker.score(name, latents, texts).tolist() for name in (LATENT, PIXEL)}
        rounded = {name: [round(value, 5) for value in values] for name, values in rewards.items()}
        return {"verdicts": [int(verdict) for verdict in verdicts], **rounded}


def scaled(count: int, scale: float) -> int:
    """A fraction of a number of prompts, and at least four."""
    return min(count, max(4, round(count * scale)))


def measure(scale: float, threads: int) -> dict:
    """Everything that the document states, as plain JSON."""
    kept, study = (
        Kept("reno_study", (PROMPTS, SEEDS, EVALUATIONS, LEARNING_RATE, LONG, LONG_PROMPTS, KEEP, scale)),
        Study(scale),
    )
    times = kept.get("timing", study.timing)
    runs = {
        name: [kept.get(f"{name}, noise {seed}", partial(study.run, name, seed, times["n"])) for seed in range(SEEDS)]
        for name in METHODS
    }
    long_runs = {name: kept.get(name, partial(study.long_run, *how)) for name, how in LONG_RUNS.items()}
    return summarise(times, runs, long_runs, [len(captions) for captions in study.prompts.values()], threads)


LONG_RUNS: dict[str, tuple[str, dict]] = {
    f"{LATENT}, prior 0.01": (LATENT, {}),
    f"{LATENT}, prior 0": (LATENT, {"prior_weight": 0.0}),
    f"{LATENT}, prior 0.1": (LATENT, {"prior_weight": 0.1}),
    f"{PIXEL}, prior 0.01": (PIXEL, {}),
    f"{LATENT}, target 0.9": (LATENT, {"target": 0.9}),
    f"{LATENT}, patience 2": (LATENT, {"patience": 2}),
}


def summarise(times: dict, runs: dict, long_runs: dict, sizes: list[int], threads: int) -> dict:
    """Counts, means and p-values from the single verdicts and rewards."""
    verdicts = {name: [bool(v) for run in seeds for v in run["verdicts"]] for name, seeds in runs.items()}
    prompts, starts = sum(sizes), [0, *accumulate(sizes)]

    def category(name: str, number: int) -> dict:
        values = [v for run in runs[name] for v in run["verdicts"][starts[number] : starts[number + 1]]]
        return {"hits": sum(values), "n": len(values)}

    def by_prompt(a: str, b: str) -> float:
        """A sign test with the prompt as the unit: which way succeeds with more of its noises."""
        gains = [sum(verdicts[b][p::prompts]) - sum(verdicts[a][p::prompts]) for p in range(prompts)]
        up, down = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        return float(binomtest(up, up + down).pvalue) if up + down else 1.0

    def mean(name: str, reward: str) -> float:
        return round(statistics.mean(value for run in runs[name] for value in run[reward]), 4)

    seconds = {
        ONE_STEP: times["median"][ONE_STEP], RENO: times["median"][RENO], RENO_PIXEL: times["median"][RENO_PIXEL],
        BEST_OF: times["median"][FOUR] / 4 * times["n"],
        BEST_OF_TWICE: times["median"][FOUR] / 2 * times["n"],
        BEST_OF_RENO: times["median"][RENO] + times["median"][FOUR],
    }  # fmt: skip
    return {
        "protocol": {
            "prompts": prompts, "seeds": SEEDS, "evaluations": EVALUATIONS, "learning_rate": LEARNING_RATE, "n": times["n"],
            "long_prompts": len(next(iter(long_runs.values()))["end"]["verdicts"]), "long_evaluations": LONG, "threads": threads,
        },
        "methods": {
            name: {
                **{kind: category(name, number) for number, kind in enumerate(CATEGORIES)},
                "all": {"hits": sum(verdicts[name]), "n": len(verdicts[name])},
                LATENT: mean(name, LATENT), PIXEL: mean(name, PIXEL), "milliseconds": round(1000 * seconds[name], 2),
            }
            for name in METHODS
        },
        "pairs": [
            {
                "first": a, "second": b, "p": mcnemar(verdicts[a], verdicts[b]), "p_by_prompt": by_prompt(a, b),
                "gained": sum(y and not x for x, y in zip(verdicts[a], verdicts[b])),
                "lost": sum(x and not y for x, y in zip(verdicts[a], verdicts[b])),
            }
            for a, b in PAIRS
        ],
        "long": {name: _long_summary(run) for name, run in long_runs.items()},
        "timing_range": times["range"],
    }  # fmt: skip


def _long_summary(run: dict) -> dict:
    def point(values: dict) -> dict:
        rewards = {name: round(statistics.mean(values[name]), 4) for name in (LATENT, PIXEL)}
        return {"hits": sum(values["verdicts"]), "n": len(values["verdicts"])} | rewards

    last, order = run["end"], list(run["curve"].values())
    hacked = sum(
        any(before["verdicts"][i] and not last["verdicts"][i] for before in order) for i in range(len(last["verdicts"]))
    )
    return {
        "curve": {k: point(values) for k, values in run["curve"].items()},
        "end": point(last) | {"was right before": hacked},
        "evaluations": round(run["evaluations"], 1),
        "norm": round(run["norm"], 4),
    }


# ----------------------------------------------------------------------------------------------------- tables and plots


def _named(method: str, n: int) -> str:
    return method.replace(" 2N,", f" {2 * n},").replace(" N,", f" {n},")


def _rate(value: dict) -> str:
    return str(Rate(value["hits"], value["n"])).replace(f", n = {value['n']}", "")


def _percent(value: dict) -> str:
    return f"{100 * value['hits'] / value['n']:.0f} %"


def report(results: dict) -> str:
    """The measured part of the document as markdown."""
    p, methods = results["protocol"], results["methods"]
    named = {name: _named(name, p["n"]) for name in methods}
    one = methods[ONE_STEP]
    main = table(
        ["way", *CATEGORIES, "all", "Latent-CLIP reward", "pixel CLIP reward", "ms / picture"],
        [
            [
                named[name], *(_rate(row[kind]) for kind in (*CATEGORIES, "all")),
                f"{one[LATENT]:.3f} → {row[LATENT]:.3f}", f"{one[PIXEL]:.3f} → {row[PIXEL]:.3f}", f"{row['milliseconds']:.0f}",
            ]
            for name, row in methods.items()
        ],
    )  # fmt: skip
    pairs = table(
        ["from", "to", "became right", "became wrong", "p (pictures)", "p (prompts)"],
        [
            [named[x["first"]], named[x["second"]], x["gained"], x["lost"], f"{x['p']:.2g}", f"{x['p_by_prompt']:.2g}"]
            for x in results["pairs"]
        ],
    )
    long = results["long"]
    counts = list(next(iter(long.values()))["curve"])
    fixed = [name for name in long if "prior" in name]
    curve = table(
        ["climbed", *counts],
        [
            line
            for name in fixed
            for line in (
                [f"{name}: judged", *(_percent(long[name]["curve"][k]) for k in counts)],
                *(
                    [f"{reward} reward", *(f"{long[name]['curve'][k][reward]:.3f}" for k in counts)]
                    for reward in (LATENT, PIXEL)
                ),
            )
        ],
    )
    ends = table(
        ["run", "judged right", "had been right before", "mean evaluations", "noise norm / expected"],
        [
            [name, _rate(run["end"]), run["end"]["was right before"], run["evaluations"], f"{run['norm']:.3f}"]
            for name, run in long.items()
        ],
    )
    return "\n\n".join([
        f"### {p['prompts']} prompts, {p['seeds']} noises each: judged success (Wilson 95 % intervals)",
        main,
        "### Paired by prompt and noise",
        pairs,
        f"### Evaluations, {p['long_prompts']} prompts, one noise each: judged success and both rewards",
        curve,
        f"### At the end of runs of at most {p['long_evaluations']} evaluations",
        ends,
    ])  # fmt: skip


def plot(results: dict) -> None:
    """docs/images/reno-study.png: success by category; success and reward over evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, judged, reward) = pyplot.subplots(
        1, 3, figsize=(14, 4.2), width_ratios=(1.5, 1, 1), layout="constrained"
    )
    names = list(results["methods"])
    for number, name in enumerate(names):
        rates = [Rate(**results["methods"][name][kind]) for kind in (*CATEGORIES, "all")]
        values = [100 * rate.value for rate in rates]
        errors = [
            [v - 100 * r.interval[0] for v, r in zip(values, rates)],
            [100 * r.interval[1] - v for v, r in zip(values, rates)],
        ]
        places = [x + (number - 2.5) * 0.14 for x in range(4)]
        label = _named(name, results["protocol"]["n"])
        bars.bar(places, values, 0.13, yerr=errors, label=label, error_kw={"lw": 0.8})
    bars.set_xticks(range(4), [*CATEGORIES, "all"])
    bars.set(ylabel="judged right, %", ylim=(0, 100), title="Judged right, by kind of prompt")
    bars.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
    for name, run in results["long"].items():
        if "prior" not in name:
            continue
        counts, points = [int(k) for k in run["curve"]], list(run["curve"].values())
        style = "--" if name.startswith(PIXEL) else "-"
        judged.plot(counts, [100 * x["hits"] / x["n"] for x in points], style, marker=".", label=name)
        reward.plot(counts, [x[name.split(",")[0]] for x in points], style, marker=".")
    judged.set(xlabel="evaluations", ylabel="judged right, %", xscale="log", title="Judged right, over evaluations")
    reward.set(xlabel="evaluations", ylabel="reward that is climbed", xscale="log", title="The reward that is climbed")
    judged.legend(fontsize=8)
    for axes in (judged, reward):
        axes.set_xticks(KEEP, [str(k) for k in KEEP])
        axes.minorticks_off()
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "reno-study.png", dpi=90)


def main() -> None:
    """Measure what is not kept, and write results, tables and plots."""
    options = begin(__doc__ or "")
    results = measure(options.scale, options.threads)
    text = report(results)
    print(text)
    if options.no_write:
        return
    publish(results, text, RESULTS, DOCUMENT)
    plot(results)


if __name__ == "__main__":
    main()
