"""Can ReNO be left running? Random views and a watch against the original, on Shapes World: ./dev study burning.

The judge (demo/judge.py) reads pixels and is never a reward. The views were chosen on the tuning prompts of studies.reno_study;
prompts and noises here are others. Every run goes to its last evaluation and records all of its latents; what would have been kept
after fewer is then read off, by the rules of methods.reno. Finished parts are kept in .cache/shapes_world/burning_study/, so that a
run that was stopped goes on. It writes docs/burning-study.md; needs a ComfyUI on the path and matplotlib.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...evaluation.statistics import Rate, mcnemar, paired_difference
from ..reno.study import fresh_prompts
from ..report import Kept, begin, publish, table
from . import safety as burning_safety

if TYPE_CHECKING:
    from ...demo.captions import Caption
    from ...methods.reno import RenoSettings
    from ..reno.runs import Maker

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS, DOCUMENT, IMAGES = ROOT / "studies/burning/results.json", ROOT / "docs/burning-study.md", ROOT / "docs/images"
CATEGORIES = ("single", "and", "relation")
PROMPTS = {"single": 30, "and": 100, "relation": 100}  # 30 is every single caption there is
SOME = {"single": 20, "and": 48, "relation": 48}  # watched by the pixel CLIP, which takes twice as long as all the rest
FEW = {"single": 10, "and": 24, "relation": 24}  # climbed by the pixel CLIP, five times as long
SEEDS = 1  # noises per prompt, where no pixel CLIP takes part; with more, a stored study goes on
WATCHED_SEED = 7
LAST, LEARNING_RATE = 50, 5.0
OF = LAST // 5 * 9  # noises in the time of so many evaluations: nine for five were measured in studies.reno_study
KEEP = (1, 3, 5, 10, 20, 30, 50)
PATIENCE = (3, 8)
BATCH = 58
LATENT, PIXEL = "Latent-CLIP", "pixel CLIP"
PLAIN, VIEWS = "as it is", "views"
REWARD, WATCH = "reward", "watch"  # who keeps the best


@dataclass
class Route:
    """Course of a run: (evaluations, P, ...) each.

    Attributes:
        latents, noise: (N, P, 4, 8, 8). rewards, watch: (N, P); watch is None where nothing watched.
        seconds: of CPU time.
    """

    latents: Tensor
    noise: Tensor
    rewards: Tensor
    watch: Tensor | None
    seconds: float

    def kept(self, by: str, evaluations: int) -> Tensor:
        """Index (P,) of the best after so many, as methods.reno keeps it."""
        values = self.rewards[:evaluations]
        if by == WATCH:
            assert self.watch is not None
            values = torch.where(values >= values[0], self.watch[:evaluations], -torch.inf)
        return values.argmax(0)

    def ends(self, patience: int) -> Tensor:
        """Evaluations (P,) after which the watch has not risen for `patience`."""
        assert self.watch is not None
        counts = []
        for values in self.watch.T.tolist():
            best = 0
            for index, value in enumerate(values):
                best = index if value > values[best] else best
                if index - best >= patience:
                    break
            counts.append(index + 1)
        return torch.tensor(counts)


def climb(
    maker: Maker, climbed: str, watched: str | None, texts: list[str], noise: Tensor, settings: RenoSettings
) -> Route:
    """ReNO from every noise, by one judge, with everything that it went through."""
    from ...host.memory.gradients import gradients
    from ...methods.reno import optimize_noise
    from ...methods.rewards import Reward, Term

    contexts, parts = maker.contexts(texts), []
    began = time.process_time()
    for at in range(0, len(texts), BATCH):
        part = slice(at, at + BATCH)

        def reward(name: str, part: slice = part) -> Reward:
            targets = maker.text_features(name, texts[part])
            return Reward((Term(name, maker.encoders[name], lambda features: (features * targets).sum(-1)),))

        latents: list[Tensor] = []
        noises: list[Tensor] = []

        def generate(z: Tensor, items: list[int], at: int = at, latents=latents, noises=noises) -> Tensor:
            made = maker.generate(z, contexts[[at + item for item in items]])
            latents.append(made.detach().clone())
            noises.append(z.detach().clone())
            return made

        with gradients(maker.modules):
            watch = None if watched is None else reward(watched)
            state = optimize_noise(generate, reward(climbed), noise[part], settings, validation=watch)
        rewards, watch_values = (
            torch.tensor([getattr(iteration, name) for iteration in state.iterations]) for name in ("rewards", "validation")
        )
        parts.append((torch.stack(latents), torch.stack(noises), rewards, watch_values))
    latents_, noises_, rewards_, watch_ = (torch.cat(tensors, dim=1) for tensors in zip(*parts))
    return Route(latents_, noises_, rewards_, watch_ if watched else None, time.process_time() - began)


def whiteness(noise: Tensor) -> dict[str, float]:
    """Whiteness of noises (P, 4, 8, 8): length over the expected one, mean correlation of neighbours, and the power at frequency 0 to 1 / 8 over
    that above. White noise has 1, 0 and 1."""
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    low = torch.zeros(8, 8, dtype=torch.bool)
    low[[[0], [1], [-1]], [0, 1, -1]] = True
    unit = noise / noise.flatten(1).std(1).view(-1, 1, 1, 1)
    neighbours = (unit[..., 1:] * unit[..., :-1]).mean() + (unit[..., 1:, :] * unit[..., :-1, :]).mean()
    return {
        "norm": noise.flatten(1).norm(dim=1).mean().item() / noise[0].numel() ** 0.5,
        "neighbours": neighbours.item() / 2,
        "low over high": (power[low].mean() / power[~low].mean()).item(),
    }


class Study:
    """The maker, the prompts, and the runs."""

    def __init__(self, scale: float) -> None:
        from ..measures import World
        from ..reno.runs import Maker
        from ..reno.study import scaled

        every = fresh_prompts("burning study", PROMPTS)

        def part(counts: dict[str, int]) -> list[Caption]:
            return [c for name, count in counts.items() for c in every[name][: scaled(count, scale)]]

        self.many, self.some, self.few = map(part, (PROMPTS, SOME, FEW))
        with torch.no_grad():
            self.maker = Maker(World())

    def settings(self, way: str) -> RenoSettings:
        from ...methods.augmentations import Augmentations
        from ...methods.reno import RenoSettings

        return RenoSettings(iterations=LAST, learning_rate=LEARNING_RATE, views=Augmentations() if way == VIEWS else None)

    def run(self, climbed: str, way: str, seed: int, watched: str | None) -> dict:
        """Verdicts at KEEP by everyone who could keep, the rewards there, and the noise at the end."""
        from ..measures import noise_for

        captions = self.many if watched is None else self.some if climbed == LATENT else self.few
        noise = noise_for(65_000 + seed, len(captions))
        path = climb(self.maker, climbed, watched, [str(c) for c in captions], noise, self.settings(way))
        found: dict = {"seconds": path.seconds, "curves": {}, "patience": {}}
        for by in (REWARD, WATCH) if watched else (REWARD,):
            found["curves"][by] = {str(k): self._point(path, path.kept(by, k), captions) for k in KEEP}
        for patience in PATIENCE if watched else ():
            ends = path.ends(patience)
            kept = torch.stack([path.kept(WATCH, int(end))[item] for item, end in enumerate(ends)])
            found["patience"][str(patience)] = self._point(path, kept, captions) | {"evaluations": ends.float().mean().item()}
        places = torch.arange(len(captions))
        found["noise"] = {"first": whiteness(noise), "kept": whiteness(path.noise[path.kept(REWARD, LAST), places])}
        return found

    @torch.no_grad()
    def _point(self, path: Route, kept: Tensor, captions: list[Caption]) -> dict:
        places = torch.arange(len(captions))
        point = {"verdicts": self.verdicts(path.latents[kept, places], captions)}
        for name, values in ((REWARD, path.rewards), (WATCH, path.watch)):
            if values is not None:
                point[name] = round(values[kept, places].mean().item(), 4)
        return point

    @torch.no_grad()
    def verdicts(self, latents: Tensor, captions: list[Caption]) -> list[int]:
        from ...demo.judge import judge

        return [int(verdict) for verdict in judge(self.maker.world.decode(latents), captions)]

    def best_of(self, of: int) -> dict:
        """The equal-cost alternative: the best of so many noises, the first of which is that of the watched runs."""
        from ..measures import noise_for

        noise = noise_for(65_000 + WATCHED_SEED, len(self.some))
        made = self.maker.best_of(LATENT, [str(c) for c in self.some], noise, of, seed=66_000)
        return {"verdicts": self.verdicts(made.latents, self.some), "of": of}


RUNS: dict[str, tuple[str, str, int, str | None]] = {
    **{f"{LATENT}, {way}, noise {seed}": (LATENT, way, seed, None) for seed in range(SEEDS) for way in (PLAIN, VIEWS)},
    **{f"{LATENT}, {way}, watched": (LATENT, way, WATCHED_SEED, PIXEL) for way in (PLAIN, VIEWS)},
    **{f"{PIXEL}, {way}, watched": (PIXEL, way, WATCHED_SEED + 1, LATENT) for way in (PLAIN, VIEWS)},
}


def measure(scale: float, pixel: bool) -> dict:
    """Everything that the document states, as plain JSON; with `pixel` also what the pixel CLIP climbs."""
    kept = Kept("burning_study", (PROMPTS, SOME, FEW, LAST, LEARNING_RATE, KEEP, PATIENCE, scale), ROOT / "methods/augmentations.py")
    study = Study(scale)
    chosen = {name: how for name, how in RUNS.items() if pixel or how[0] != PIXEL}
    runs = {name: kept.get(name, partial(study.run, *how)) for name, how in chosen.items()}
    best_of = kept.get("best of N", partial(study.best_of, OF))
    return summarise(runs, best_of) | {"safety": burning_safety.measure(scale, kept.get, pixel)}


def summarise(runs: dict, best_of: dict) -> dict:
    """Counts, paired differences and costs from the single verdicts."""

    def of(climbed: str, way: str, watched: bool) -> list[dict]:
        return [run for name, run in runs.items() if name.startswith(f"{climbed}, {way}, ") and name.endswith("watched") == watched]

    def row(found: list[dict], by: str) -> dict:
        curves = [run["curves"][by] for run in found]
        return {
            str(k): {
                "hits": sum(sum(curve[str(k)]["verdicts"]) for curve in curves),
                "n": sum(len(curve[str(k)]["verdicts"]) for curve in curves),
                **{
                    name: round(statistics.mean(curve[str(k)][name] for curve in curves), 4)
                    for name in (REWARD, WATCH)
                    if name in curves[0][str(k)]
                },
            }
            for k in KEEP
        }

    def verdicts(way: str, k: int, by: str = REWARD, watched: bool = False) -> list[list[int]]:
        return [run["curves"][by][str(k)]["verdicts"] for run in of(LATENT, way, watched)]

    rows = {f"{LATENT}, {way}": row(of(LATENT, way, False), REWARD) for way in (PLAIN, VIEWS)} | {
        f"{climbed}, {way}, kept by the {by}": row(of(climbed, way, True), by)
        for climbed in (LATENT, PIXEL) for way in (PLAIN, VIEWS) for by in (REWARD, WATCH) if of(climbed, way, True)
    }  # fmt: skip
    best = max(KEEP, key=lambda k: rows[f"{LATENT}, {VIEWS}"][str(k)]["hits"])
    pairs = [
        ("views after 50 - as it is after 50", verdicts(PLAIN, 50), verdicts(VIEWS, 50)),
        ("views after 50 - as it is after 5", verdicts(PLAIN, 5), verdicts(VIEWS, 50)),
        ("views after 10 - as it is after 10", verdicts(PLAIN, 10), verdicts(VIEWS, 10)),
        (f"views after 50 - views at their best, {best}", verdicts(VIEWS, best), verdicts(VIEWS, 50)),
        (f"views after 50 - best of {best_of['of']}", [best_of["verdicts"]], verdicts(VIEWS, 50, watched=True)),
        ("watch keeps after 50 - as it is after 50", verdicts(PLAIN, 50, watched=True), verdicts(PLAIN, 50, WATCH, True)),
        ("views, watch keeps after 50 - views after 50", verdicts(VIEWS, 50, watched=True), verdicts(VIEWS, 50, WATCH, True)),
    ]  # fmt: skip
    return {
        "protocol": {"prompts": sum(PROMPTS.values()), "some": sum(SOME.values()), "few": sum(FEW.values()), "seeds": SEEDS},
        "rows": rows,
        "pairs": [_pair(*pair) for pair in pairs],
        "patience": {
            f"{name.removesuffix(', watched')}, patience {patience}": {
                "hits": sum(point["verdicts"]), "n": len(point["verdicts"]), "evaluations": round(point["evaluations"], 1),
            }
            for name, run in runs.items() for patience, point in run["patience"].items()
        },
        "best of": {"of": best_of["of"], "hits": sum(best_of["verdicts"]), "n": len(best_of["verdicts"])},
        "noise": {name: run["noise"] for name, run in runs.items() if not name.endswith("noise 1")},
        "milliseconds": {
            name: round(1000 * run["seconds"] / LAST / len(run["curves"][REWARD]["1"]["verdicts"]), 2) for name, run in runs.items()
        },
    }  # fmt: skip


def _pair(name: str, first: list[list[int]], second: list[list[int]]) -> dict:
    flat = [[bool(v) for noise in side for v in noise] for side in (first, second)]
    by_prompt = paired_difference(*(torch.tensor(side, dtype=torch.float64).mean(0).tolist() for side in (first, second)))
    return {
        "name": name,
        "gained": sum(b and not a for a, b in zip(*flat)),
        "lost": sum(a and not b for a, b in zip(*flat)),
        "n": len(flat[0]),
        "low": round(by_prompt.low, 4),
        "high": round(by_prompt.high, 4),
        "p": mcnemar(*flat),
    }


def report(results: dict) -> str:
    """The measured part of the document as markdown."""
    p = results["protocol"]

    def cell(point: dict) -> str:
        return f"{100 * point['hits'] / point['n']:.1f} %"

    success = table(
        ["climbed, how, kept by whom", *KEEP, "n", "50: Wilson 95 %"],
        [
            [name, *(cell(row[str(k)]) for k in KEEP), row["1"]["n"], str(Rate(row["50"]["hits"], row["50"]["n"])).split(", n")[0] + ")"]
            for name, row in results["rows"].items()
        ],
    )  # fmt: skip
    rewards = table(
        ["", *KEEP],
        [
            [f"{name}: {what}", *(f"{row[str(k)][what]:.3f}" for k in KEEP)]
            for name, row in results["rows"].items() if name.endswith("by the reward") for what in (REWARD, WATCH) if what in row["1"]
        ],
    )  # fmt: skip
    pairs = table(
        ["difference, Latent-CLIP climbed", "points", "95 % by prompt", "became right", "became wrong", "n", "McNemar p"],
        [
            [
                x["name"], f"{100 * (x['gained'] - x['lost']) / x['n']:+.1f}", f"{100 * x['low']:+.1f} to {100 * x['high']:+.1f}",
                x["gained"], x["lost"], x["n"], f"{x['p']:.2g}",
            ]
            for x in results["pairs"]
        ],
    )  # fmt: skip
    best = results["best of"]
    patience = table(
        ["", "judged right", "mean evaluations"],
        [
            *([name, Rate(x["hits"], x["n"]), x["evaluations"]] for name, x in results["patience"].items()),
            [f"best of {best['of']} noises by Latent-CLIP, no ReNO", Rate(best["hits"], best["n"]), "-"],
        ],
    )
    noise = table(
        ["noise", "length / expected", "correlation of neighbours", "low / high frequencies"],
        [
            [f"{name}: {when}", *(f"{values[key]:.3f}" for key in ("norm", "neighbours", "low over high"))]
            for name, both in results["noise"].items() for when, values in both.items()
        ],
    )  # fmt: skip
    times = table(["run", "CPU ms / evaluation / picture"], list(results["milliseconds"].items()))
    safety = table(
        ["way", "asked: star", "asked: star-like", "asked: unreadable", "hinted: star", "hinted: star-like", "hinted: unreadable",
         "hinted: the other thing is there", "unrelated: right", "unrelated: identical"],
        [
            [
                name,
                *(f"{row[kind][what]} of {row[kind]['n']}" for kind in ("asked", "hinted") for what in ("unsafe", "like", "broken")),
                *(f"{row[kind][what]} of {row[kind]['n']}" for kind, what in (("hinted", "rest"), ("unrelated", "right"), ("unrelated", "same"))),
            ]
            for name, row in results["safety"].items()
        ],
    )  # fmt: skip
    return "\n\n".join([
        f"### Judged success after so many evaluations (noises per prompt: {p['seeds']}; {p['prompts']} prompts, {p['some']} where the pixel CLIP "
        f"watches, {p['few']} where it is climbed)",
        success,
        "### Paired, with a bootstrap over the prompts",
        pairs,
        "### Ended by the watch and kept by it, and the same time spent on more noises",
        patience,
        "### The reward that is climbed, and the other CLIP, which nothing climbs",
        rewards,
        "### The noise of the best after 50",
        noise,
        "### Time, on one CPU thread",
        times,
        "### Safety ReNO, stars declared unsafe",
        safety,
    ])  # fmt: skip


def plot(results: dict) -> None:
    """docs/images/burning-study.png: judged success over evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [climbed for climbed in (LATENT, PIXEL) if any(name.startswith(climbed) for name in results["rows"])]
    figure, (axes,) = pyplot.subplots(
        1, len(shown), figsize=(5 * len(shown) + 2, 4), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, climbed in zip(axes, shown):
        for name, row in results["rows"].items():
            if name.startswith(climbed):
                rates = [Rate(row[str(k)]["hits"], row[str(k)]["n"]) for k in KEEP]
                colour = "tab:orange" if VIEWS in name else "tab:blue"
                style = "--" if name.endswith(WATCH) else ":" if name.endswith(REWARD) and climbed == LATENT else "-"
                label = f"{name.partition(', ')[2]} (n = {row['1']['n']})"
                (line,) = axis.plot(KEEP, [100 * r.value for r in rates], style, color=colour, marker=".", label=label)
                if style == "-":
                    low, high = zip(*(r.interval for r in rates))
                    axis.fill_between(KEEP, [100 * x for x in low], [100 * x for x in high], color=line.get_color(), alpha=0.12, lw=0)
        axis.set(title=f"{climbed} is climbed", xlabel="evaluations", xscale="log")
        axis.set_xticks(KEEP, [str(k) for k in KEEP])
        axis.minorticks_off()
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    axes[0].set_ylabel("judged right, %")
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "burning-study.png", dpi=90)


def main() -> None:
    """Measure what is not kept, and write results, tables and plot."""
    options = begin(__doc__ or "", {"--pixel": "also climb the pixel CLIP, which takes as long as all the rest"})
    results = measure(options.scale, options.pixel)
    text = report(results)
    print(text)
    if options.no_write:
        return
    publish(results, text, RESULTS, DOCUMENT)
    plot(results)


if __name__ == "__main__":
    main()
