"""Scenes and captions: seeded, what is drawn is what is said, and the held-out pairs stay out."""

import random
from itertools import combinations

import pytest
import torch

from latent_clip.demo.captions import OPPOSITE, THINGS, Caption, Thing, is_held_out, parse
from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import PALETTE, SIZE, render, sample_crowd, sample_scene, sample_things
from latent_clip.demo.train import used_ids

RED_CIRCLE, BLUE_STAR = Thing("red", "circle"), Thing("blue", "star")


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (Caption((RED_CIRCLE,)), "a red circle"),
        (Caption((Thing("orange", "cross"),)), "an orange cross"),
        (Caption((RED_CIRCLE, BLUE_STAR)), "a red circle and a blue star"),
        (Caption((BLUE_STAR, RED_CIRCLE), "left of"), "a blue star left of a red circle"),
        (Caption((BLUE_STAR, RED_CIRCLE), "below"), "a blue star below a red circle"),
    ],
)
def test_captions_are_written_and_read_back(caption, text):
    assert str(caption) == text
    assert parse(text) == caption
    assert parse(text.upper().replace(" ", "  ")) == caption


@pytest.mark.parametrize(
    "text", ["", "red circle", "a pink circle", "a red circle and", "a red circle near a blue star"]
)
def test_other_text_is_refused_with_the_words_that_are_known(text):
    with pytest.raises(ValueError, match="colours: red, orange"):
        parse(text)


def test_near_misses_of_a_caption():
    caption = Caption((RED_CIRCLE, BLUE_STAR), "above")
    assert str(caption.swapped()) == "a blue circle above a red star"
    assert str(caption.reversed()) == "a red circle below a blue star"
    assert caption.meaning() == Caption((BLUE_STAR, RED_CIRCLE), "below").meaning() != caption.reversed().meaning()


def test_same_seed_draws_the_same_pixels():
    first, second = (render(sample_corpus("seed", 12)) for _ in range(2))
    assert first.shape == (12, 3, SIZE, SIZE)
    assert torch.equal(first, second)
    assert not torch.equal(first, render(sample_corpus("another seed", 12)))
    assert first.min() >= 0 and first.max() <= 1


def test_relations_follow_the_places():
    for scene in sample_corpus("relations", 60, single=0.0):
        for caption in scene.captions()["relation"]:
            place = {shape.thing: shape for shape in scene.shapes}
            first, second = (place[thing] for thing in caption.things)
            moved = {
                "left of": second.x - first.x,
                "right of": first.x - second.x,
                "above": second.y - first.y,
                "below": first.y - second.y,
            }
            assert moved[caption.relation] > 20
            assert caption.reversed().relation == OPPOSITE[caption.relation]


def test_shapes_stay_inside_and_apart():
    for scene in sample_corpus("inside", 200, held_out=None, single=0.3):
        for shape in scene.shapes:
            assert 1.25 * shape.radius <= min(shape.x, shape.y, SIZE - shape.x, SIZE - shape.y) + 1
        if len(scene.shapes) == 2:
            first, second = scene.shapes
            assert max(abs(first.x - second.x), abs(first.y - second.y)) > first.radius + second.radius + 3


def test_shape_is_painted_in_its_colour():
    for scene in sample_corpus("colours", 60, single=1.0):
        shape = scene.shapes[0]
        pixel = render([scene])[0, :, round(shape.y), round(shape.x)]
        assert (pixel - torch.tensor(PALETTE[shape.thing.colour])).abs().max() < 0.03


def test_training_scenes_never_show_a_held_out_pair():
    pairs = [p for p in combinations(THINGS, 2) if p[0].kind != p[1].kind and p[0].colour != p[1].colour]
    held = sum(map(is_held_out, pairs))
    assert len(pairs) == 300 and 45 <= held <= 75
    assert all(is_held_out(pair) == is_held_out(pair[::-1]) for pair in pairs)
    assert not any(is_held_out(scene.things) for scene in sample_corpus("corpus", 500, single=0.0))
    assert all(is_held_out(scene.things) for scene in sample_corpus("corpus", 100, held_out=True, single=0.0))


def test_three_things_are_refused():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="one or two things, got 3"):
        sample_scene(rng, (*sample_things(rng), RED_CIRCLE))
    assert len(sample_crowd(rng).shapes) == 4


def test_stored_vocabulary_covers_every_caption():
    from latent_clip.demo.corpus import tokenize

    texts = [
        str(c)
        for scene in sample_corpus("words", 300, held_out=None)
        for group in scene.captions().values()
        for c in group
    ]
    assert set(tokenize(texts).unique().tolist()) - {0} <= set(used_ids().tolist())
