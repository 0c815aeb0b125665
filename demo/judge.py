"""The analytic judge: reads pixels and says which shapes, colours and places are there.

It is never a reward and shares nothing with the renderer but the names and nominal colours of the palette: its
templates are textbook figures written as inequalities (a pentagram, a plus of five squares), normalised to the area
and centroid of what it sees. It refuses what is blurred, cluttered, off-colour or of no known kind.

Steps: find the pale ground; un-mix every pixel into ground and the palette colour it leans to (alpha); take connected
regions of one colour; compare each with every template by soft intersection over union.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from torch import Tensor

from .captions import COLOURS, KINDS, Caption, Thing
from .scenes import PALETTE

MIN_GROUND = 0.4  # fraction of the picture that must be pale
MIN_AREA = 60.0  # px²; the smallest shape of this world has about 180
MAX_STRAY = 24  # px of colour outside every accepted shape
MIN_OVERLAP = 0.80  # soft intersection over union with the best template
MIN_MARGIN = 0.03  # lead of the best template over the second
MAX_COLOUR_ERROR = 0.14  # rgb distance of the core to the nominal colour; the two nearest colours lie 0.28 apart
MAX_SOFTNESS = 2.6  # half-covered pixels per rim pixel: about 0.7 when sharp, 4 under a Gaussian blur of 2 px
MIN_APART = 8.0  # px between centres before a relation can hold


@dataclass(frozen=True)
class SeenThing:
    """An accepted object: what, where its centroid is (px), and its overlap with the template."""

    thing: Thing
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class SceneReading:
    """Result of the judge for one picture; any `problem` means that no caption is true of it."""

    objects: tuple[SeenThing, ...]
    problem: str | None = None


# ---------------------------------------------------------------------------------------------- templates


def _inside(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Membership of points in a textbook figure of about unit size; y grows downwards."""
    if kind == "circle":
        return x * x + y * y <= 1
    if kind == "square":
        return np.maximum(abs(x), abs(y)) <= 1
    if kind == "triangle":
        return (y <= 0.5) & (np.sqrt(3) * abs(x) - y <= 1)
    if kind == "cross":
        return (np.minimum(abs(x), abs(y)) <= 1 / 3) & (np.maximum(abs(x), abs(y)) <= 1)
    # five-pointed star: fold the plane onto half a point, then one half-plane through tip (1, 0) and notch
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius, notch = np.hypot(x, y), 0.42
    u, v = radius * np.cos(angle), radius * np.sin(angle)
    notch_x, notch_y = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
    return (u - 1) * notch_y - v * (notch_x - 1) <= 0


@cache
def _moments(kind: str) -> tuple[float, float]:
    """Area and vertical centroid of the figure at unit size (all are symmetric left to right)."""
    axis = np.linspace(-1.5, 1.5, 1201)
    x, y = np.meshgrid(axis, axis)
    inside = _inside(kind, x, y)
    return float(inside.sum() * (axis[1] - axis[0]) ** 2), float(y[inside].mean())


def template(kind: str, area: float, x: float, y: float, size: tuple[int, int]) -> np.ndarray:
    """Coverage (H, W) = `size` of a figure with this area (px²) and centroid (px), from 3×3 samples per pixel."""
    unit_area, low = _moments(kind)
    scale = np.sqrt(area / unit_area)
    rows, columns = ((np.arange(3 * n) + 0.5) / 3 for n in size)
    u, v = np.meshgrid((columns - x) / scale, (rows - y) / scale + low)
    return _inside(kind, u, v).reshape(size[0], 3, size[1], 3).mean((1, 3))


# ---------------------------------------------------------------------------------------------- reading


