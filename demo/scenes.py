"""Procedural scenes of coloured shapes, and what can truly be said about them.

A scene is 64×64 px: one or two shapes (5 kinds × 6 colours) on a soft pastel ground. Everything is a pure
function of a seeded `random.Random`. Objects are listed in reading order (left to right, top to bottom), and two
objects of one scene differ in both kind and colour, so that swapping attributes always makes a false caption.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .captions import COLOURS, KINDS, Caption, Thing, is_held_out

SIZE = 64

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.20, 0.22),
    "orange": (0.97, 0.58, 0.16),
    "yellow": (0.98, 0.85, 0.22),
    "green": (0.22, 0.66, 0.36),
    "blue": (0.18, 0.43, 0.86),
    "purple": (0.57, 0.28, 0.74),
}

GROUNDS = (
    (0.97, 0.95, 0.92),
    (0.92, 0.95, 0.98),
    (0.91, 0.96, 0.93),
    (0.97, 0.92, 0.93),
    (0.94, 0.92, 0.98),
    (0.93, 0.93, 0.93),
)


@dataclass(frozen=True)
class Shape:
    """One drawn object: centre (x, y) and radius in px; rgb in [0, 1]."""

    thing: Thing
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order on a ground that fades from `top` to `bottom` (rgb in [0, 1])."""

    shapes: tuple[Shape, ...]
    top: tuple[float, float, float]
    bottom: tuple[float, float, float]

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(shape.thing for shape in self.shapes)

    @property
    def horizontal(self) -> bool:
        """Return true for two shapes side by side (else one above the other)."""
        first, second = self.shapes
        return abs(first.x - second.x) > abs(first.y - second.y)

    def captions(self) -> dict[str, tuple[Caption, ...]]:
        """Every true caption by category ("single", or "and" and "relation"), the reading order first."""
        if len(self.shapes) == 1:
            return {"single": (Caption(self.things),)}
        forward, backward = ("left of", "right of") if self.horizontal else ("above", "below")
        first, second = self.things
        return {
            "and": (Caption((first, second)), Caption((second, first))),
            "relation": (Caption((first, second), forward), Caption((second, first), backward)),
        }


# ---------------------------------------------------------------------------------------------- sampling


def _around(rng: random.Random, rgb: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
    return tuple(min(1.0, max(0.0, value + rng.uniform(-spread, spread))) for value in rgb)


def _shape(rng: random.Random, thing: Thing, x: float, y: float, radius: float) -> Shape:
    return Shape(thing, x, y, radius, _around(rng, PALETTE[thing.colour], 0.02))


def sample_things(rng: random.Random, held_out: bool | None = False) -> tuple[Thing, Thing]:
    """Draw two things that differ in kind and colour; `held_out` None takes any pair, else only that side of the split."""
    while True:
        kinds, colours = rng.sample(KINDS, 2), rng.sample(COLOURS, 2)
        pair = Thing(colours[0], kinds[0]), Thing(colours[1], kinds[1])
        if held_out is None or is_held_out(pair) == held_out:
            return pair


def sample_scene(rng: random.Random, things: tuple[Thing, ...], horizontal: bool | None = None) -> Scene:
    """Place one or two `things` with random size, position and ground; two stand side by side or one above the other."""
    ground = _around(rng, rng.choice(GROUNDS), 0.012)
    top, bottom = (tuple(min(1.0, value + shift) for value in ground) for shift in (0.02, -0.02))
    if len(things) == 1:
        return Scene(
            (_shape(rng, things[0], 32 + rng.uniform(-9, 9), 32 + rng.uniform(-9, 9), rng.uniform(10, 16)),),
            top,
            bottom,
        )
    if len(things) != 2:
        raise ValueError(f"a scene holds one or two things, got {len(things)}: {things}; pass one or two")
    horizontal = rng.random() < 0.5 if horizontal is None else horizontal
    middle = 32 + rng.uniform(-7, 7)
    shapes = []
    for thing, along in zip(things, (17, 47)):
        along, across = along + rng.uniform(-1.5, 1.5), middle + rng.uniform(-3, 3)
        x, y = (along, across) if horizontal else (across, along)
        shapes.append(_shape(rng, thing, x, y, rng.uniform(8.5, 11)))
    return Scene(tuple(shapes), top, bottom)


def sample_crowd(rng: random.Random) -> Scene:
    """Four shapes on a loose grid: no caption fits it; it teaches an autoencoder four times as fast."""
    one = sample_scene(rng, (Thing(COLOURS[0], KINDS[0]),))
    cells = [(x + rng.uniform(-2, 2), y + rng.uniform(-2, 2)) for y in (17, 47) for x in (17, 47)]
    shapes = tuple(
        _shape(rng, Thing(rng.choice(COLOURS), rng.choice(KINDS)), x, y, rng.uniform(7.5, 11.5)) for x, y in cells
    )
    return Scene(shapes, one.top, one.bottom)


# ---------------------------------------------------------------------------------------------- rendering


def _polygon(points: int, radius: float, inner: float | None = None) -> list[tuple[float, float]]:
    """A regular polygon, or with `inner` a star, first corner up; y grows downwards as in the picture."""
    radii = [radius] if inner is None else [radius, inner]
    total = points * len(radii)
    return [
        (
            radii[i % len(radii)] * math.sin(2 * math.pi * i / total),
            -radii[i % len(radii)] * math.cos(2 * math.pi * i / total),
        )
        for i in range(total)
    ]


def _cross(arm: float, half_width: float) -> list[tuple[float, float]]:
    quarter = [(half_width, -arm), (half_width, -half_width), (arm, -half_width)]
    turned = []
    for _ in range(4):
        turned += quarter
        quarter = [(-y, x) for x, y in quarter]
    return turned


# Corners at radius 1, sized so that all kinds look equally heavy; the triangle and star sit a little low to look centred.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0.9, -0.9), (0.9, 0.9), (-0.9, 0.9), (-0.9, -0.9)],
    "triangle": [(x, y + 0.12) for x, y in _polygon(3, 1.22)],
    "star": [(x, y + 0.05) for x, y in _polygon(5, 1.25, 0.56)],
    "cross": _cross(1.05, 0.37),
}


