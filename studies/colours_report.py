"""The section of the training study on swapped colours: what is measured, and its tables."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo.corpus import tokenize
from ..demo.scenes import render
from ..demo.train_clip import normalised
from ..evaluation.statistics import Rate
from ..models.checkpoint import read_checkpoint
from ..models.latent_clip import load_latent_clip
from ..models.latent_spaces import LATENT_SPACES
from ..models.pixel_clip import read_pixel_clip
from ..models.shapes_world import load_pixel_clip
from . import colours, second_vae
from .measures import CHUNK, World, clip_verdicts
from .quick_clip import Quick
from .report import Kept, difference, table

TEACHER = "pixels, last 2000"  # of the second VAE's tower, distilled again
SWAPPED, REVERSED = "colours swapped", "relation reversed"
TASKS = ("single, of 30", SWAPPED, REVERSED, f"{SWAPPED}, held-out pairs", f"{REVERSED}, held-out pairs")


def measure(world: World) -> dict:
    """Verdicts of the shipped CLIPs, the distilled tower and every arm; the curves of those from nothing."""
    kept, given = Kept(*colours.KEPT), colours.inputs(world)
    tasks = {
        name: kept.get(name, lambda reads=reads: colours.verdicts(
            Quick(colours.shipped(reads), given[reads].read), given[reads], colours.FRESH, colours.SCENES))
        for name, reads in (("shipped Latent-CLIP", "4 channels"), ("shipped pixel CLIP", "pixels"))
    }  # fmt: skip
    tasks["shipped pixel CLIP, decoded"] = kept.get("decoded", lambda: _decoded_verdicts(world))
    made = kept.get("distilled: made", lambda: _distil(world))
    tasks["distilled"] = kept.get("distilled", lambda: _distilled_verdicts(world, Path(made["file"])))
    cells = {name: kept.get(f"one cell, {name}", lambda name=name: colours.readable(given[name])) for name in given}
    for arm in colours.ARMS:
        if colours.curve(arm, kept) is None:
            colours.run(arm, given[arm.reads], kept)
        if not arm.until:
            tasks[arm.key] = kept.values[arm.key]
    curves = {arm.title: colours.curve(arm, kept) for arm in colours.ARMS}
    second = kept.get(f"second VAE from {TEACHER}", lambda: _second_vae(kept, world, given))
    return {"tasks": tasks, "made": made, "cells": cells, "curves": curves, "second": second}


def _decoded_verdicts(world: World) -> dict[str, list[bool]]:
    """The pixel CLIP on what the decoder makes of the latents."""

    def features(scenes: list) -> Tensor:
        return world.pixel_features(world.decode(world.encode(render(scenes))))

    return clip_verdicts(world.pixel_clip.text.encode, features, colours.SCENES, colours.FRESH)


def _distil(world: World) -> dict:
    """A tower for the shipped VAE's latents, as the second VAE's was made: pictures alone, the pixel CLIP's features."""
    space, teacher = LATENT_SPACES["shapes-world"], load_pixel_clip()
    held_out, pictures = (
        second_vae.embed_scenes(name, count, world.encode, space, "shapes-world", teacher)
        for name, count in (("held_out4", second_vae.HELD_OUT), ("pictures4", second_vae.PICTURES))
    )
    path, seconds = second_vae.distil(pictures, held_out, "distilled4")
    return {"file": str(path), "seconds": seconds}


def _distilled_verdicts(world: World, path: Path) -> dict[str, list[bool]]:
    checkpoint = read_checkpoint(path)
    clip = load_latent_clip(checkpoint.config, checkpoint.state_dict)

    def features(scenes: list) -> Tensor:
        return torch.cat([F.normalize(clip.visual(part), dim=-1) for part in world.encode(render(scenes)).split(CHUNK)])

    return clip_verdicts(world.pixel_clip.text.encode, features, colours.SCENES, colours.FRESH)


