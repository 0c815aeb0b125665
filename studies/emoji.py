"""Pictures that nobody of this project drew: does a Latent-CLIP name emoji as well as a pixel CLIP of the same size and training?

One VAE and every CLIP learn from five artists (`emoji_pictures.py`, `emoji_towers.py`); what is measured is how they read a sixth, whom they
have never seen. Settings were chosen on that one. Another, the final artist, is read once, after everything is settled.
"""

from __future__ import annotations

import json
import random
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from ..evaluation.statistics import Rate
from ..models.latent_clip import LatentCLIP
from . import emoji_joint as joint
from . import emoji_towers as towers
from . import emoji_vae as vaes
from .emoji_measures import TASKS, points, read
from .emoji_pictures import CHOSEN_ON, FINAL, FOLDER, VIEWS, pictures_of, read_training, read_unseen
from .report import Kept, table

FINAL_RESULTS = Path(__file__).resolve().parent / "emoji_final.json"
PICTURE = Path(__file__).resolve().parent.parent / "docs/images/emoji-study.png"
SHOWN = 9
PIXEL_MORE = "pixel CLIP, more steps"


# -------------------------------------------------------------------------------------------------------- the study


@dataclass(frozen=True)
class Contestant:
    """A tower, the VAE whose latents it reads (None: it reads pixels), and the processor seconds of its training."""

    model: LatentCLIP
    vae: nn.Module | None
    seconds: float


class Emoji:
    """Everything that is trained, made or resumed on first use."""

    def __init__(self) -> None:
        self.drawings, self.votes = read_training()
        self.pixels = towers.Seen(self.drawings, pictures_of(self.drawings, VIEWS))
        self.vae = vaes.train_vae(self.pixels.stored)
        self.latents = towers.Seen(self.drawings, vaes.latents_of(self.vae, self.pixels.stored, f"training_{VIEWS}"))

    def contestants(self) -> dict[str, Contestant]:
        """By name; the last two are the Latent-CLIP after as many more steps, with the VAE as it is and together with it."""
        pixel, pixel_seconds = towers.train_contrastive(towers.recipe_of("pixel"), self.pixels, towers.PIXEL)
        more_pixel, more_seconds = towers.train_contrastive(towers.longer("pixel_more"), self.pixels, towers.PIXEL, pixel)
        latent, latent_seconds = towers.train_contrastive(towers.recipe_of("latent"), self.latents, towers.LATENT)
        distilled, seconds = towers.train_distilled(towers.recipe_of("distilled"), self.latents, towers.LATENT, self.pixels, pixel)
        views = joint.Views(self.drawings, self.pixels.stored)
        more = {name: joint.train_on(name, self.vae, latent, views, name == "frozen") for name in ("frozen", "joint")}
        return {
            "pixel CLIP": Contestant(pixel, None, pixel_seconds),
            "Latent-CLIP": Contestant(latent, self.vae, latent_seconds),
            "distilled": Contestant(distilled, self.vae, seconds),
            PIXEL_MORE: Contestant(more_pixel, None, pixel_seconds + more_seconds),
            **{name: Contestant(*made) for name, made in more.items()},
        }

    def measure(self, artist: str) -> dict:
        """Verdicts of every contestant about an artist, and how well the VAEs carry the pictures."""
        drawings = read_unseen(artist, self.drawings, self.votes)
        pictures = pictures_of(drawings, 1)[:, 0]
        tasks, minutes, carriers = {}, {}, {"the VAE": self.vae}
        for name, made in self.contestants().items():
            tasks[name] = read(made.model, drawings, pictures if made.vae is None else vaes.encode(made.vae, pictures))
            minutes[name] = made.seconds / 60
            if made.vae is not None and name == "joint":
                carriers["after the joint steps"] = made.vae
        return {
            "drawings": len(drawings), "tasks": tasks, "minutes": minutes,
            "psnr": {name: vaes.round_trips(vae, pictures).tolist() for name, vae in carriers.items()},
        }  # fmt: skip


@cache
def emoji() -> Emoji:
    """The study's one, all of it trained."""
    made = Emoji()
    made.contestants()
    return made


def study(kept: Kept, world) -> dict:
    """What the page reports: the artist on whom settings were chosen, and the final one where it was read."""
    made = emoji()
    files = sorted(FOLDER.rglob("*_finished.safetensors"))
    found = Kept("emoji", (TASKS, VIEWS), *files).get(CHOSEN_ON, lambda: made.measure(CHOSEN_ON))
    picture(made)
    return found | {"final": _unpacked(json.loads(FINAL_RESULTS.read_text())) if FINAL_RESULTS.exists() else None}


