"""What a noise-aware Latent-CLIP is used for: Safety Guidance that begins early, and Search that cuts early; beside what else the same cost buys.

The pictures of every way begin at the same noises. An item that guidance never suspects is bit for bit the picture without it, so that
only suspects are sampled again. Thresholds are taken from innocent prompts of their own by one rule for all judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..demo.captions import THINGS, Caption
from ..host.concepts import directions
from ..host.latent_clip import LoadedLatentCLIP
from ..host.looks import Looks
from ..host.steering import Window
from ..methods.rewards import told
from . import search_study
from .half_finished import CHUNK, SAMPLING, follow, is_fresh, score
from .measures import World, noise_for, sample_prompts
from .safety_ahead import DRAFT, draw_all, looking
from .safety_protocol import INSTEAD, KINDS, NONE
from .safety_runs import STARS, Judge, SafetyWorld

ALARMS, COUNTS = 600, {"asked": 100, "hinted": 200, "unrelated": 300}  # prompts
RATE = 0.005  # of the alarms, that may be suspected
STARTS = (0.1, 0.2)
SHIPPED, AWARE, AHEAD = "shipped", "aware", "look-ahead"
CATEGORIES = {"hinted": ("and", "relation"), "unrelated": ("single", "and", "relation")}


def fresh_prompts(seed: str, count: int, kind: str) -> list[Caption]:
    """Captions of a kind of the safety study: those of two things are ones that the tower has not learnt from."""
    if kind == "asked":
        return ([Caption((thing,)) for thing in THINGS if STARS.forbids(thing)] * count)[:count]
    found: list[Caption] = []
    for number, category in enumerate(CATEGORIES[kind]):
        wanted = count * (number + 1) // len(CATEGORIES[kind]) - len(found)
        drawn = sample_prompts(f"{seed} {kind} {category}", 24 * wanted, category)
        known = [c for c in drawn if category == "single" or is_fresh(c)]
        found += [c for c in known if sum(map(STARS.forbids, c.things)) == (kind == "hinted")][:wanted]
    return found


@torch.no_grad()
def log_odds(judge: Judge, steps: Sequence[Tensor], levels: Sequence[float]) -> Tensor:
    """Of a star, in what is predicted after every step: (N, steps)."""

    def seen(x0: Tensor, level: float) -> Tensor:
        look = told(judge.watcher, judge.watcher.look, level)
        return torch.cat([judge.concepts.worst(look(part).windows)[:, 0] for part in x0.split(CHUNK)])

    return torch.stack([seen(x0, level) for x0, level in zip(steps, levels)], dim=1)


def lowest_threshold(scores: Tensor, rate: float = RATE) -> float:
    """In tenths, the lowest that at most this share of innocent scores (N,) is above."""
    return math.ceil(10 * scores.sort(descending=True).values[int(rate * len(scores))].item()) / 10


def first_steps(world: World) -> dict[float, int]:
    """The first step at which guidance looks, by its start."""
    import comfy.samplers

    sigmas = comfy.samplers.KSampler(world.model, SAMPLING, "cpu", "euler", "normal", 1.0).sigmas.tolist()
    sampling = world.model.get_model_object("model_sampling")
    return {start: Window(start, 1.0).steps(sigmas, sampling)[0] for start in STARTS}


def with_aware(aware: LoadedLatentCLIP) -> SafetyWorld:
    """The safety study's world with one more judge."""
    world = SafetyWorld()
    world.judges[AWARE] = replace(
        world.judges["Latent-CLIP"], watcher=aware.watcher("tiles"), concepts=directions(aware, STARS.concepts)
    )
    world.judges[SHIPPED] = world.judges["Latent-CLIP"]
    return world


@torch.no_grad()
def thresholds(world: SafetyWorld, name: str) -> dict[str, float]:
    """Of a judge by "judge, start", or of look-ahead's drafts: from ALARMS innocent prompts, which nothing else here has."""
    texts = [str(c) for c in fresh_prompts("half finished alarms", ALARMS, "unrelated")]
    noise = noise_for(810_000, len(texts))
    if name == AHEAD:
        drafts = draw_all(world, texts, noise, steps=DRAFT, scheduler="simple")
        return {AHEAD: lowest_threshold(torch.tensor(world.judges[SHIPPED].scores(drafts)))}
    seen = log_odds(world.judges[name], *follow(world.world, texts, noise)[1:])
    return {f"{name}, {start}": lowest_threshold(seen[:, at:].amax(1)) for start, at in first_steps(world.world).items()}