def _signed_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Distance in px from points (P, 2) to polygons (N, V, 2), negative inside: (N, P). After Quilez, "2D distance functions"."""
    start, end = corners, corners.roll(-1, dims=1)
    squared = torch.full((corners.shape[0], points.shape[0]), torch.inf)
    crossings = torch.zeros_like(squared, dtype=torch.bool)
    for a, b in zip(start.unbind(1), end.unbind(1)):
        edge, offset = (b - a)[:, None], points[None] - a[:, None]
        along = ((offset * edge).sum(-1) / (edge * edge).sum(-1)).clamp(0, 1)
        squared = torch.minimum(squared, (offset - along[..., None] * edge).square().sum(-1))
        spans = (a[:, None, 1] > points[None, :, 1]) != (b[:, None, 1] > points[None, :, 1])
        left = offset[..., 0] < edge[..., 0] * offset[..., 1] / torch.where(edge[..., 1] == 0, 1.0, edge[..., 1])
        crossings ^= spans & left
    return squared.sqrt() * torch.where(crossings, -1.0, 1.0)


def coverage(shapes: list[Shape]) -> Tensor:
    """Anti-aliased coverage of each shape: (N, 64, 64) in [0, 1]."""
    axis = torch.arange(SIZE) + 0.5
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    distance = torch.empty(len(shapes), SIZE * SIZE)
    for kind in KINDS:
        rows = [i for i, shape in enumerate(shapes) if shape.thing.kind == kind]
        if not rows:
            continue
        centre = torch.tensor([(shapes[i].x, shapes[i].y) for i in rows])
        radius = torch.tensor([shapes[i].radius for i in rows])
        if kind == "circle":
            distance[rows] = (points[None] - centre[:, None]).norm(dim=-1) - radius[:, None]
        else:
            distance[rows] = _signed_distance(
                points, centre[:, None] + radius[:, None, None] * torch.tensor(OUTLINES[kind])
            )
    return (0.5 - distance).clamp(0, 1).unflatten(1, (SIZE, SIZE))


def render(scenes: list[Scene]) -> Tensor:
    """Draw scenes, later shapes over earlier ones: (B, 3, 64, 64) float32 in [0, 1]."""
    top, bottom = (torch.tensor([getattr(scene, end) for scene in scenes])[..., None] for end in ("top", "bottom"))
    fade = ((torch.arange(SIZE) + 0.5) / SIZE)[None, None]
    images = (top + (bottom - top) * fade)[..., None].expand(-1, -1, -1, SIZE).clone()
    for layer in range(max(len(scene.shapes) for scene in scenes)):
        rows = [i for i, scene in enumerate(scenes) if layer < len(scene.shapes)]
        shapes = [scenes[i].shapes[layer] for i in rows]
        paint = torch.tensor([shape.rgb for shape in shapes])[..., None, None]
        images[rows] = torch.lerp(images[rows], paint.expand(-1, -1, SIZE, SIZE), coverage(shapes)[:, None])
    return images
