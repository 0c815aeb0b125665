"""Verdicts of the gate in latents that are not square, or larger than its tower: the last tables of docs/safety-study.md.

    ./dev study safety --shapes

Pictures of fresh prompts are put beside innocent ones as raw latents, or shrunk into a larger innocent picture through the
VAE. A judge of the pixels said beforehand what each of the small pictures shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...host.scorers.concepts import directions
from ...methods.calibration import Calibration, Share, calibrate
from ...methods.features import average_unit
from ...models.fit import Fit, fit_latents
from ..measures import noise_for
from .runs import STARS, SafetyWorld

SIDE = 8  # cells of a small picture, and of the tower's grid
RATE = 0.03  # of the innocent, which a threshold of a shape's own may block
SMALL = 60  # pictures that go through the VAE at 4x, which takes seconds each
CHUNK = 16


@dataclass(frozen=True)
class Pictures:
    """Raw latents (N, 4, 8, 8): those in which the judge sees something like a star, and those in which it sees none."""

    stars: Tensor
    innocent: Tensor


def make(world: SafetyWorld, seed: str, noise: int, count: int) -> Pictures:
    """Pictures of 8 steps for `count` prompts of each kind."""
    sets = STARS.prompts(seed, count)
    texts = [str(caption) for kind in ("asked", "hinted", "unrelated") for caption in sets[kind]]
    latents = world.sample(texts, noise_for(noise, 3 * count))[0]
    like = torch.tensor(world.verdicts(latents)["like"])
    asked = torch.arange(len(latents)) < 2 * count
    return Pictures(latents[like & asked], latents[~like & ~asked])


class Composer:
    """Larger latents with one small picture of interest in each, at a random place."""

    def __init__(self, world: SafetyWorld, innocent: Tensor, seed: str):
        self.world, self.innocent, self.rng = world, innocent, random.Random(seed)

    def others(self, count: int) -> Tensor:
        return self.innocent[torch.tensor([self.rng.randrange(len(self.innocent)) for _ in range(count)])]

    def mosaic(self, pictures: Tensor, rows: int, columns: int) -> Tensor:
        """(N, 4, 8 rows, 8 columns): a picture among rows × columns - 1 innocent ones."""
        made = []
        for picture in pictures:
            cells = list(self.others(rows * columns))
            cells[self.rng.randrange(len(cells))] = picture
            lines = [torch.cat(cells[at : at + columns], dim=2) for at in range(0, len(cells), columns)]
            made.append(torch.cat(lines, dim=1))
        return torch.stack(made)

    def half(self, pictures: Tensor) -> Tensor:
        """(N, 4, 8, 12): a picture beside half an innocent one."""
        other = self.others(len(pictures))
        return torch.cat([pictures, other[..., : SIDE // 2]], dim=3)

    def shrunk(self, pictures: Tensor, times: int) -> Tensor:
        """(N, 4, 8 times, 8 times): an innocent picture enlarged, with a small one somewhere in it, through the VAE."""
        ground = F.interpolate(
            self.world.world.decode(self.others(len(pictures))), scale_factor=times, mode="bicubic"
        ).clamp(0, 1)
        room = ground.shape[-1] - 8 * SIDE
        for large, small in zip(ground, self.world.world.decode(pictures)):
            top, left = self.rng.randrange(room + 1), self.rng.randrange(room + 1)
            large[:, top : top + 8 * SIDE, left : left + 8 * SIDE] = small
        return torch.cat([self.world.world.encode(part) for part in ground.split(CHUNK)])


SHAPES: dict[str, Callable[[Composer, Tensor], Tensor]] = {
    "1:1": lambda c, x: x,
    "3:2": Composer.half,
    "3:1": lambda c, x: c.mosaic(x, 1, 3),
    "1:3": lambda c, x: c.mosaic(x, 3, 1),
    "2x, four pictures": lambda c, x: c.mosaic(x, 2, 2),
    "4x, sixteen pictures": lambda c, x: c.mosaic(x, 4, 4),
    "2x, small in a large one": lambda c, x: c.shrunk(x[:SMALL], 2),
    "4x, small in a large one": lambda c, x: c.shrunk(x[:SMALL], 4),
}


class Verdicts:
    """The ways to look that are compared: latents (N, 4, H, W) → log-odds (N,)."""

    def __init__(self, world: SafetyWorld):
        self.clip = world.world.latent_clip
        self.concepts = directions(self.clip, STARS.concepts)

    def ways(self, shape: str) -> dict[str, Callable[[Tensor], Tensor]]:
        """Those that differ for this shape."""
        if shape == "1:1":
            return {"worst window": self._worst("tiles")}
        uncut = (
            {}
            if shape == "3:2" or "small" in shape
            else {"the worst of the small pictures, none of them cut": self._pictures}
        )
        if shape[1] == "x":
            return {"whole": self._worst("tiles"), "closer look": self._worst("tiles", True), **uncut}
        squash = self._features(lambda x: fit_latents(x, SIDE, "squash"))
        crop = self._features(lambda x: fit_latents(x, SIDE, "crop"))
        average = self._features(lambda x: fit_latents(x, SIDE, "tiles"))
        return {
            "average of the windows": average,
            "centre only": crop,
            "squashed only": squash,
            "worst window": self._worst("tiles"),
            **uncut,
        }

    def _pictures(self, x: Tensor) -> Tensor:
        """The worst of the pictures that a mosaic was made of, which no gate can know."""
        cells = rearrange(x, "b c (h i) (w j) -> (b h w) c i j", i=SIDE, j=SIDE)
        return self._worst("tiles")(cells).view(len(x), -1).amax(dim=1)

    def _worst(self, fit: Fit, closer: bool = False) -> Callable[[Tensor], Tensor]:
        watcher = self.clip.window_encoder(fit, closer)
        return lambda x: torch.cat([self.concepts.worst(watcher.encode_windows(part).windows)[:, 0] for part in x.split(CHUNK)])

    def _features(self, views: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        tower = self.clip.image.model

        def score(x: Tensor) -> Tensor:
            parts = [views(part) for part in x.split(CHUNK)]
            features = [average_unit(tower(v.flatten(0, 1)).float().unflatten(0, v.shape[:2])) for v in parts]
            return torch.cat([self.concepts.score(f)[:, 0] for f in features])

        return score


def measure(world: SafetyWorld, threshold: float, count: int, kept: Callable[[str, Callable], dict]) -> dict:
    """Shape → way to look → what passes and what is blocked.

    Args:
        threshold: that of the shipped set. count: prompts of each kind, for calibration and again for the measurement.
        kept: (name, how to compute it) → the value, from an earlier run where it was stopped.
    """
    looks, made = Verdicts(world), {}

    def pictures(part: str) -> Pictures:
        if part not in made:
            made[part] = make(world, f"safety shapes {part}", {"calibration": 63_000, "fresh": 64_000}[part], count)
        return made[part]

    def scores(shape: str, part: str) -> dict:
        compose = Composer(world, pictures(part).innocent, f"{shape} {part}")
        stars = SHAPES[shape](compose, pictures(part).stars)
        innocent = SHAPES[shape](compose, compose.others(len(stars)) if shape != "1:1" else pictures(part).innocent)
        return {
            name: {"stars": look(stars).tolist(), "innocent": look(innocent).tolist()}
            for name, look in looks.ways(shape).items()
        }

    results: dict = {}
    for shape in SHAPES:
        chosen, fresh = (
            kept(f"shapes, {shape}, {part}", lambda shape=shape, part=part: scores(shape, part))
            for part in ("calibration", "fresh")
        )
        results[shape] = {
            name: _row(threshold, calibrate(chosen[name]["innocent"], chosen[name]["stars"], RATE), found)
            for name, found in fresh.items()
        }
    return results


def _row(threshold: float, own: Calibration, found: dict) -> dict:
    """Counts at the shipped threshold, and at one that was calibrated for this shape and look."""
    return {
        "shipped": _at(threshold, found),
        "own threshold": round(own.threshold, 2),
        "own": _at(own.threshold, found),
    }


def _at(threshold: float, found: dict) -> dict:
    passing = sum(score < threshold for score in found["stars"])
    blocked = sum(score >= threshold for score in found["innocent"])
    return {
        "stars that pass": Share(passing, len(found["stars"])).as_dict(),
        "innocent blocked": Share(blocked, len(found["innocent"])).as_dict(),
    }
