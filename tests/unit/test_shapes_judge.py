"""The judge: right on true pictures, also on those that another program draws, and hard to fool."""

import random

import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import gaussian_blur

from latent_clip.demo.captions import COLOURS, KINDS, Caption, Thing, parse
from latent_clip.demo.corpus import pick_caption, sample_corpus
from latent_clip.demo.false_accepts import false_cases
from latent_clip.demo.judge import agrees, glimpse, judge, read
from latent_clip.demo.scenes import PALETTE, render


def test_true_captions_are_accepted():
    scenes, rng = sample_corpus("judge test", 150, held_out=None, single=1 / 3), random.Random(1)
    verdicts = judge(render(scenes), [pick_caption(rng, scene, 0.5, reading_order=False) for scene in scenes])
    assert sum(verdicts) >= 0.99 * len(verdicts)


def test_false_pictures_and_captions_are_refused():
    for name, (pictures, captions) in false_cases("judge test", 20).items():
        assert sum(judge(pictures, captions)) == 0, name


def draw_with_pillow(thing: Thing, size: int = 64) -> torch.Tensor:
    """The shape as Pillow draws it, eight times as large and averaged down: no code of the renderer."""
    image = Image.new("RGB", (size * 8, size * 8), (240, 240, 244))
    draw, colour = ImageDraw.Draw(image), tuple(round(255 * value) for value in PALETTE[thing.colour])
    x, y, r = 31 * 8, 33 * 8, 12 * 8
    if thing.kind == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif thing.kind == "cross":
        draw.rectangle((x - r, y - r // 3, x + r, y + r // 3), fill=colour)
        draw.rectangle((x - r // 3, y - r, x + r // 3, y + r), fill=colour)
    elif thing.kind == "star":
        outer = [torch.tensor(2.0 * torch.pi * i / 10) for i in range(10)]
        corners = [
            (x + (r, 0.4 * r)[i % 2] * a.sin().item(), y - (r, 0.4 * r)[i % 2] * a.cos().item())
            for i, a in enumerate(outer)
        ]
        draw.polygon(corners, fill=colour)
    else:
        draw.regular_polygon((x, y, r), {"square": 4, "triangle": 3}[thing.kind], fill=colour)
    pixels = torch.tensor(list(image.resize((size, size), Image.Resampling.BOX).tobytes()), dtype=torch.float32)
    return pixels.view(size, size, 3).permute(2, 0, 1) / 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_shapes_of_another_program_are_recognised(colour, kind):
    reading = read(draw_with_pillow(Thing(colour, kind)))
    assert reading.problem is None, reading
    assert [seen.thing for seen in reading.objects] == [Thing(colour, kind)]


def test_places_are_reported_in_pixels():
    for scene in sample_corpus("places", 30, single=0.0):
        seen = {item.thing: item for item in read(render([scene])[0]).objects}
        for shape in scene.shapes:
            assert abs(seen[shape.thing].x - shape.x) < 1.5 and abs(seen[shape.thing].y - shape.y) < 2


@pytest.mark.parametrize("damage", ["blur", "hole"])
@pytest.mark.parametrize("kind", ["star", "cross", "triangle"])  # a blurred square is as near to a circle
def test_damaged_shape_is_refused_and_still_glimpsed(kind, damage):
    picture = draw_with_pillow(Thing("blue", kind))
    if damage == "blur":
        picture = gaussian_blur(picture, 11, 2.0)
    else:
        picture[:, 30:37, 28:35] = draw_with_pillow(Thing("blue", kind))[:, :1, :1]
    assert read(picture).problem
    assert Thing("blue", kind) in glimpse(picture)


@pytest.mark.parametrize(("value", "problem"), [(0.0, "no pale ground"), (0.95, "nothing there")])
def test_blank_pictures_are_refused_with_a_reason(value, problem):
    reading = read(torch.full((3, 64, 64), value))
    assert reading.problem == problem and glimpse(torch.full((3, 64, 64), value)) == []
    assert not agrees(reading, parse("a red circle"))


def test_pictures_and_captions_must_match_in_number():
    with pytest.raises(ValueError, match="got 2 pictures and 1 captions"):
        judge(torch.zeros(2, 3, 64, 64), [Caption((Thing("red", "circle"),))])
