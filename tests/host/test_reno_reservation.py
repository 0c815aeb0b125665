"""What Optimize Noise asks the host's memory management for, and how `auto` reads the free memory."""

import pytest

from latent_clip.tests.host.test_reno_leaves_nothing import World


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


def test_memory_asked_grows_with_what_the_way_back_keeps(world, asked):
    world.stock()
    for arguments in ({"memory": "low"}, {"memory": "fast"}, {"memory": "fast", "cfg": 1.0}, {"memory": "auto"}):
        world.run(iterations=2, **arguments)
    stock, low, fast, fast_without_negative, auto = (least for _, least in asked)
    sampling = 8 * 8 * 4 * 0.01 * world.model.model.memory_usage_factor * 2**20  # fp32, attention that is fused
    rewards = world.clip.encoder("tiles")
    reward = 2 * rewards.memory_per_item((1, 4, 8, 8)) * rewards.backward_cost
    image = stock / 2  # two images, asked for once each
    assert low == pytest.approx(2 * 2 * 2.5 * sampling + reward, abs=image)
    assert fast == pytest.approx(2 * 2 * 20 * sampling + reward, abs=image)
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

    _, used = world.run(memory="auto", iterations=2)
    assert used.checkpointed_blocks == 0
    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e6)
    state, used = world.run(memory="auto", iterations=2)
    assert used.checkpointed_blocks > 0 and len(asked) == 2, "one run in low memory, and none that was given up"
    assert asked[1][1] < asked[0][1] / 4
    monkeypatch.undo()
    assert state.rewards == pytest.approx(world.run(memory="fast", iterations=2)[0].rewards, abs=1e-5)


def test_fast_stays_fast_however_little_is_free(world, monkeypatch):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e6)
    assert world.run(memory="fast", iterations=2)[1].checkpointed_blocks == 0


def test_running_out_of_memory_in_low_is_not_tried_again(world, monkeypatch):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e6)
    calls = []

    def run_out(encoder, raw_latents, noise_level=None):
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

    reservation = importlib.import_module(f"{host_env.pack.__name__}.host.sampling.reservation")
    world.stock()  # the host holds this model loaded now
    device = torch.device("cpu")

    def room() -> float:
        return reservation.room_beside(world.model, {}, device)

    monkeypatch.setattr(mm, "get_free_memory", lambda *args, **kwargs: 1e9)
    assert room() == 1e9, "on the CPU the weights are there already"
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(mm, "extra_reserved_memory", lambda: 0)
    with_it = room()
    assert with_it >= 1e9, "what is loaded already takes no room again"
    monkeypatch.setattr(mm, "extra_reserved_memory", lambda: 7e7)
    assert with_it - room() == 7e7, "the host's own reserve stays free"


def test_what_a_model_is_patched_with_counts(world, asked):
    """disable_cfg1_optimization evaluates the negative prompt at cfg 1 too."""
    import torch

    with torch.inference_mode():
        patched = world.model.clone()
        patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    world.run(memory="fast", iterations=1, cfg=1.0)
    world.run(memory="fast", iterations=1, cfg=1.0, model=patched)
    assert asked[1][1] == pytest.approx(2 * asked[0][1], rel=0.1)


def test_controlnet_counts_as_half_an_evaluation(host_env):
    import importlib
    from types import SimpleNamespace

    evaluations = importlib.import_module(f"{host_env.pack.__name__}.host.sampling.reservation")._evaluations
    first = SimpleNamespace(previous_controlnet=None)
    second = SimpleNamespace(previous_controlnet=first)
    conds = {"positive": [{"control": second}], "negative": [{}]}
    assert evaluations(conds, skips_negative=False) == 2 + 0.5 * 2
    assert evaluations(conds, skips_negative=True) == 1 + 0.5 * 2


def test_weights_that_are_cast_for_every_use_are_counted(world, asked, monkeypatch):
    """fp8 weights: autograd would keep every cast copy; fast casts them once and asks for them."""
    import comfy.ops
    import torch

    weights = world.reservation_weights
    network = torch.nn.Sequential(comfy.ops.manual_cast.Linear(256, 256, bias=False, dtype=torch.float8_e4m3fn))
    base = type("Base", (), {"diffusion_model": network, "get_dtype_inference": lambda self: torch.float16})()
    patcher = type("Patcher", (), {"model": base, "is_dynamic": lambda self: False})()
    assert weights.bytes_when_cast(patcher) == 256 * 256 * 2
    with weights.cast_once(network, torch.device("cpu"), torch.float16):
        assert network[0].weight.dtype is torch.float16
    assert network[0].weight.dtype is torch.float8_e4m3fn
    monkeypatch.setattr(weights, "bytes_when_cast", lambda patcher: 5_000_000_000)
    monkeypatch.setattr(world.reservation, "bytes_when_cast", lambda patcher: 5_000_000_000)
    world.run(memory="fast", iterations=1)
    assert asked[-1][1] > 5_000_000_000
    monkeypatch.setattr(world.reservation, "room_beside", lambda *args: 4_000_000_000)
    world.run(memory="auto", iterations=1)
    assert asked[-1][1] < 1_000_000_000, "where they do not fit they are cast block by block"
