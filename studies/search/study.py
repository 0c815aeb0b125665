"""Does looking early pay? Drafts and cuts against fewer seeds at equal cost, on Shapes World: ./dev study search writes docs/search-study.md.

Every candidate is finished, drafted and predicted once, and scored each time; a schedule is then replayed on those numbers,
which is exact because a survivor's picture does not depend on who else is dropped (a test of the node holds that). The
judge (demo/judge.py) reads pixels and is never a reward. Schedules are chosen on tuning prompts. Finished parts are kept
in .cache/shapes_world/search_study/, so that a run that was stopped goes on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from ...methods.search import plan_search
from ..report import Kept, begin, publish, table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS, DOCUMENT, IMAGES = ROOT / "studies/search/results.json", ROOT / "docs/search-study.md", ROOT / "docs/images"
CATEGORIES = ("and", "relation")  # of pairs of things that no training caption shows: the hardest prompts there are
PROMPTS, TUNING, OF = 100, 30, 16  # per category; candidates per prompt
STEPS, CFG = 16, 1.0  # low guidance leaves room for a choice
DRAFTS = (3, 4, 6)
GROUP = 6  # prompts that are sampled together
BUDGETS = (0.35, 0.45, 0.50, 0.60)
SIZES = (8, 16)
LATENT, PIXEL = "Latent-CLIP", "pixel CLIP"


@dataclass(frozen=True)
class Scores:
    """Scores of every candidate of every prompt (P, N): the finished picture's by scorer, whether it is right, and those of the early looks.

    Attributes:
        final, drafts, steps: by judge; drafts by number of steps, steps (P, N, S) of the prediction after each step.
    """

    right: Tensor
    final: dict[str, Tensor]
    drafts: dict[str, dict[int, Tensor]]
    steps: dict[str, Tensor]

    @classmethod
    def of(cls, kept: dict) -> Scores:
        """From the JSON of `collect`."""
        drafts = {judge: {int(d): torch.tensor(v) for d, v in by.items()} for judge, by in kept["drafts"].items()}
        final = {judge: torch.tensor(v) for judge, v in kept["final"].items()}
        return cls(torch.tensor(kept["right"]), final, drafts, {LATENT: torch.tensor(kept["steps"])})

    def first(self, count: int) -> Scores:
        """The first candidates only."""
        return Scores(
            self.right[:, :count],
            {judge: v[:, :count] for judge, v in self.final.items()},
            {judge: {d: v[:, :count] for d, v in by.items()} for judge, by in self.drafts.items()},
            {judge: v[:, :count] for judge, v in self.steps.items()},
        )


@torch.no_grad()
def collect(seed: str, count: int, noise_seed: int) -> dict:
    """Make, draft and predict OF pictures of every prompt, and score all of it."""
    from ...demo.judge import judge
    from ..measures import World, noise_for, sample_prompts

    world = World()
    captions = [c for name in CATEGORIES for c in sample_prompts(f"{seed} {name}", count, name, held_out=True)]
    texts = [str(caption) for caption in captions]
    latent_text, pixel_text = world.latent_clip.encode_text(texts), world.pixel_clip.text.encode(texts)
    noise = noise_for(noise_seed, len(texts) * OF)
    found: dict = {"right": [], "final": {LATENT: [], PIXEL: []}, "steps": []}
    found["drafts"] = {judge: {str(d): [] for d in DRAFTS} for judge in (LATENT, PIXEL)}
    for at in range(0, len(texts), GROUP):
        group = texts[at : at + GROUP]
        prompts, start = [text for text in group for _ in range(OF)], noise[at * OF : (at + len(group)) * OF]
        targets = {LATENT: latent_text[at : at + GROUP], PIXEL: pixel_text[at : at + GROUP]}

        def score(judge: str, features: Tensor, targets: dict = targets) -> list[list[float]]:
            return (features.unflatten(0, (-1, OF)) @ targets[judge][..., None])[..., 0].tolist()

        predictions: list[Tensor] = []
        latents = sample(world, prompts, start, STEPS, "normal", predictions)
        pictures = world.decode(latents)
        verdicts = torch.tensor(judge(pictures, [caption for caption in captions[at : at + GROUP] for _ in range(OF)]))
        found["right"] += verdicts.view(-1, OF).tolist()
        found["final"][LATENT] += score(LATENT, world.latent_features(latents))
        found["final"][PIXEL] += score(PIXEL, world.pixel_features(pictures))
        by_step = [score(LATENT, world.latent_features(x0)) for x0 in predictions]
        found["steps"] += torch.tensor(by_step).permute(1, 2, 0).tolist()
        for steps in DRAFTS:
            draft = sample(world, prompts, start, steps, "simple")
            found["drafts"][LATENT][str(steps)] += score(LATENT, world.latent_features(draft))
            found["drafts"][PIXEL][str(steps)] += score(PIXEL, world.pixel_features(world.decode(draft)))
        print(f"  {seed}: {at + len(group)} of {len(texts)} prompts", flush=True)
    return found


def sample(
    world, texts: list[str], noise: Tensor, steps: int, scheduler: str, predictions: list | None = None
) -> Tensor:
    """Raw latents by euler; the raw predictions of every step are added to `predictions`."""
    import comfy.sample

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        if predictions is not None:
            predictions.append(world.model.model.process_latent_out(x0.float()))

    return comfy.sample.sample(
        world.model, noise, steps, CFG, "euler", scheduler, world.condition(texts), world.condition([""] * len(texts)),
        torch.zeros_like(noise), disable_pbar=True, callback=callback,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- schedules


@dataclass(frozen=True)
class Schedule:
    """Draft all in `draft` steps and sample the best `sampled`, or, with draft 0, sample all; cut at (step, keep) of the sampling."""

    draft: int
    sampled: int
    cuts: tuple[tuple[int, int], ...] = ()

    def cost(self, of: int) -> float:
        """Share of the model steps of finishing all `of`."""
        spent, alive, since = of * self.draft, self.sampled if self.draft else of, 0
        for step, keep in self.cuts:
            spent, alive, since = spent + alive * (step + 1 - since), keep, step + 1
        return (spent + alive * (STEPS - since)) / (of * STEPS)

    def choose(self, scores: Scores, judge: str) -> Tensor:
        """Index of the candidate that wins each prompt: (P,)."""
        alive = torch.ones_like(scores.right, dtype=torch.bool)
        looks = [(scores.drafts[judge][self.draft], self.sampled)] if self.draft else []
        looks += [(scores.steps[judge][..., step], keep) for step, keep in self.cuts]
        for values, keep in looks:
            order = values.masked_fill(~alive, -math.inf).argsort(dim=1, descending=True)
            alive = torch.zeros_like(alive).scatter(1, order[:, :keep], True)
        return scores.final[judge].masked_fill(~alive, -math.inf).argmax(dim=1)

    def __str__(self) -> str:
        cuts = [f"after step {step + 1} keep {keep}" for step, keep in self.cuts]
        draft = f"draft of {self.draft} steps, {self.sampled} {'sampled' if cuts else 'finished'}"
        return ", ".join([draft] * bool(self.draft) + cuts)


def schedules(of: int, budget: float) -> dict[str, list[Schedule]]:
    """All that are tried, by kind, within a budget."""
    drafts = [Schedule(d, keep) for d in DRAFTS for keep in range(1, of)]
    places, keeps = range(2, STEPS - 1, 2), sorted({max(1, of * share // 8) for share in (1, 2, 3, 4, 5, 6)})
    cuts = [Schedule(0, of, ((s, k),)) for s in places for k in keeps]
    cuts += [
        Schedule(0, of, ((s, k), (t, m))) for s, t in combinations(places, 2) for k in keeps for m in keeps if m < k
    ]  # fmt: skip
    both = [
        Schedule(d, n, ((s, k),)) for d in DRAFTS for n in range(2, of) for s in places for k in range(1, n)
    ]  # fmt: skip
    fits = {"drafts": drafts, "cuts": cuts, "both": both}
    return {kind: [s for s in every if s.cost(of) <= budget + 1e-9] for kind, every in fits.items()} | planned(
        of, budget
    )


def planned(of: int, budget: float, keep: int = 2) -> dict[str, list[Schedule]]:
    """Plans of the node itself for the budget, where it can keep to it, by `look`."""
    plans = {look: plan_search(look, of, keep, (1,) * STEPS, budget) for look in ("drafts", "cuts", "both")}
    return {
        f"the node's {look}": [Schedule(p.draft_steps, p.sampled, tuple((cut.step - 1, cut.keep) for cut in p.cuts))]
        for look, p in plans.items()
        if p.cost <= budget * p.plain + 1e-9 and p.draft_steps in (0, *DRAFTS)
    }


def gains(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Gain of the choice over the mean, and gain of the best of all: (P,) each. Their sums' ratio is g."""
    mean = values.mean(dim=1)
    return values.gather(1, chosen[:, None])[:, 0] - mean, values.amax(dim=1) - mean


