"""Guidance where memory is short: room for the judge is asked for, and where it runs out he looks at one image at a time."""

import pytest
import torch

from latent_clip.tests.guided_world import World


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


@pytest.mark.parametrize(("way", "times"), [("guided", 11), ("redirected", 1)])
def test_room_for_the_judge_is_asked_for(world, monkeypatch, way, times):
    """With its way back where there is a gradient; what the host reserves for sampling is none of it."""
    import comfy.model_management as mm

    asked, load = [], mm.load_models_gpu

    def record(models, memory_required=0, *args, minimum_memory_required=None, **kwargs):
        asked.append(minimum_memory_required or 0)
        return load(models, memory_required, *args, minimum_memory_required=minimum_memory_required, **kwargs)

    monkeypatch.setattr(mm, "load_models_gpu", record)
    monkeypatch.setattr(type(world.encoder), "memory_per_item", lambda encoder, shape: 1_000_000_000)
    world.sample(world.model)
    plain = max(asked)
    world.sample(getattr(world, way)(threshold=1000))
    assert plain < 1_000_000_000 and max(asked) == pytest.approx(2 * times * 1_000_000_000, rel=0.01)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("MPS backend out of memory")])
@pytest.mark.parametrize("way", ["guided", "redirected"])
def test_judge_without_room_for_the_batch_looks_at_one_image_at_a_time(world, monkeypatch, way, error):
    model, tower, sizes = getattr(world, way)(threshold=-1000), world.clip.image.model, []
    expected, forward = world.sample(model, size=3), tower.forward

    def run_out(x):
        sizes.append(len(x))
        if len(x) > 1:
            raise error
        return forward(x)

    monkeypatch.setattr(tower, "forward", run_out)
    torch.testing.assert_close(world.sample(model, size=3), expected, atol=1e-3, rtol=1e-4)
    assert sizes[:4] == [3, 1, 1, 1]
    sizes.clear()
    world.sample(model, size=3)
    assert sizes[0] == 3  # the next sampling, for which the host makes room anew, tries the whole batch again


def test_another_error_of_the_judge_comes_out(world, monkeypatch):
    def fail(x):
        raise RuntimeError("the tower broke")

    monkeypatch.setattr(world.clip.image.model, "forward", fail)
    with pytest.raises(RuntimeError, match="the tower broke"):
        world.sample(world.guided(threshold=-1000))
