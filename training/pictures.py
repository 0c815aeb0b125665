"""Pictures of any kind as 8-bit RGB, as people see them, or the reason why not; and the views that a tower is to see of each."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
LARGEST = 178_956_970  # pixels; Pillow's own limit of a picture that is not meant to fill the memory
SHORTEST = 16  # pixels of the shorter side
VIEWS = ("centre", "flip", "random", "random-flip")


class Skipped(Exception):
    """Why a picture is left out, in a few words that are the same for all of a kind."""


@dataclass(frozen=True)
class View:
    """Which square of a picture (left, top, side in its pixels) and whether it is mirrored."""

    left: int
    top: int
    side: int
    flipped: bool = False

    def as_dict(self) -> dict:
        return asdict(self)


def read_upright(content: bytes) -> Image:
    """An RGB picture of the first frame, turned as its camera noted, on white where it is transparent.

    Raises:
        Skipped: it is damaged, no picture, too small, or so large that decoding it could fill the memory.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                if picture.width * picture.height > LARGEST:
                    raise Skipped("too large")
                picture.load()
                upright = _to_rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise Skipped("no picture") from error
    except Image.DecompressionBombError as error:
        raise Skipped("too large") from error
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError) as error:
        raise Skipped("damaged") from error
    if min(upright.size) < SHORTEST:
        raise Skipped("too small")
    return upright


def _to_rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # 16 and 32 bits: Pillow's own conversion cuts at 255
        values = np.asarray(picture, dtype=np.float32)
        top = 65535.0 if picture.mode.startswith("I") else max(1.0, float(values.max(initial=0)))
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


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
