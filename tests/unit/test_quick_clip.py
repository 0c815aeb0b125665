"""The quick CLIP of the studies is the CLIP that it was made from; a recipe's mixture is what it says."""

import random

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP

from latent_clip.demo.captions import THINGS, Caption
from latent_clip.demo.corpus import CONTEXT, pick_caption, sample_corpus, tokenize
from latent_clip.demo.scenes import render
from latent_clip.demo.train_clip import STAGES, Stage, near_misses, normalised
from latent_clip.models.shapes_world import VOCABULARY, load_weights
from latent_clip.studies.quick_clip import LONGEST, Quick


@pytest.fixture(scope="module")
def shipped():
    weights, config = load_weights("pixel_clip")
    clip = CustomTextCLIP(**config)
    clip.load_state_dict(weights)
    return clip, weights


@pytest.fixture(scope="module")
def quick(shipped):
    clip = CustomTextCLIP(**load_weights("pixel_clip")[1])
    clip.load_state_dict(shipped[1])
    return Quick(clip, normalised)


def test_it_says_what_the_clip_says(shipped, quick):
    scenes = sample_corpus("quick", 6, single=0.3)
    captions = [Caption((THINGS[5], THINGS[11]), "right of"), *(scene.captions().popitem()[1][-1] for scene in scenes)]
    tokens, pictures = tokenize([str(caption) for caption in captions]), render(scenes)
    clip, _ = shipped
    with torch.no_grad():
        text, image = clip.encode_text(tokens, normalize=True), clip.encode_image(normalised(pictures), normalize=True)
        assert F.cosine_similarity(quick.encode_text(tokens), text).min() > 0.995
        assert F.cosine_similarity(quick.encode_image(pictures), image).min() > 0.995
        with quick.exact():
            torch.testing.assert_close(quick.encode_text(tokens), text, atol=1e-4, rtol=0)
            torch.testing.assert_close(quick.encode_image(pictures), image, atol=1e-4, rtol=0)
    assert quick.training


def test_no_caption_is_longer():
    pairs = [str(Caption((a, b), "right of")) for a in THINGS for b in THINGS]
    assert CONTEXT > LONGEST == (tokenize(pairs) != 0).sum(1).max()


def test_it_gives_the_whole_model_back(shipped, quick):
    state = quick.state(VOCABULARY)
    assert state.keys() == shipped[1].keys()
    assert all(torch.equal(state[key], value) for key, value in shipped[1].items())


def test_only_words_of_captions_are_trained(quick):
    quick.encode_text(tokenize(["a red circle"])).sum().backward()
    table = quick.clip.text.token_embedding.weight
    assert len(table) < 40 and (table.grad.abs().sum(1) > 0).sum() == 5  # start, a, red, circle, end
    quick.zero_grad()


@pytest.mark.parametrize(
    ("stage", "share"), [(STAGES[0], 0.75), (STAGES[-1], 0.2714), (Stage("", 1, 1.0, 0, 0.15, 10, 7), 0.5)]
)
def test_the_share_of_swaps_is_what_is_drawn(stage, share):
    assert stage.swap_share == pytest.approx(share, abs=1e-3)
    rng, scene = random.Random("share"), sample_corpus("share", 1, single=0.0)[0]
    captions = [pick_caption(rng, scene, stage.and_share, reading_order=False) for _ in range(4000)]
    swapped = [near_misses(rng, c, stage.reversals, stage.swaps)[2] == c.swapped() for c in captions]
    assert sum(swapped) / 4000 == pytest.approx(share, abs=0.03)
