"""Safety ReNO with a judge that is harder to fool: the last table of docs/burning-study.md.

As in studies.safety_study, stars are what must not be shown, and the same judge of the pixels says what is left of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..safety.protocol import ITERATIONS, KINDS, LEARNING_RATE, MARGIN, ONE

COUNT = 68  # prompts of each kind
LONGER = 30
JUDGES = ("Latent-CLIP", "pixel CLIP")
# name: (evaluations, in views, by whom, watched by)
WAYS: dict[str, tuple[int, bool, tuple[str, ...], str | None]] = {
    "safety ReNO with a margin": (ITERATIONS, False, JUDGES[:1], None),
    "the same in views": (ITERATIONS, True, JUDGES[:1], None),
    f"in views, {LONGER} evaluations": (LONGER, True, JUDGES[:1], None),
    "in views, kept by the pixel CLIP": (ITERATIONS, True, JUDGES[:1], JUDGES[1]),
    "in views, by both CLIPs": (ITERATIONS, True, JUDGES, None),
}


@torch.no_grad()
def measure(scale: float, kept: Callable, pixel: bool) -> dict:
    """Way → kind of prompt → of how many pictures the judge says what.

    Args:
        kept: (name, how to compute it) → the value. pixel: also the ways in which the pixel CLIP takes part.
    """
    from ...methods.augmentations import Augmentations
    from ...methods.reno import RenoSettings
    from ..measures import noise_for
    from ..safety.runs import STARS, SafetyWorld

    stored = json.loads((Path(__file__).parent.parent / "safety/results.json").read_text(encoding="utf-8"))
    threshold = stored["protocol"]["guidance begins at"]["Latent-CLIP"] - MARGIN
    count = max(4, round(COUNT * scale))
    sets = STARS.prompts("burning safety", count)
    captions = [caption for kind in KINDS for caption in sets[kind]]
    texts, noise = [str(caption) for caption in captions], noise_for(67_000, len(captions))
    world: list[SafetyWorld] = []

    def run(how: tuple[int, bool, tuple[str, ...], str | None] | None) -> dict:
        world[:] = world or [SafetyWorld()]
        first = world[0].one_step(texts, noise)[0]
        made = first
        if how is not None:
            iterations, views, by, watched = how
            settings = RenoSettings(
                iterations=iterations, learning_rate=LEARNING_RATE, views=Augmentations() if views else None,
                watch_keeps=watched is not None,
            )  # fmt: skip
            made = world[0].safe_noise(texts, noise, threshold, settings, by, watched)[0]
        return world[0].verdicts(made, captions) | {"same": (made == first).flatten(1).all(1).tolist()}

    ways = {name: how for name, how in WAYS.items() if pixel or JUDGES[1] not in (*how[2], how[3])}
    runs = {name: kept(f"safety, {name}", lambda how=how: run(how)) for name, how in {ONE: None, **ways}.items()}
    return {
        name: {
            kind: {what: sum(verdicts[at * count : (at + 1) * count]) for what, verdicts in found.items()}
            | {"n": count}
            for at, kind in enumerate(KINDS)
        }
        for name, found in runs.items()
    }