@torch.no_grad()
def guided(world: SafetyWorld, limits: dict[str, float], name: str) -> dict:
    """Way of a judge, or of look-ahead → verdicts of every picture, in the order of COUNTS; `suspect`: who was sampled again."""
    captions = [c for kind in KINDS for c in fresh_prompts("half finished safety, again", COUNTS[kind], kind)]
    texts, noise = [str(c) for c in captions], noise_for(860_000, len(captions))
    plain, steps, levels = follow(world.world, texts, noise)
    first = world.verdicts(plain, captions)

    def again(suspect: Tensor, model) -> dict:
        rows = suspect.nonzero().flatten().tolist()
        made = draw_all(world, [texts[row] for row in rows], noise[rows], model=model)
        changed = world.verdicts(made, [captions[row] for row in rows])
        merged = {key: list(values) for key, values in first.items()} | {"suspect": suspect.tolist()}
        for at, row in enumerate(rows):
            for key, values in changed.items():
                merged[key][row] = values[at]
        return merged

    if name == NONE:
        return {NONE: first | {"suspect": [False] * len(texts)}}
    if name == AHEAD:
        drafts = draw_all(world, texts, noise, steps=DRAFT, scheduler="simple")
        shown = torch.tensor(world.judges[SHIPPED].scores(drafts)) > limits[AHEAD]
        return {AHEAD: again(shown, looking(world, {SHIPPED: limits[AHEAD]}, Looks()))}
    seen, runs = log_odds(world.judges[name], steps, levels), {}
    for start, at in first_steps(world.world).items():
        limit = limits[f"{name}, {start}"]
        runs[f"{name}, {start}"] = again(seen[:, at:].amax(1) > limit, world.redirected(name, limit, start, INSTEAD))
    return runs


# ---------------------------------------------------------------------------------------------------------- search

TUNING, PROMPTS, CANDIDATES = 12, 40, 16  # per category; of Search's study


@dataclass(frozen=True)
class Looked:
    """Scores of every candidate as `search_study.Scores` has them, the "judges" being who looks at predictions; no verdicts."""

    right: Tensor
    final: dict[str, Tensor]
    drafts: dict[str, dict[int, Tensor]]
    steps: dict[str, Tensor]


@torch.no_grad()
def collect(world: World, aware, seed: str, count: int, noise_seed: int) -> dict:
    """Finish, draft and predict the candidates of every prompt, and score all of it."""
    captions = [c for name in ("and", "relation") for c in sample_prompts(f"{seed} {name}", count, name, held_out=True)]
    texts = [str(c) for c in captions for _ in range(CANDIDATES)]
    text = world.latent_clip.encode_text([str(c) for c in captions]).repeat_interleave(CANDIDATES, 0)
    shipped, noise = world.latent_clip.image.model, noise_for(noise_seed, len(texts))
    latents, steps, levels = follow(world, texts, noise, search_study.STEPS, search_study.CFG)

    def by(scores: Tensor) -> list:
        return scores.unflatten(0, (-1, CANDIDATES)).tolist()

    drafts = {}
    for number in search_study.DRAFTS:
        made = [search_study.sample(world, texts[at : at + CHUNK], noise[at : at + CHUNK], number, "simple") for at in range(0, len(texts), CHUNK)]
        drafts[str(number)] = by(score(shipped, torch.cat(made), text))
    return {
        "final": by(score(shipped, latents, text)), "drafts": drafts,
        SHIPPED: by(torch.stack([score(shipped, x0, text) for x0 in steps], 1)),
        AWARE: by(torch.stack([score(aware, x0, text, level) for x0, level in zip(steps, levels)], 1)),
    }  # fmt: skip


def looked(kept: dict) -> Looked:
    """From the JSON of `collect`: the finished pictures and the drafts are judged by the same tower for both."""
    final = torch.tensor(kept["final"])
    drafts = {int(d): torch.tensor(values) for d, values in kept["drafts"].items()}
    names = (SHIPPED, AWARE)
    steps = {name: torch.tensor(kept[name]) for name in names}
    return Looked(torch.zeros_like(final), dict.fromkeys(names, final), dict.fromkeys(names, drafts), steps)


def compare(tuning: Looked, fresh: Looked) -> list[dict]:
    """Per budget: g of drafts, of cuts by either tower, each with the schedule that won on the tuning prompts, and of fewer seeds."""
    rows, values = [], fresh.final[SHIPPED]
    best = values.amax(1) - values.mean(1)
    for budget in search_study.BUDGETS:
        every = search_study.schedules(CANDIDATES, budget)
        for kind, judge in (("drafts", SHIPPED), ("cuts", SHIPPED), ("cuts", AWARE)):

            def g_when_tuning(schedule, judge: str = judge) -> float:
                top, bottom = search_study.gains(tuning.final[judge], schedule.choose(tuning, judge))
                return (top.sum() / bottom.sum()).item()

            schedule = max(every[kind], key=g_when_tuning)
            top = search_study.gains(values, schedule.choose(fresh, judge))[0]
            fewer = search_study.best_of(values, fresh.right, schedule.cost(CANDIDATES) * CANDIDATES)[0] - values.mean(1)
            rows.append({
                "budget": budget, "looks at": kind if kind == "drafts" else f"{kind}, {judge}", "schedule": str(schedule), "cost": schedule.cost(CANDIDATES),
                "g": search_study.interval(top, best), "fewer seeds": search_study.interval(fewer, best)[0],
                "over fewer seeds": search_study.interval(top - fewer, best), "gains": top.tolist(),
            })  # fmt: skip
    for row in rows:
        other = next(r for r in rows if r["budget"] == row["budget"] and r["looks at"] == f"cuts, {SHIPPED}")
        row["over shipped cuts"] = search_study.interval(torch.tensor(row["gains"]) - torch.tensor(other["gains"]), best)
    return rows


@torch.no_grad()
def correlations(fresh: Looked) -> dict[str, list[float]]:
    """Within a prompt, of the score after each step with the last one, by who looks."""
    return {
        name: [search_study.within_prompt_correlation(steps[..., at], fresh.final[name]) for at in range(steps.shape[-1])]
        for name, steps in fresh.steps.items()
    }
