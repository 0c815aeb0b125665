"""The views of a picture that a tower sees: squares of it, some mirrored. The reader of picture files is `models.pictures`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..models.pictures import SUFFIXES, Skipped, read_upright

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "VIEWS", "Skipped", "View", "cut", "read_upright", "views_of"]
VIEWS = ("centre", "flip", "random", "random-flip")


@dataclass(frozen=True)
class View:
    """Which square of a picture (left, top, side in its pixels) and whether it is mirrored."""

    left: int
    top: int
    side: int
    flipped: bool = False

    def as_dict(self) -> dict:
        return asdict(self)


def views_of(size: tuple[int, int], names: Sequence[str], identity: str, least: float = 0.7) -> list[View]:
    """The views asked for of a picture of (width, height): the same for the same `identity`.

    Args:
        names: of `VIEWS`. "random" is a square of `least` to 1 of the shorter side, anywhere.
    """
    width, height = size
    short, rng = min(width, height), random.Random(identity)
    found = []
    for name in names:
        side = short
        if name.startswith("random"):
            side = max(1, round(short * rng.uniform(least, 1)))
            left, top = rng.randint(0, width - side), rng.randint(0, height - side)
        else:
            left, top = (width - side) // 2, (height - side) // 2
        found.append(View(left, top, side, name.endswith("flip")))
    return found


def cut(picture: Image, view: View, side: int) -> Tensor:
    """A view as a square of `side` pixels: (side, side, 3) float32 in 0..1."""
    from PIL import Image

    box = (view.left, view.top, view.left + view.side, view.top + view.side)
    square = picture.resize((side, side), Image.Resampling.LANCZOS, box=box)
    pixels = torch.from_numpy(np.array(square, dtype=np.float32) / 255)
    return pixels.flip(1) if view.flipped else pixels