def _second_vae(kept: Kept, world: World, given: dict[str, colours.Input]) -> dict[str, dict[str, list[bool]]]:
    """The second VAE's tower distilled from the pixel CLIP that was trained on: its tasks, its teacher's, the closed form's."""
    arm = next(arm for arm in colours.ARMS if arm.key == TEACHER)
    file, vae = colours.write_teacher(colours.run(arm, given[arm.reads], kept)), second_vae.second_vae()
    teacher = read_pixel_clip(file)
    held_out, pictures = (
        second_vae.make_shards(vae, name, count, teacher)
        for name, count in (("held_out16_again", second_vae.HELD_OUT), ("pictures16_again", second_vae.PICTURES))
    )
    path, _ = second_vae.distil(pictures, held_out, "distilled16_again", str(file))

    def text(texts: list[str]) -> Tensor:
        return F.normalize(teacher.model.text(tokenize(texts)), dim=-1)

    def image(pictures: Tensor) -> Tensor:
        return torch.cat([F.normalize(teacher.model.visual(normalised(part)), dim=-1) for part in pictures.split(CHUNK)])

    return {
        name: clip_verdicts(texts, lambda scenes, see=see: see(render(scenes)), colours.SCENES, colours.FRESH)
        for name, (texts, see) in second_vae.towers(vae, world, path, (text, image)).items()
    }


# ------------------------------------------------------------------------------------------------------- as markdown


def report(results: dict) -> str:
    """The section."""
    tasks, curves = results["tasks"], results["curves"]
    shares = [[name, *(_share(by[task]) for task in TASKS)] for name, by in tasks.items()]
    pairs = [[f"{a} − {b}", *(difference(tasks[a][task], tasks[b][task]) for task in TASKS[1:])] for a, b in PAIRS]
    steps = sorted({step for points in curves.values() for step in points})
    points = [[step, *(_point(points.get(step)) for points in curves.values())] for step in steps]
    cells = [[name, *(_share(right) for right in by.values())] for name, by in results["cells"].items()]
    second = results["second"]
    again = [
        [task, *(_share(by[task]) for by in second.values()),
         *(difference(second["distilled"][task], second[other][task]) for other in ("teacher", "closed form"))]
        for task in TASKS
    ]  # fmt: skip
    return "\n\n".join([
        "## Colours swapped",
        f"Per cent right of {colours.SCENES} fresh scenes a task, the same for all, with Wilson's interval. The distilled tower was made in "
        f"{results['made']['seconds'] / 60:.1f} processor minutes, the encoding apart; \"decoded\" reads what the VAE's decoder makes of the latents. \"500\", \"2000\": the shipped weights "
        "trained on for so many steps, \"last\" with the recipe's last mixture, in which a pair's third near miss swaps colours in "
        f"{100 * colours.LAST.swap_share:.0f} % and else reverses the relation, \"equal\" with as many of either.",
        table(["", *TASKS], shares),
        "Paired differences:",
        table(["", *TASKS[1:]], pairs),
        f"While they trained, on {colours.TUNING_SCENES} other scenes a task, the weights not averaged and the learning rate still high: per cent "
        "right of single captions / colours swapped / relation reversed. \"From nothing\" is the recipe's first stage, stopped; "
        f"{100 * colours.FIRST.swap_share:.0f} % of its third near misses are swaps.",
        table(["steps", *curves], points),
        f"What the one cell at the centre of a shape tells a linear readout (learnt from {colours.READ:,} scenes), per cent right:",
        table(["cell of", *next(iter(results["cells"].values()))], cells),
        f"The second VAE's tower distilled again, from \"{TEACHER}\" instead of the shipped pixel CLIP, as above in all else:",
        table(["task", *second, "distilled − teacher", "distilled − closed form"], again),
    ])  # fmt: skip


def _share(right: list[bool]) -> str:
    rate = Rate.of(right)
    low, high = rate.interval
    return f"{100 * rate.value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _point(shares: dict[str, float] | None) -> str:
    return " / ".join(f"{100 * shares[task]:.0f}" for task in TASKS[:3]) if shares else ""


PAIRS = (
    ("shipped Latent-CLIP", "shipped pixel CLIP"),
    ("shipped pixel CLIP, decoded", "shipped pixel CLIP"),
    ("distilled", "shipped pixel CLIP"),
    ("distilled", "shipped Latent-CLIP"),
    ("4 channels, equal 500", "shipped Latent-CLIP"),
    ("4 channels, equal 500", "shipped pixel CLIP"),
    ("4 channels, last 500", "shipped Latent-CLIP"),
    ("4 channels, equal 500", "4 channels, last 500"),
    ("4 channels, last 2000", "shipped Latent-CLIP"),
    ("4 channels, last 2000", "shipped pixel CLIP"),
    ("4 channels, last 2000", "pixels, last 2000"),
    ("pixels, equal 500", "shipped pixel CLIP"),
    ("pixels, last 2000", "shipped pixel CLIP"),
)