def best_of(values: Tensor, right: Tensor, count: float) -> tuple[Tensor, Tensor]:
    """Expected value, and judged success, of the best of `count` candidates drawn without putting back: (P,) each.

    A count that is not whole is a mixture of its neighbours, so that the cost is equal on average.
    """
    low, share = math.floor(count), count - math.floor(count)
    results = []
    for m in (low, low + 1):
        order = values.argsort(dim=1, descending=True)
        n = values.shape[1]
        # the i-th best is the best of a draw when it is in it and none of the i better ones is
        weights = torch.tensor(
            [math.comb(n - 1 - i, m - 1) / math.comb(n, m) if m <= n and n - 1 - i >= m - 1 else 0.0 for i in range(n)]
        )
        results.append(((values.gather(1, order) * weights).sum(1), (right.float().gather(1, order) * weights).sum(1)))
    if share == 0 or low + 1 > values.shape[1]:
        return results[0]
    return tuple((1 - share) * a + share * b for a, b in zip(*results))


def interval(top: Tensor, bottom: Tensor, rounds: int = 2000) -> tuple[float, float, float]:
    """sum(top) / sum(bottom) with its bootstrap 95 % interval over prompts."""
    picks = torch.randint(len(top), (rounds, len(top)), generator=torch.Generator().manual_seed(0))
    ratios = (top[picks].sum(1) / bottom[picks].sum(1)).sort().values
    return (top.sum() / bottom.sum()).item(), ratios[int(0.025 * rounds)].item(), ratios[int(0.975 * rounds) - 1].item()