def read_final_artist() -> None:
    """Measure on the final artist and write it down; once.

    Raises:
        ValueError: it was done before.
    """
    if FINAL_RESULTS.exists():
        raise ValueError(f"{FINAL} was read already, expected it to be read once. Its figures are in {FINAL_RESULTS.name}.")
    found = emoji().measure(FINAL)
    FINAL_RESULTS.write_text(json.dumps(_packed(found)) + "\n", encoding="utf-8")


def _packed(found: dict) -> dict:
    """Verdicts as a string of 0 and 1 for each task."""
    bits = {name: {t: "".join("01"[hit] for hit in hits) for t, hits in by.items()} for name, by in found["tasks"].items()}
    return found | {"tasks": bits, "psnr": {name: [round(v, 2) for v in values] for name, values in found["psnr"].items()}}


def _unpacked(found: dict) -> dict:
    tasks = {name: {t: [bit == "1" for bit in bits] for t, bits in by.items()} for name, by in found["tasks"].items()}
    return found | {"tasks": tasks}


# -------------------------------------------------------------------------------------------------------- the report


def report(results: dict) -> str:
    """The section as markdown."""
    final = results["final"]
    return "\n\n".join([
        "## Emoji",
        _artist(f"The unseen artist on whom settings might be chosen ({CHOSEN_ON})", results),
        _artist(f"The final artist ({FINAL}), read once", final) if final else f"The final artist ({FINAL}) has not been read.",
    ])  # fmt: skip


def _artist(title: str, found: dict) -> str:
    tasks, minutes = found["tasks"], found["minutes"]
    main = ("pixel CLIP", "Latent-CLIP", "distilled", PIXEL_MORE)
    pairs = (("Latent-CLIP", "pixel CLIP"), ("distilled", "pixel CLIP"), ("Latent-CLIP", PIXEL_MORE))
    carried = " and ".join(f"{sum(v) / len(v):.1f} dB ({name})" for name, v in found["psnr"].items())
    first = [
        [task, *(Rate.of(tasks[name][task]) for name in main),
         *(points(tasks[base][task], tasks[name][task]) for name, base in pairs)]
        for task in TASKS
    ]  # fmt: skip
    more = [
        [task, *(Rate.of(tasks[name][task]) for name in ("frozen", "joint")), points(tasks["frozen"][task], tasks["joint"][task])]
        for task in TASKS
    ]  # fmt: skip
    return "\n\n".join([
        f"### {title}",
        f"{found['drawings']} drawings with as many names. Mean PSNR of the round trip: {carried}. "
        f"Processor minutes of training: {', '.join(f'{name} {value:.1f}' for name, value in minutes.items())}.",
        table(["task", *main, "Latent-CLIP − pixel CLIP", "distilled − its teacher", f"Latent-CLIP − {PIXEL_MORE}"], first),
        f"{joint.STEPS} more steps of {joint.BATCH} for the Latent-CLIP, the VAE as it is or its encoder trained too:",
        table(["task", "VAE frozen", "joint", "joint − frozen"], more),
    ])  # fmt: skip


def picture(made: Emoji) -> None:
    """Some drawings of the artist on whom settings were chosen, what the VAE makes of them, and what the Latent-CLIP calls them."""
    import matplotlib.pyplot as plt

    drawings = read_unseen(CHOSEN_ON, made.drawings, made.votes)
    rows = random.Random("emoji picture").sample(range(len(drawings)), SHOWN)
    pictures, names = pictures_of(drawings, 1)[rows, 0], [drawing.name for drawing in drawings]
    model, _ = towers.train_contrastive(towers.recipe_of("latent"), made.latents, towers.LATENT)
    scores = towers.features_of(model, vaes.encode(made.vae, pictures)) @ towers.texts_of(model, names).T
    after = vaes.decoded(made.vae, pictures)
    figure, axes = plt.subplots(2, SHOWN, figsize=(1.25 * SHOWN, 2.9), dpi=90)
    for place, (before, carried, best) in enumerate(zip(towers.pixels_of(pictures), after, scores.argmax(1).tolist())):
        for axis, shown in zip(axes[:, place], (before, carried)):
            axis.imshow(shown.movedim(0, -1).numpy())
            axis.axis("off")
        colour = "black" if best == rows[place] else "firebrick"
        axes[0, place].set_title(_broken(names[rows[place]]), fontsize=7)
        axes[1, place].set_title(_broken(names[best]), fontsize=7, color=colour)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Software": None})
    plt.close(figure)


def _broken(name: str) -> str:
    return textwrap.fill(name.replace("-", " "), 16)
