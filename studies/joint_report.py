"""The section of the training study on the joint fine-tune: what is measured, and its tables."""

from __future__ import annotations

import numpy as np

from ..evaluation.statistics import Rate
from . import joint as study
from .measures import clip_verdicts
from .report import Kept, difference, table

SCENES, PROMPTS, OF = 400, 150, 8


def measure(kept: Kept, world) -> dict:
    """Every arm: the five tasks, round trip, image to image, and its choice among pictures of the unchanged generator."""
    arms = {name: measure_arm(kept, world, name) for name in study.ARMS}
    tasks = {name: arm["tasks"] for name, arm in arms.items()}
    return {"arms": arms, "tasks": tasks}


def measure_arm(kept: Kept, world, name: str) -> dict:
    """Train an arm if it is not, and measure it; several processes may do an arm each."""
    arm, before, seed = study.ARMS[name], study.shipped_pair(), "training study"
    seconds = kept.get(f"joint: {name}, seconds", lambda: study.trained_pair(name, arm).seconds if arm else 0.0)
    pair = study.trained_pair(name, arm) if arm else before
    vae = name if arm and arm.vae else "shipped"  # whose pictures these are

    def best_of() -> dict:
        return study.best_of(pair, *study.generated(world, seed, PROMPTS, OF))

    return {
        "seconds": seconds,
        "tasks": kept.get(f"joint: {name}, tasks", lambda: clip_verdicts(pair.texts, lambda s: pair.images(pair.encode(s)), SCENES, f"{seed} joint")),
        "round trip": kept.get(f"joint: {vae}, round trip", lambda: study.round_trip(pair, before, seed, SCENES)),
        "redrawn": kept.get(f"joint: {vae}, redrawn", lambda: study.redrawn(pair, world, seed, SCENES)),
        "best": kept.get(f"joint: {name}, best of eight", best_of),
    }  # fmt: skip


def report(results: dict) -> str:
    """The section as markdown."""
    arms, tasks = results["arms"], results["tasks"]
    shipped, trained = arms["shipped"], [name for name in arms if name != "shipped"]
    together = [name for name in trained if study.ARMS[name].vae]
    what = [[
        name, study.ARMS[name].vae or "nothing", study.ARMS[name].steps, f"{arms[name]['seconds'] / 60:.1f}",
        f"{study.ARMS[name].lr:g}", f"{study.ARMS[name].vae_lr:g}" if study.ARMS[name].vae else "–",
        *(f"{getattr(study.ARMS[name].leash, key):g}" for key in ("l1", "kl", "distance")),
    ] for name in trained]  # fmt: skip
    rates = [[task, *(Rate.of(tasks[name][task]) for name in arms)] for task in tasks["shipped"]]
    against = [
        [task, name, *(difference(tasks[name][task], tasks[other][task]) for other in ("frozen", "shipped"))]
        for task in tasks["shipped"] for name in together
    ]  # fmt: skip
    trips = [[
        name, f"{arms[name]['round trip']['distance']:.4f}", f"{np.mean(arms[name]['round trip']['psnr']):.2f}",
        difference(arms[name]["round trip"]["psnr"], shipped["round trip"]["psnr"]), Rate.of(arms[name]["round trip"]["read right"]),
        difference(arms[name]["round trip"]["read right"], shipped["round trip"]["read right"]), Rate.of(arms[name]["redrawn"]),
        difference(arms[name]["redrawn"], shipped["redrawn"]),
    ] for name in ["shipped", *together]]  # fmt: skip
    best = [[
        name, Rate.of(arms[name]["best"]["first"]), Rate.of(arms[name]["best"]["best"]),
        difference(arms[name]["best"]["best"], shipped["best"]["best"]), difference(arms[name]["best"]["best"], arms["frozen"]["best"]["best"]),
    ] for name in arms]  # fmt: skip
    return "\n\n".join([
        "## VAE and Latent-CLIP together",
        f"The shipped VAE and Latent-CLIP go on for {study.STEPS} steps of {study.BATCH} scenes with the Latent-CLIP's own loss, text tower "
        "frozen; the arms see the same scenes in the same order. *frozen* trains the image tower alone.",
        table(["arm", "trained of the VAE", "steps", "processor minutes", "learning rate", "of the VAE", "λ L1", "λ KL", "λ distance"], what),
        table(["task", *arms], rates),
        "Paired differences:",
        table(["task", "arm", "− frozen", "− shipped"], against),
        "What it does to the VAE, with the unchanged generator: distance of the latents in variances of each channel; round trip of fresh "
        "scenes; and image to image (half the noise, four steps), begun from a picture as the new VAE encodes it.",
        table(["arm", "distance", "PSNR, dB", "− shipped", "round trip read right", "− shipped", "redrawn right", "− shipped"], trips),
        f"{OF} one-step pictures of the unchanged generator for each of {PROMPTS} prompts, decoded by the arm's own decoder: the first, and "
        "the one that the arm's own tower chooses; judged success.",
        table(["arm", "first", "best of eight", "best − shipped", "best − frozen"], best),
    ])  # fmt: skip