def within_prompt_correlation(early: Tensor, final: Tensor) -> float:
    """Mean over prompts of Spearman's ρ between two scores of the same candidates (P, N)."""
    ranks = [x.argsort(dim=1).argsort(dim=1).float() for x in (early, final)]
    a, b = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()


def compare(tuning: Scores, fresh: Scores) -> list[dict]:
    """One row per judge, number of candidates, budget and kind: the schedule that won on the tuning prompts, on fresh ones."""
    rows = []
    for judge in (LATENT, PIXEL):
        for of in SIZES:
            known, new = tuning.first(of), fresh.first(of)
            for budget in BUDGETS:
                for kind, every in schedules(of, budget).items():
                    if not every or (judge == PIXEL and not kind.endswith("drafts")):  # predictions were not decoded
                        continue

                    def value(schedule: Schedule, judge: str = judge, known: Scores = known) -> float:
                        top, bottom = gains(known.final[judge], schedule.choose(known, judge))
                        return (top.sum() / bottom.sum()).item()

                    best = max(every, key=value)
                    chosen = best.choose(new, judge)
                    top, bottom = gains(new.final[judge], chosen)
                    equal, success = best_of(new.final[judge], new.right, best.cost(of) * of)
                    right = new.right.gather(1, chosen[:, None])[:, 0].float()
                    rows.append({
                        "judge": judge, "of": of, "budget": budget, "kind": kind, "schedule": str(best), "cost": best.cost(of),
                        "g": interval(top, bottom), "equal": interval(equal - new.final[judge].mean(1), bottom),
                        "over equal": interval(new.final[judge].gather(1, chosen[:, None])[:, 0] - equal, bottom),
                        "right": interval(right, torch.ones_like(right)), "equal right": interval(success, torch.ones_like(success)),
                        "right over equal": interval(right - success, torch.ones_like(right)),
                    })  # fmt: skip
    return rows