def _unmix(image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Per pixel (H, W): index of the palette colour it leans to, and how much of it (alpha in [0, 1]); None without a ground."""
    chroma = image.max(-1) - image.min(-1)
    pale = (chroma < 0.12) & (image.min(-1) > 0.75)
    if pale.mean() < MIN_GROUND:
        return None
    ground = np.median(image[pale], axis=0)
    toward = np.array([PALETTE[colour] for colour in COLOURS]) - ground
    offset = image - ground
    alpha = offset @ (toward / (toward**2).sum(-1, keepdims=True)).T
    residual = np.linalg.norm(offset[..., None, :] - alpha[..., None].clip(0, 1.2) * toward, axis=-1)
    label = residual.argmin(-1)
    best = np.take_along_axis(alpha, label[..., None], -1)[..., 0].clip(0, 1)
    # what is neither ground nor near any palette colour must not pass as ground
    return label, np.where(residual.min(-1) > 0.35, 1.0, best)


def _cut_out(alpha: np.ndarray, region: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window around `region` (H, W boolean), and the coverage of that shape alone inside it."""
    top, left = (max(0, int(np.flatnonzero(region.any(axis))[0]) - 4) for axis in (1, 0))
    bottom, right = (int(np.flatnonzero(region.any(axis))[-1]) + 5 for axis in (1, 0))
    window = np.s_[top:bottom, left:right]
    return window, np.where(ndimage.binary_dilation(region[window], iterations=2), alpha[window], 0.0)


def _overlaps(soft: np.ndarray) -> tuple[dict[str, float], float, float]:
    """Soft intersection over union of a coverage (H, W) with every template of its area, and its centroid x, y."""
    area, (rows, columns) = soft.sum(), (np.arange(n) + 0.5 for n in soft.shape)
    x, y = float((soft.sum(0) * columns).sum() / area), float((soft.sum(1) * rows).sum() / area)
    figures = {kind: template(kind, area, x, y, soft.shape) for kind in KINDS}
    return (
        {
            kind: float(np.minimum(soft, figure).sum() / np.maximum(soft, figure).sum())
            for kind, figure in figures.items()
        },
        x,
        y,
    )


def _identify(image: np.ndarray, alpha: np.ndarray, region: np.ndarray, colour: str) -> SeenThing | str:
    """Name the shape in `region` (H, W boolean), or say why it is none."""
    window, soft = _cut_out(alpha, region)
    image, region = image[window], region[window]
    core = ndimage.binary_erosion(region)
    error = np.linalg.norm(image[core].mean(0) - PALETTE[colour]) if core.any() else np.inf
    if error > MAX_COLOUR_ERROR:
        return f"a colour that is not quite {colour}"
    rim = region & ~core
    if ((soft > 0.2) & (soft < 0.8)).sum() > MAX_SOFTNESS * rim.sum():
        return f"a blurred {colour} shape"
    overlap, x, y = _overlaps(soft)
    best, second = sorted(overlap, key=overlap.get, reverse=True)[:2]
    if overlap[best] < MIN_OVERLAP or overlap[best] - overlap[second] < MIN_MARGIN:
        return f"a {colour} shape between {best} and {second}"
    top, left = (part.start for part in window)
    return SeenThing(Thing(colour, best), x + left, y + top, overlap[best])


def read(image: Tensor) -> SceneReading:
    """Read one picture (3, 64, 64) with values in [0, 1]."""
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    unmixed = _unmix(pixels)
    if unmixed is None:
        return SceneReading((), "no pale ground")
    label, alpha = unmixed
    explained = np.zeros(alpha.shape, dtype=bool)
    objects, problem = [], None
    for index, colour in enumerate(COLOURS):
        regions, count = ndimage.label((alpha > 0.5) & (label == index))
        for number in range(1, count + 1):
            region = regions == number
            if region.sum() < MIN_AREA:
                continue
            seen = _identify(pixels, alpha, region, colour)
            if isinstance(seen, str):
                problem = problem or seen  # and read on: what else is there may still matter
                continue
            objects.append(seen)
            explained |= ndimage.binary_dilation(region, iterations=2)
    if problem is None and ((alpha > 0.4) & ~explained).sum() > MAX_STRAY:
        problem = "stray colour"
    return SceneReading(tuple(objects), problem or (None if objects else "nothing there"))


def glimpse(image: Tensor) -> list[Thing]:
    """Return the nearest thing to each coloured region of a picture (3, 64, 64), however badly made.

    `read` accepts well-made shapes only; who must not overlook a damaged one asks this too.
    """
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    unmixed = _unmix(pixels)
    if unmixed is None:
        return []
    label, alpha = unmixed
    regions, count = ndimage.label(alpha > 0.5)  # of any colour: a damaged shape may have several
    things = []
    for region in (regions == number for number in range(1, count + 1)):
        if region.sum() >= MIN_AREA:
            overlap, *_ = _overlaps(_cut_out(alpha, region)[1])
            colour = COLOURS[np.bincount(label[region]).argmax()]
            things.append(Thing(colour, max(overlap, key=overlap.__getitem__)))
    return things


def agrees(reading: SceneReading, caption: Caption) -> bool:
    """Return true where the caption is true of the picture *and nothing else is in it*."""
    if reading.problem or sorted(seen.thing for seen in reading.objects) != sorted(caption.things):
        return False
    if caption.relation is None:
        return True
    first, second = (next(seen for seen in reading.objects if seen.thing == thing) for thing in caption.things)
    right, down = second.x - first.x, second.y - first.y
    along, across = (right, down) if caption.relation in ("left of", "right of") else (down, right)
    if caption.relation in ("right of", "below"):
        along = -along
    return along >= MIN_APART and along > abs(across)


def judge(images: Tensor, captions: Sequence[Caption]) -> list[bool]:
    """One verdict per picture (B, 3, 64, 64) and caption.

    Raises:
        ValueError: when there are not as many captions as pictures.
    """
    if len(images) != len(captions):
        raise ValueError(f"got {len(images)} pictures and {len(captions)} captions; pass one caption per picture")
    return [agrees(read(image), caption) for image, caption in zip(images, captions)]
