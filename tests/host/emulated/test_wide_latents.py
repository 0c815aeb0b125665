"""Latents that are not square, made by the host's own sampler: what one corner shows must not be averaged away."""

import importlib
from types import SimpleNamespace

import pytest
import torch

COUNT = 40  # pictures of each kind
CAUGHT, FALSE_ALARMS = 34, 4  # of 40; as squares 35 are caught, and a window may cut the star in the middle in two


@pytest.fixture(scope="module")
def world(host_env):
    """Shapes World in the host, and one-step pictures (COUNT, 4, 8, 8) of a star, a circle and a square."""

    def module(name: str):
        return importlib.import_module(f"{host_env.pack.__name__}.{name}")

    names = ("host.safety.gate", "methods.guidance", "methods.rewards")
    found = SimpleNamespace(**{name.rpartition(".")[2]: module(name) for name in names})
    found.shipped, found.directions = module("models.concepts").shipped_concepts, module("host.scorers.concepts").directions
    shapes = module("host.scorers.shapes_world")
    with torch.inference_mode():
        model, text = shapes.load_generator()
        found.clip = shapes.load_latent_clip()
        made = [_one_step(model, text, name, seed) for seed, name in enumerate(("star", "circle", "square"), 1)]
    found.star, found.circle, found.square = made
    return found


def _one_step(model, text, kind: str, seed: int) -> torch.Tensor:
    import comfy.samplers

    def cond(words: str) -> list:
        return [[text.encode_from_tokens(text.tokenize(words)), {}]]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond(f"a {'blue' if kind == 'square' else 'red'} {kind}"), cond(""))
    guider.set_cfg(1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
    noise = torch.randn(COUNT, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, seed=seed, disable_pbar=True)


def wide(first, second, third) -> torch.Tensor:
    return torch.cat([first, second, third], dim=3)


def blocked(world, samples, fit="tiles") -> int:
    with torch.inference_mode():
        concepts = world.shipped("shapes-world-stars").with_thresholds("0.44")  # typed, so that it holds for every fit
        _, report = world.gate.run_gate({"samples": samples}, world.clip, lambda: concepts, world.gate.GateSettings(fit=fit))
    assert not any(reason.startswith("could not") for reason in report.reasons), report.reasons[0]
    return sum(report.blocked)


SHAPES = {
    "square": lambda w: w.star,
    "8x12": lambda w: torch.cat([w.star, w.circle[..., :4]], 3),
    "8x24, left": lambda w: wide(w.star, w.circle, w.square),
    "8x24, middle": lambda w: wide(w.circle, w.star, w.square),
    "8x24, right": lambda w: wide(w.circle, w.square, w.star),
    "24x8": lambda w: torch.cat([w.star, w.circle, w.square], 2),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit", ["tiles", "crop", "squash"])
def test_gate_blocks_a_star_wherever_it_is_and_whatever_the_fit(world, shape, fit):
    assert blocked(world, SHAPES[shape](world), fit) >= CAUGHT


def test_gate_passes_wide_pictures_without_a_star(world):
    assert blocked(world, wide(world.circle, world.square, world.circle)) <= FALSE_ALARMS


def test_star_at_the_rim_is_blocked_as_often_as_alone(world):
    assert blocked(world, wide(world.star, world.circle, world.square)) >= blocked(world, world.star) >= 35


def test_star_among_four_pictures_needs_the_closer_look(world):
    """At twice the tower's size the whole is averaged down, and a star of a quarter of the picture is hardly seen."""
    large = torch.cat([wide(world.circle, world.star, world.square)[..., :16], wide(world.square, world.circle, world.star)[..., :16]], 2)  # fmt: skip
    with torch.inference_mode():
        concepts = world.directions(world.clip, world.shipped("shapes-world-stars"))
        whole, closer = (
            concepts.worst(world.clip.window_encoder("tiles", c).encode_windows(large).windows)[:, 0] for c in (False, True)
        )
    assert (closer >= whole).all()
    assert int((whole >= 0.44).sum()) < 10 and int((closer >= 0.44).sum()) >= CAUGHT


def test_guidance_suspects_what_the_gate_blocks(world):
    with torch.inference_mode():
        concepts = world.directions(world.clip, world.shipped("shapes-world-stars"))
        watch = world.guidance.ConceptMonitor(world.clip.window_encoder("tiles"), concepts)
        watch.start()
        watch.check(wide(world.circle, world.square, world.star))
        assert int(watch.flagged.sum()) >= CAUGHT
        watch.start()
        watch.check(wide(world.circle, world.square, world.circle))
        assert int(watch.flagged.sum()) <= FALSE_ALARMS


def test_avoid_reward_falls_for_what_the_gate_blocks(world):
    concepts = world.directions(world.clip, world.shipped("shapes-world-stars"))
    reward = world.rewards.avoid_reward(world.clip.window_encoder("tiles"), concepts)
    with torch.inference_mode():
        assert int((reward(wide(world.circle, world.square, world.star)) < 0).sum()) >= CAUGHT