def clock(scale: float) -> dict:
    """Seconds of Search Best Images, of a plain batch of all, and of a plain batch at equal cost: medians of turns in one run."""
    import time

    import comfy.utils
    from comfy.samplers import CFGGuider, calculate_sigmas, sampler_object
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    from ...host.search.run import run_search
    from ...host.search.state import SearchSettings
    from ...methods.rewards import text_reward
    from ..measures import World

    comfy.utils.PROGRESS_BAR_ENABLED = False
    world, text = World(), "a red circle above a blue star"
    guider = CFGGuider(world.model)
    guider.set_conds(world.condition([text]), world.condition([""]))
    guider.set_cfg(CFG)
    sigmas = calculate_sigmas(world.model.get_model_object("model_sampling"), "normal", STEPS)
    reward = text_reward(world.latent_clip.encoder("tiles"), "match", world.latent_clip.encode_text([text])[0])
    settings = SearchSettings(candidates=OF, keep=2, budget=0.5)

    def search(seed: int) -> float:
        result = run_search(
            Noise_RandomNoise(seed),
            guider,
            sampler_object("euler"),
            sigmas,
            {"samples": torch.zeros(1, 4, 8, 8)},
            reward,
            settings,
        )
        return result.report["cost_spent"] / result.report["cost_plain"]

    def plain(count: int, seed: int) -> None:
        latent = torch.zeros(count, 4, 8, 8)
        noise = Noise_RandomNoise(seed).generate_noise({"samples": latent})
        made = guider.sample(noise, latent, sampler_object("euler"), sigmas, seed=seed, disable_pbar=True)
        reward(made)

    times: dict[str, list[float]] = {"search": [], "plain, all": [], "plain, equal cost": []}
    with torch.inference_mode():
        share = search(0)
        ways = {
            "search": search,
            "plain, all": lambda s: plain(OF, s),
            "plain, equal cost": lambda s: plain(round(share * OF), s),
        }
        for turn in range(max(3, round(9 * scale))):
            for name, way in ways.items():
                began = time.perf_counter()
                way(turn)
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {"share": share, "candidates": OF, "seconds": medians}


@torch.no_grad()
def measure(scale: float) -> dict:
    """Everything that the document states."""
    protocol = (CATEGORIES, PROMPTS, TUNING, OF, STEPS, CFG, DRAFTS, scale)
    kept = Kept("search_study", protocol, ROOT / "demo/judge.py")
    count, tuning = max(3, round(PROMPTS * scale)), max(3, round(TUNING * scale))
    known = Scores.of(kept.get("tuning", lambda: collect("tune search", tuning, 91_000)))
    fresh = Scores.of(kept.get("fresh", lambda: collect("search study", count, 92_000)))
    steps = [within_prompt_correlation(fresh.steps[LATENT][..., s], fresh.final[LATENT]) for s in range(STEPS)]
    drafts = {
        judge: {str(d): within_prompt_correlation(v, fresh.final[judge]) for d, v in by.items()}
        for judge, by in fresh.drafts.items()
    }
    right = fresh.right.float()
    return {
        "prompts": len(fresh.right), "of": OF, "steps": STEPS, "cfg": CFG,
        "right": right.mean().item(), "any right": right.amax(dim=1).mean().item(),
        "correlation": {"steps": steps, "drafts": drafts}, "rows": compare(known, fresh), "clock": kept.get("clock", lambda: clock(scale)),
    }  # fmt: skip


