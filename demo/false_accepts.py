"""Pictures of which a caption is *not* true, by the way in which they fail: the judge must refuse them all."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from .captions import COLOURS, KINDS, THINGS, Caption, Thing
from .corpus import pick_caption, sample_corpus
from .scenes import SIZE, Scene, render, sample_scene, sample_things


def _caption(rng: random.Random, scene: Scene) -> Caption:
    return pick_caption(rng, scene, 0.5, reading_order=False)


def _with_thing(scene: Scene, at: int, thing: Thing, rgb: tuple[float, float, float]) -> Scene:
    shapes = list(scene.shapes)
    shapes[at] = replace(shapes[at], thing=thing, rgb=rgb)
    return replace(scene, shapes=tuple(shapes))


def other_scene(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """A picture of something else with as many things."""
    while True:
        things = (rng.choice(THINGS),) if len(scene.shapes) == 1 else sample_things(rng, None)
        if sorted(things) != sorted(caption.things):
            return render([sample_scene(rng, things)])[0]


def wrong_colour(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """One thing in another colour."""
    at = rng.randrange(len(scene.shapes))
    old = scene.shapes[at].thing
    colour = rng.choice([c for c in COLOURS if c != old.colour])
    donor = sample_scene(rng, (Thing(colour, old.kind),)).shapes[0]
    return render([_with_thing(scene, at, donor.thing, donor.rgb)])[0]


def wrong_kind(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """One thing of another kind, same place, size and colour."""
    at = rng.randrange(len(scene.shapes))
    old = scene.shapes[at]
    kind = rng.choice([k for k in KINDS if k != old.thing.kind])
    return render([_with_thing(scene, at, Thing(old.thing.colour, kind), old.rgb)])[0]


def extra_thing(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """The scene with one more shape in a free corner."""
    free = [(x, y) for x in (11, 53) for y in (11, 53)]
    x, y = max(free, key=lambda p: min((p[0] - s.x) ** 2 + (p[1] - s.y) ** 2 for s in scene.shapes))
    extra = sample_scene(rng, (rng.choice(THINGS),)).shapes[0]
    return render([replace(scene, shapes=(*scene.shapes, replace(extra, x=x, y=y, radius=8.0)))])[0]


def missing_thing(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """One thing less: an empty ground for single captions."""
    kept = list(scene.shapes)
    gone = kept.pop(rng.randrange(len(kept)))
    if kept:
        return render([replace(scene, shapes=tuple(kept))])[0]
    return render([replace(scene, shapes=(replace(gone, radius=0.01, x=-9.0),))])[0]


def blurred(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """Everything in place, but a Gaussian blur of 2-4 px."""
    return gaussian_blur(render([scene]), 25, rng.uniform(2, 4))[0]


def noisy_picture(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """Coarse coloured noise and nothing else."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode=rng.choice(["nearest", "bicubic"]))[0].clamp(
        0, 1
    )


def double_exposure(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """Half this picture, half another one."""
    return (render([scene])[0] + other_scene(rng, scene, caption)) / 2


def half_erased(rng: random.Random, scene: Scene, caption: Caption) -> Tensor:
    """One thing cut off at its middle by the ground."""
    shape = rng.choice(scene.shapes)
    picture = render([scene])[0]
    picture[:, :, round(shape.x) : round(shape.x + 1.4 * shape.radius)] = torch.tensor(scene.top)[:, None, None]
    return picture


PICTURES: dict[str, Callable[[random.Random, Scene, Caption], Tensor]] = {
    "another scene": other_scene, "wrong colour": wrong_colour, "wrong kind": wrong_kind, "extra thing": extra_thing,
    "missing thing": missing_thing, "blur of 2-4 px": blurred, "colour noise": noisy_picture,
    "double exposure": double_exposure, "half erased": half_erased,
}  # fmt: skip


def false_cases(seed: str, count: int) -> dict[str, tuple[Tensor, list[Caption]]]:
    """For every way to fail: `count` pictures (N, 3, 64, 64) and captions that are false of them."""
    rng = random.Random(seed)
    cases = {}
    for name, make in PICTURES.items():
        scenes = sample_corpus(f"{seed}/{name}", count, held_out=None, single=1 / 3)
        captions = [_caption(rng, scene) for scene in scenes]
        cases[name] = torch.stack([make(rng, scene, caption) for scene, caption in zip(scenes, captions)]), captions
    pairs = sample_corpus(f"{seed}/captions", count, held_out=None, single=0.0)
    pictures = render(pairs)
    related = [rng.choice(scene.captions()["relation"]) for scene in pairs]
    cases["swapped colours"] = pictures, [_caption(rng, scene).swapped() for scene in pairs]
    cases["reversed relation"] = pictures, [caption.reversed() for caption in related]
    turned = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}
    cases["other axis"] = pictures, [replace(caption, relation=turned[caption.relation]) for caption in related]
    return cases
