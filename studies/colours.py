"""Why is Latent-CLIP worse at swapped colours than the pixel CLIP, and better at reversed relations: what it reads, or how it was trained?

Both CLIPs of Shapes World are trained on from where they were shipped, with the recipe's last mixture of near misses and with one
that swaps colours as often as it reverses relations; and three are trained from nothing, which differ only in what they read:
latents of 4 channels, latents of 16, pixels. All with the loss, the batches and the steps of demo/train_clip.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor

from ..demo.captions import COLOURS, KINDS
from ..demo.corpus import Corpus, sample_corpus, tokenize
from ..demo.scenes import Scene, render
from ..demo.train_clip import (
    LATENT_CONFIG,
    LATENT_NOISE,
    PIXEL_CONFIG,
    PIXEL_NOISE,
    STAGES,
    Stage,
    new_latent_clip,
    new_pixel_clip,
    normalised,
    train_clip,
    with_noise,
)
from ..demo.training import Draw, cached
from ..host.shapes_world import LATENT_SCALE
from ..models.latent_clip import LatentCLIP
from ..models.shapes_world import VOCABULARY, load_weights
from ..training.starts import channel_statistics
from . import second_vae
from .measures import CHUNK, World, clip_verdicts
from .quick_clip import Quick
from .readout import cells_of, fit_readout
from .report import Kept

PICTURES = 12_000  # of the corpus's 24,000
FRESH, TUNING = "training study colours", "colours tuning"
READ = 4000  # scenes that a readout of one cell learns from
SCENES, TUNING_SCENES, CURVE = 400, 200, 100  # the last: steps between two points of a curve

KEPT = ("training_study_colours", (FRESH, SCENES, TUNING, TUNING_SCENES, CURVE, PICTURES, "float32"))

FIRST, LAST = STAGES[0], STAGES[-1]
EQUAL = replace(LAST, reversals=10, swaps=7)  # with the swaps of "and", as many of either
SIXTEEN = {**LATENT_CONFIG, "vision_cfg": {**LATENT_CONFIG["vision_cfg"], "latent_n_channels": second_vae.CHANNELS}}


# ------------------------------------------------------------------------------------------------ what a tower reads


@dataclass
class Input:
    """What an image tower reads.

    Attributes:
        encode: pictures (N, 3, 64, 64) in 0..1 → what noise is laid on. noise: its largest std. read: that → what the tower reads.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    noise: float
    read: Callable[[Tensor], Tensor] = lambda encoded: encoded

    @torch.no_grad()
    def of(self, scenes: Sequence[Scene]) -> Tensor:
        return torch.cat([self.encode(render(scenes[at : at + CHUNK])) for at in range(0, len(scenes), CHUNK)])

    @cached_property
    def corpus(self) -> Corpus:
        """The first scenes of the recipe's corpus, encoded; no held-out pairs."""
        scenes = sample_corpus("corpus", PICTURES)
        if self.name == "pixels":  # quicker drawn than loaded
            return Corpus(scenes, self.of(scenes))
        name = f"training_study/colours_corpus_{self.name.replace(' ', '_')}"
        return Corpus(scenes, cached(name, lambda: {"latents": self.of(scenes)})["latents"])

    def known(self, scenes: list[Scene]) -> Tensor:
        """`of`, kept for scenes that are measured again and again."""
        key = tuple(scenes)
        if key not in self._known:
            self._known[key] = self.of(scenes)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[Scene, ...], Tensor]:
        return {}


def inputs(world: World) -> dict[str, Input]:
    """Pixels, and latents of either VAE, each channel with mean 0 and std 7.7."""
    return {
        "4 channels": Input("4 channels", world.encode, LATENT_NOISE),
        "16 channels": Input("16 channels", _sixteen(), LATENT_NOISE),
        "pixels": Input("pixels", lambda pictures: pictures, PIXEL_NOISE, normalised),
    }


def _sixteen() -> Callable[[Tensor], Tensor]:
    vae = second_vae.second_vae()
    mean, std = channel_statistics(second_vae.encode(vae, render(sample_corpus("statistics of 16 channels", 500))))
    mean, gain = mean[:, None, None], 1 / (LATENT_SCALE * std[:, None, None])
    return lambda pictures: (second_vae.encode(vae, pictures) - mean) * gain


def new(name: str, seed: int) -> CustomTextCLIP:
    """An untrained CLIP for an input."""
    if name == "pixels":
        return new_pixel_clip(seed)
    return new_latent_clip(seed, SIXTEEN if name == "16 channels" else LATENT_CONFIG)


def shipped(name: str) -> CustomTextCLIP:
    """The shipped CLIP of an input, trainable."""
    weights, config = load_weights("pixel_clip" if name == "pixels" else "latent_clip")
    clip = CustomTextCLIP(**PIXEL_CONFIG) if name == "pixels" else LatentCLIP(config)
    clip.load_state_dict(weights)
    return clip


