"""All samplers of the host: what they leave of their inputs, and what of a search's help is about them."""

import re

import pytest
import torch

from latent_clip.tests.ahead_world import AheadWorld
from latent_clip.tests.search_world import SearchWorld
from latent_clip.tools.comfy_server import PACK_ROOT

ONE_STEP_SIZE_FOR_ALL = "dpm_adaptive"


@pytest.fixture(scope="module")
def world(host_env):
    return SearchWorld(host_env)


@pytest.fixture(scope="module")
def ahead(host_env, world):
    made = AheadWorld(host_env)
    made.model = world.model
    return made


@pytest.fixture(scope="module")
def samplers(world) -> list[str]:
    import comfy.samplers

    return sorted(comfy.samplers.SAMPLER_NAMES)


def test_guidance_leaves_the_callers_sigmas_of_every_sampler_and_an_innocent_image(world, ahead, samplers):
    """uni_pc of the host writes into the sigmas that it is given. A sampling of four steps is its own draft."""
    written, other = [], []
    models = {"ahead": ahead.looking(1000.0), "pushed": ahead.guided(threshold=1000.0)}
    for name in samplers:
        plain = world.plain(world.empty(2), sampler=name, sigmas=world.sigmas(4), guider=guider(world, world.model))
        for kind, model in models.items():
            sigmas = world.sigmas(4)
            made = world.plain(world.empty(2), sampler=name, sigmas=sigmas, guider=guider(world, model))
            written += [] if torch.equal(sigmas, world.sigmas(4)) else [(name, kind)]
            other += [] if near(made, plain) else [(name, kind)]
    assert (written, other) == ([], [])


def guider(world, model):
    return world.guider(model, "a red circle", cfg=1.0)


def near(one: torch.Tensor, two: torch.Tensor) -> bool:
    return torch.allclose(one, two, atol=2e-3, rtol=1e-3)


def test_optimize_noise_leaves_the_sigmas(world):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    sigmas = world.sigmas(2)
    with torch.inference_mode():
        world.reno.run_reno(
            Noise_RandomNoise(3), world.guider(world.model), sigmas, world.empty(2), world.text_reward,
            world.settings(iterations=2), "fast",
        )  # fmt: skip
    assert torch.equal(sigmas, world.sigmas(2))


# ---------------------------------------------------------------------------------- samplers with noise of their own


def depend_on_their_batch(world, samplers) -> list[str]:
    """Samplers of which an item alone, with the noise of its `batch_index`, is not that item of its batch."""
    items, found = [1, 3], []
    for name in samplers:
        how = {"sampler": name, "steps": 4}
        full = world.plain(world.empty(4), guider=guider(world, world.model), **how)
        ones = [{**world.empty(1), "batch_index": [item]} for item in items]
        alone = [world.plain(one, guider=guider(world, world.model), **how) for one in ones]
        if not near(torch.cat(alone), full[items]):
            found.append(name)
    return found


def test_help_names_the_samplers_whose_winners_cannot_be_made_again_alone(world, samplers):
    found = depend_on_their_batch(world, samplers)
    text = (PACK_ROOT / "js" / "docs" / "LatentCLIPSearch.md").read_text(encoding="utf-8")
    sentence = re.search(r"cannot be made again alone:([^.]*)\.", text)
    assert sentence is not None
    named = re.findall(r"`(\w+)`", sentence.group(1))
    named_here = set(named) & set(samplers)  # an older host has not all of them
    assert named_here == set(found) - {ONE_STEP_SIZE_FOR_ALL}, named_here ^ set(found)
    assert set(named) == world.evaluations.NOISE_OF_THEIR_OWN
