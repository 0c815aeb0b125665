"""What Optimize Noise asks the host's memory management for, and how `auto` reads the free memory."""

import pytest

from latent_clip_pack.tests.host.test_reno_leaves_nothing import World


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


@pytest.fixture
def asked(monkeypatch):
    """(bytes, least bytes) of every call of the host's loader that says what it needs."""
    import comfy.model_management as mm

    calls, load = [], mm.load_models_gpu

    def record(models, memory_required=0, *args, minimum_memory_required=None, **kwargs):
        if minimum_memory_required is not None:
            calls.append((memory_required, minimum_memory_required))
        return load(models, memory_required, *args, minimum_memory_required=minimum_memory_required, **kwargs)

    monkeypatch.setattr(mm, "load_models_gpu", record)
    return calls


def test_the_memory_asked_grows_with_what_the_way_back_keeps(world, asked):
    world.stock()
    for arguments in ({"memory": "low"}, {"memory": "fast"}, {"memory": "fast", "cfg": 1.0}, {"memory": "auto"}):
        world.run(iterations=2, **arguments)
    stock, low, fast, fast_without_negative, auto = (least for _, least in asked)
    rewards = world.clip.encoder("tiles")
    reward = 2 * rewards.memory_per_item((1, 4, 8, 8)) * rewards.way_back
    image = stock / 2  # two images, asked for once each
    assert low == pytest.approx(2 * 2 * 2.5 * stock / 2 + reward, abs=image)
    assert fast == pytest.approx(2 * 2 * 20 * stock / 2 + reward, abs=image)
    assert fast_without_negative == pytest.approx((fast - reward) / 2 + reward, abs=2 * image)
    assert auto == fast


def test_more_steps_ask_for_more(world, asked):
    import torch

    one = world.sigmas
    world.run(memory="fast", iterations=1)
    world.sigmas = torch.tensor([14.6, 4.0, 0.0])
    world.run(memory="fast", iterations=1)
    world.sigmas = one
    assert asked[1][1] == pytest.approx(2 * asked[0][1], rel=0.05)


def test_auto_takes_low_at_once_where_fast_cannot_fit(world, monkeypatch, asked):
    import comfy.model_management as mm

    _, kept = world.run(memory="auto", iterations=2)
    assert kept == 0
    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e6)
    state, recomputed = world.run(memory="auto", iterations=2)
    assert recomputed > 0 and len(asked) == 2, "one run in low memory, and none that was given up"
    assert asked[1][1] < asked[0][1] / 4
    monkeypatch.undo()
    assert state.rewards == pytest.approx(world.run(memory="fast", iterations=2)[0].rewards, abs=1e-5)


def test_fast_stays_fast_however_little_is_free(world, monkeypatch):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e6)
    assert world.run(memory="fast", iterations=2)[1] == 0


def test_running_out_of_memory_in_low_is_not_tried_again(world, monkeypatch):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e6)
    calls = []

    def run_out(encoder, raw_latents):
        calls.append(len(raw_latents))
        raise mm.OOM_EXCEPTION("out of memory")

    monkeypatch.setattr(type(world.reward.encoders[0]), "__call__", run_out)
    with pytest.raises(mm.OOM_EXCEPTION):
        world.run(memory="auto")
    assert len(calls) == 1


def test_on_a_gpu_models_that_can_be_moved_out_count_as_room(world, host_env, monkeypatch):
    import importlib

    import comfy.model_management as mm
    import torch

    room = importlib.import_module(f"{host_env.pack.__name__}.host.reservation")._room
    world.stock()  # the host holds this model loaded now
    device = torch.device("cpu")
    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e9)
    assert room([world.model], device) == 1e9, "on the CPU the weights are there already"
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    assert room([], device) >= 1e9 + world.model.model_size()
    assert room([], device) - room([world.model], device) == world.model.model_size()
