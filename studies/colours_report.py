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

TEACHER = "pixels, equal 500"  # of the second VAE's tower
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
    made = kept.get("distilled: made", lambda: _distil(world))
    tasks["distilled"] = kept.get("distilled", lambda: _distilled_verdicts(world, Path(made["file"])))
    for arm in colours.ARMS:
        if not all(colours.key(arm, stage) in kept.values for stage in arm.stages):
            colours.run(arm, given[arm.reads], kept)
        tasks |= {colours.key(arm, stage): kept.get(colours.key(arm, stage), dict) for stage in arm.stages}
    second = kept.get(f"second VAE from {TEACHER}", lambda: _second_vae(kept, world, given))
    return {
        "tasks": tasks,
        "made": made,
        "second": second,
        "curves": {arm.name: curve(kept, arm) for arm in colours.ARMS},
    }


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
    arm = next(arm for arm in colours.ARMS if TEACHER.startswith(arm.name))
    quick, vae = colours.run(arm, given[arm.reads], kept), second_vae.second_vae()
    file = colours.write_teacher(quick)
    teacher = read_pixel_clip(file)
    held_out, pictures = (
        second_vae.embed_scenes(
            name, count, lambda pictures: second_vae.encode(vae, pictures), second_vae.SPACE, "second VAE", teacher
        )
        for name, count in (("held_out16_again", second_vae.HELD_OUT), ("pictures16_again", second_vae.PICTURES))
    )
    path, _ = second_vae.distil(pictures, held_out, "distilled16_again", str(file))

    def text(texts: list[str]) -> Tensor:
        return F.normalize(teacher.model.text(tokenize(texts)), dim=-1)

    def image(pictures: Tensor) -> Tensor:
        return torch.cat(
            [F.normalize(teacher.model.visual(normalised(part)), dim=-1) for part in pictures.split(CHUNK)]
        )

    return {
        name: clip_verdicts(
            texts, lambda scenes, pictures=pictures: pictures(render(scenes)), colours.SCENES, colours.FRESH
        )
        for name, (texts, pictures) in second_vae.towers(vae, world, path, (text, image)).items()
    }


def curve(kept: Kept, arm: colours.Arm) -> dict[int, dict[str, float]]:
    """Shares on the tuning scenes by steps, the stages one after the other."""
    points, before = {}, 0
    for stage in arm.stages:
        for step in range(colours.CURVE, stage.steps + 1, colours.CURVE):
            points[before + step] = kept.values[f"{colours.key(arm, stage)} at {step}"]
        before += stage.steps
    return points


# ------------------------------------------------------------------------------------------------------- as markdown


def report(results: dict) -> str:
    """The section."""
    tasks = results["tasks"]
    shares = [[name, *(_share(by[task]) for task in TASKS)] for name, by in tasks.items()]
    pairs = [[f"{a} − {b}", *(difference(tasks[a][task], tasks[b][task]) for task in TASKS[1:])] for a, b in PAIRS]
    second = [
        [task, *(_share(by[task]) for by in results["second"].values()),
         *(difference(results["second"]["distilled"][task], results["second"][other][task]) for other in ("teacher", "closed form"))]
        for task in TASKS
    ]  # fmt: skip
    steps = sorted({step for name in results["curves"] for step in results["curves"][name]})
    return "\n\n".join([
        "## Colours swapped",
        f"Per cent right of {colours.SCENES} scenes a task, which are the same for all, with Wilson's interval. \"Equal\" and \"last\" are the "
        "shipped weights trained on for the steps named, \"last\" with the recipe's last mixture (of the pairs' third hard negatives 27 % "
        "swap colours, the others reverse a relation), \"equal\" with as many of either. \"From nothing\" is the recipe's first stage. The "
        f"distilled tower was made in {results['made']['seconds'] / 60:.1f} processor minutes, the encoding apart.",
        table(["", *TASKS], shares),
        "Paired differences:",
        table(["", *TASKS[1:]], pairs),
        f"While they trained, on {colours.TUNING_SCENES} other scenes and before averaging of the weights: colours swapped / relation reversed.",
        table(["steps", *results["curves"]], [
            [step, *(_point(points.get(step)) for points in results["curves"].values())] for step in steps
        ]),
        f"The second VAE's tower distilled anew, from \"{TEACHER}\" instead of the shipped pixel CLIP:",
        table(["task", *results["second"], "distilled − teacher", "distilled − closed form"], second),
    ])  # fmt: skip


def _share(right: list[bool]) -> str:
    rate = Rate.of(right)
    low, high = rate.interval
    return f"{100 * rate.value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _point(shares: dict[str, float] | None) -> str:
    return f"{100 * shares[SWAPPED]:.0f} / {100 * shares[REVERSED]:.0f}" if shares else ""


PAIRS = (
    ("shipped Latent-CLIP", "shipped pixel CLIP"),
    ("distilled", "shipped pixel CLIP"),
    ("distilled", "shipped Latent-CLIP"),
    ("4 channels, last 500", "shipped Latent-CLIP"),
    ("4 channels, equal 500", "shipped Latent-CLIP"),
    ("4 channels, equal 500", "4 channels, last 500"),
    ("4 channels, equal 500", "shipped pixel CLIP"),
    ("pixels, last 500", "shipped pixel CLIP"),
    ("pixels, equal 500", "shipped pixel CLIP"),
    ("4 channels, equal 500", "pixels, equal 500"),
)