def _percent(value: Sequence[float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value[0]:{sign}.1f} ({100 * value[1]:{sign}.1f} to {100 * value[2]:{sign}.1f})"


def _share(value: Sequence[float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value[0]:{sign}.2f} ({value[1]:{sign}.2f} to {value[2]:{sign}.2f})"


def report(results: dict) -> str:
    """The measured part of the document as markdown."""
    head = [
        "candidates",
        "budget",
        "looks at",
        "schedule",
        "cost",
        "g",
        "fewer seeds",
        "difference",
        "judged right, %",
        "fewer seeds",
        "difference",
    ]
    parts = []
    for judge in (LATENT, PIXEL):
        rows = [
            [row["of"], f"{100 * row['budget']:.0f} %", row["kind"], row["schedule"], f"{100 * row['cost']:.0f} %", _share(row["g"]),
             f"{row['equal'][0]:.2f}", _share(row["over equal"], True), _percent(row["right"]), f"{100 * row['equal right'][0]:.1f}",
             _percent(row["right over equal"], True)]
            for row in results["rows"] if row["judge"] == judge
        ]  # fmt: skip
        parts += [
            f"### Chosen by {judge}: gain fraction g and judged success, against fewer seeds at equal cost (95 % bootstrap over prompts)",
            table(head, rows),
        ]
    correlation, seconds = results["correlation"], results["clock"]["seconds"]
    drafts = [
        [f"draft of {d} steps", *(f"{correlation['drafts'][judge][str(d)]:.2f}" for judge in (LATENT, PIXEL))]
        for d in DRAFTS
    ]
    steps = [[f"prediction after step {s + 1}", f"{value:.2f}", ""] for s, value in enumerate(correlation["steps"])]
    return "\n\n".join([
        f"{results['prompts']} prompts of pairs that no training caption shows, {results['of']} candidates each, {results['steps']} steps of euler at cfg {results['cfg']:g}. "
        f"{100 * results['right']:.1f} % of all pictures are right; for {100 * results['any right']:.1f} % of the prompts at least one is.",
        *parts,
        "### How well a look tells the end: mean rank correlation within a prompt",
        table(["look", LATENT, PIXEL], [*drafts, *steps]),
        f"### The clock: {results['clock']['candidates']} candidates, two kept, {100 * results['clock']['share']:.0f} % of the model evaluations",
        table(["way", "seconds", "of the plain batch"], [[name, f"{value:.2f}", f"{100 * value / seconds['plain, all']:.0f} %"] for name, value in seconds.items()]),
    ])  # fmt: skip


def plot(results: dict) -> None:
    """docs/images/search-study.png: g over cost, for drafts, cuts and fewer seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SIZES), figsize=(10, 4.2), layout="constrained", sharey=True)
    for axis, of in zip(axes, SIZES):
        rows = [row for row in results["rows"] if row["of"] == of and row["judge"] == LATENT]
        for kind, colour in (("drafts", "#2e6f40"), ("cuts", "#b5651d"), ("both", "#4a6fa5")):
            mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["cost"])
            values = [row["g"] for row in mine]
            bars = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
            axis.errorbar(
                [100 * row["cost"] for row in mine],
                [v[0] for v in values],
                bars,
                marker="o",
                label=kind,
                color=colour,
                capsize=3,
            )
        equal = sorted((row["cost"], row["equal"][0]) for row in rows)
        axis.plot([100 * c for c, _ in equal], [g for _, g in equal], "--", color="#555555", label="fewer seeds")
        axis.set(title=f"best of {of}", xlabel="cost, % of finishing all", ylim=(0.4, 1.0))
    axes[0].set_ylabel("gain fraction g")
    axes[0].legend()
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "search-study.png", dpi=90)
    pyplot.close(figure)


def main() -> None:
    """Measure what is not kept, and write results, tables and the plot."""
    options = begin(__doc__ or "")
    results = measure(options.scale)
    text = report(results)
    print(text)
    if options.no_write:
        return
    publish(results, text, RESULTS, DOCUMENT)
    plot(results)


if __name__ == "__main__":
    main()