# ------------------------------------------------------------------------------------------------ what one cell says


def readable(given: Input) -> dict[str, list[bool]]:
    """Whether the one cell at the centre of a shape tells its colour, and its kind, linearly: on shapes of fresh scenes."""
    scenes, fresh = given.corpus.scenes[:READ], sample_corpus(f"{FRESH} cells", SCENES, held_out=None, single=0.0)
    cells, asked = cells_of(given.corpus.latents[:READ], scenes), cells_of(given.of(fresh), fresh)
    right = {}
    for what, names in (("colour", COLOURS), ("kind", KINDS)):
        labels, expected = (
            torch.tensor([names.index(getattr(shape.thing, what)) for scene in some for shape in scene.shapes])
            for some in (scenes, fresh)
        )
        right[what] = (fit_readout(cells, labels, len(names))(asked) == expected).tolist()
    return right


# ------------------------------------------------------------------------------------------------ arms


@dataclass(frozen=True)
class Arm:
    """One run: what it reads, whether it starts from the shipped weights, and how.

    Attributes:
        until: steps after which it is stopped, its learning rate still high: such an arm has a curve and nothing else; 0: to its end.
    """

    name: str
    reads: str
    more: bool
    stage: Stage
    until: int = 0
    seed: int = 6  # of the untrained weights

    @property
    def path(self) -> str:
        return "training_study/colours_" + self.name.replace(" ", "_").replace(",", "")

    @property
    def key(self) -> str:
        """Under which name its results are kept."""
        return self.name + self.stage.suffix.replace("_", " ")

    @property
    def title(self) -> str:
        """Of its curve."""
        return self.name if self.until else self.key


class _Enough(Exception):
    """An arm has been trained for as long as it is to be."""


def _stage(mixture: Stage, steps: int = 500) -> Stage:
    return replace(mixture, suffix=f"_{steps}", steps=steps, seed=31)


ARMS = (
    Arm("4 channels, equal", "4 channels", True, _stage(EQUAL)),
    Arm("pixels, equal", "pixels", True, _stage(EQUAL)),
    Arm("4 channels, last", "4 channels", True, _stage(LAST)),
    Arm("4 channels, last", "4 channels", True, _stage(LAST, 2000)),
    Arm("pixels, last", "pixels", True, _stage(LAST, 2000)),
    *(
        Arm(f"{reads} from nothing", reads, False, replace(FIRST, suffix="_700"), until=400)
        for reads in ("4 channels", "16 channels", "pixels")
    ),
)


def verdicts(clip: Quick, given: Input, seed: str, count: int) -> dict[str, list[bool]]:
    """The tasks, in float32 and on the same scenes for every CLIP."""
    with torch.no_grad(), clip.exact():
        return clip_verdicts(
            lambda texts: clip.encode_text(tokenize(texts)),
            lambda scenes: torch.cat([clip.encode_image(part) for part in given.known(scenes).split(CHUNK)]),
            count,
            seed,
        )


@torch.enable_grad()
def run(arm: Arm, given: Input, kept: Kept) -> Quick:
    """Train or resume an arm; its points on tuning scenes, and at its end its verdicts on fresh ones, go into `kept`."""
    clip = Quick(shipped(arm.reads) if arm.more else new(arm.reads, arm.seed), given.read)

    def images(draw: Draw, rows: Tensor) -> Tensor:
        return with_noise(draw, given.corpus.latents[rows], given.noise)

    def after(step: int) -> None:
        if step % CURVE == 0:
            kept.get(f"{arm.key} at {step}", lambda: _shares(verdicts(clip, given, TUNING, TUNING_SCENES)))
        if arm.until and step >= arm.until:
            raise _Enough

    with suppress(_Enough):
        train_clip(arm.path, clip, given.corpus, images, (arm.stage,), after)
        kept.get(arm.key, lambda: verdicts(clip, given, FRESH, SCENES))
    return clip


def write_teacher(clip: Quick) -> Path:
    """A trained pixel CLIP as a file that a tower can be distilled from."""
    path = second_vae.FOLDER_OF / "colours_teacher.safetensors"
    save_file(clip.state(VOCABULARY), path, {"config": json.dumps(PIXEL_CONFIG)})
    return path


def curve(arm: Arm, kept: Kept) -> dict[int, dict[str, float]] | None:
    """Its points by steps; None where the arm has not got to its end."""
    keys = {step: f"{arm.key} at {step}" for step in range(CURVE, (arm.until or arm.stage.steps) + 1, CURVE)}
    if not {*keys.values(), *([] if arm.until else [arm.key])} <= kept.values.keys():
        return None
    return {step: kept.values[key] for step, key in keys.items()}


def _shares(right: dict[str, list[bool]]) -> dict[str, float]:
    return {task: sum(values) / len(values) for task, values in right.items()}
