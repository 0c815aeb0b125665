"""Noise masks of every legal form stay with their items: what a sampler reads for an item before and after is the same."""

import importlib

import pytest
import torch

from latent_clip.tests.search_world import SearchWorld

SIZE = 5
PICK = [3, 0, 4]


@pytest.fixture(scope="module")
def latents(host_env):
    return importlib.import_module(f"{host_env.pack.__name__}.host.scorers.latents")


def rand(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def read(mask, shape) -> torch.Tensor:
    """Mask as the host's samplers read it."""
    from comfy.sampler_helpers import prepare_mask

    return prepare_mask(mask, shape, "cpu")


MASKS = {
    "2-D": (64, 64), "2-D of latent size": (8, 8), "2-D as tall as the batch": (SIZE, 8), "3-D": (SIZE, 64, 64), "3-D of one": (1, 64, 64),
    "3-D of two": (2, 64, 64), "3-D of seven": (7, 64, 64), "4-D": (SIZE, 1, 64, 64), "4-D of one": (1, 1, 8, 8), "4-D of two": (2, 1, 64, 64),
    "4-D of seven": (7, 1, 8, 8), "channels": (SIZE, 4, 8, 8), "channels of one": (1, 4, 64, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("indices", [PICK, [1], [*range(SIZE)]])
def test_mask_of_an_image_stays_with_it(latents, name, indices):
    latent = {"samples": rand(SIZE, 4, 8, 8), "noise_mask": rand(*MASKS[name])}
    picked = latents.select_items(latent, indices)
    before = read(latent["noise_mask"], latent["samples"].shape)
    assert torch.equal(read(picked["noise_mask"], picked["samples"].shape), before[indices])
    if name.startswith("2-D"):
        assert picked["noise_mask"] is latent["noise_mask"]


@pytest.mark.parametrize("shape", [(64, 64), (3, 64, 64), (3, 1, 8, 8), (SIZE, 64, 64), (1, 1, 3, 8, 8), (SIZE, 1, 3, 8, 8), (2, 1, 3, 1, 1)])
def test_mask_of_a_clip_stays_with_it(latents, shape):
    latent = {"samples": rand(SIZE, 4, 3, 8, 8), "noise_mask": rand(*shape)}
    picked = latents.select_items(latent, PICK)
    before = read(latent["noise_mask"], latent["samples"].shape)
    assert torch.equal(read(picked["noise_mask"], picked["samples"].shape), before[PICK])


def test_masks_of_several_parts_stay_with_their_parts(latents):
    from comfy.nested_tensor import NestedTensor

    video, sound = rand(SIZE, 4, 3, 8, 8), rand(SIZE, 8, 25, 16)
    of_video, of_sound = rand(SIZE, 1, 3, 8, 8), rand(SIZE, 8, 25, 16)
    latent = {"samples": NestedTensor([video, sound]), "noise_mask": NestedTensor([of_video, of_sound])}
    masks = latents.select_items(latent, PICK)["noise_mask"].unbind()
    assert torch.equal(masks[0], of_video[PICK])
    assert torch.equal(read(masks[1], (3, 8, 25, 16)), read(of_sound, sound.shape)[PICK])
    one = latents.select_items(latent | {"noise_mask": of_video}, PICK)
    assert torch.equal(one["noise_mask"], of_video[PICK])


@pytest.mark.parametrize("mask", [(64, 64), (SIZE, 64, 64), (SIZE, 1, 8, 8)])
def test_nodes_hand_masks_on(comfy, mask):
    """Select, Classify and Gate over HTTP, and Score, which changes nothing."""
    given = {"samples": rand(SIZE, 4, 8, 8) * 14 - 7, "noise_mask": rand(*mask)}
    comfy.save_input("masked_five", given)
    wires = {
        "best": ["select", 0], "rest": ["select", 1], "matched": ["classify", 3], "others": ["classify", 4], "safe": ["gate", 0],
        "scored": ["score", 0],
    }  # fmt: skip
    judged = {"latent": ["five", 0], "latent_clip": ["world", 3], "fit": "tiles"}
    result = comfy.run({
        "world": {"class_type": "LatentCLIPShapesWorld", "inputs": {}},
        "five": {"class_type": "TestLoadLatent", "inputs": {"name": "masked_five"}},
        "reward": {"class_type": "LatentCLIPTextReward", "inputs": {"latent_clip": ["world", 3], "text": "a red circle", "weight": 1.0, "fit": "tiles"}},
        "select": {"class_type": "LatentCLIPSelect", "inputs": {
            "latent": ["five", 0], "reward": ["reward", 0], "keep": 2, "use_threshold": False, "threshold": 0.0}},
        "score": {"class_type": "LatentCLIPScore", "inputs": {"latent": ["five", 0], "reward": ["reward", 0]}},
        "classify": {"class_type": "LatentCLIPClassify", "inputs": judged | {"labels": "a red circle\na blue star", "templates": "{}", "route": ""}},
        "gate": {"class_type": "LatentCLIPSafetyGate", "inputs": judged | {
            "concepts": "shapes-world-stars", "typed": "", "categories": "", "thresholds": "1000", "on_block": "drop", "views": 0,
            "audit_log": False, "log_prompt": False}},
        **{name: {"class_type": "TestDump", "inputs": {"value": wire, "name": f"masks_{name}_{len(mask)}"}} for name, wire in wires.items()},
    })  # fmt: skip
    assert result.ok, result.error
    before = read(given["noise_mask"], given["samples"].shape)
    for name in wires:
        wire = comfy.dump(f"masks_{name}_{len(mask)}")
        if not wire or not isinstance(wire[0], dict):
            continue  # of this label there is none
        samples = torch.as_tensor(wire[0]["samples"])
        rows = [next(i for i, one in enumerate(given["samples"]) if torch.equal(one, item)) for item in samples]
        assert torch.equal(read(torch.as_tensor(wire[0]["noise_mask"]), samples.shape), before[rows]), name


@pytest.mark.parametrize("shape", [(64, 64), (8, 8), (6, 8, 8), (1, 8, 8)])
@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_search_hands_masks_on(host_env, look, shape):
    """Each winner is what the stock sampler makes of it under its mask, and leaves with that mask."""
    world = SearchWorld(host_env)
    mask = rand(*shape).round()
    latent = {"samples": torch.full((6, 4, 8, 8), 3.0), "noise_mask": mask}
    sigmas = world.sigmas(16)[6:]
    found = world.run(latent=latent, look=look, sigmas=sigmas)
    full, before = world.plain(latent, sigmas=sigmas), read(mask, (6, 4, 8, 8))
    for place, index in enumerate(found.best["batch_index"]):
        torch.testing.assert_close(found.best["samples"][place], full[index], atol=2e-3, rtol=1e-3)
        assert torch.equal(read(found.best["noise_mask"], found.best["samples"].shape)[place], before[index])
