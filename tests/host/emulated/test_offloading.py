"""Gradients through weights that are not simply there: partly loaded networks, side streams, dynamic VRAM."""

import contextlib
import gc
import importlib

import pytest
import torch

from latent_clip.tests.host.emulated.conditions import dynamic, dynamic_patcher, partly_loaded
from latent_clip.tests.host.test_reno_leaves_nothing import World, reward_that


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


@pytest.fixture(scope="module")
def resident(world):
    """What a run gives where all weights are on the device."""
    return world.run()[0]


def same(state, resident) -> bool:
    return torch.allclose(state.noise, resident.noise, atol=1e-5) and torch.allclose(
        state.rewards, resident.rewards, atol=1e-5
    )


@pytest.mark.parametrize("cuda_malloc", [False, True], ids=["shared cast buffer", "cudaMallocAsync"])
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("before", ["nothing", "a stock sampling"])
def test_partly_loaded_gradients_are_those_of_the_resident_model(
    world, resident, monkeypatch, cuda_malloc, memory, before
):
    import comfy.model_management as mm

    stock = world.stock()
    partly_loaded(monkeypatch, world.model.model.diffusion_model, cuda_malloc)
    if before != "nothing":
        assert torch.allclose(world.stock(), stock, atol=1e-3), "the emulation must leave stock sampling right"
    state, _ = world.run(memory=memory)
    assert same(state, resident)
    assert mm.NUM_STREAMS == 2, "the host's streams must be back"


def test_no_side_stream_writes_where_the_way_back_still_reads(world, monkeypatch):
    hazards = partly_loaded(monkeypatch, world.model.model.diffusion_model, cuda_malloc=True)
    with hazards:
        world.run(memory="low", iterations=2)
    assert hazards.casts > 100
    assert hazards.found == 0


def test_emulated_streams_do_show_a_hazard(world, monkeypatch):
    """With the streams left on, which is what version 0.1 did: the test above can fail."""
    monkeypatch.setattr(world.gradients, "_no_offload_streams", contextlib.nullcontext)
    hazards = partly_loaded(monkeypatch, world.model.model.diffusion_model, cuda_malloc=True)
    with hazards:
        world.run(memory="low", iterations=2)
    assert hazards.found > 0


def test_what_does_not_fit_is_said(world, monkeypatch, caplog):
    """The trace and the log name the bytes that are copied for every evaluation."""
    reno = world.reno
    monkeypatch.setattr(reno, "bytes_elsewhere", lambda network, device: 3_000_000_000)
    _, used = world.run(memory="low", iterations=1)
    assert used.offloaded_bytes == 3_000_000_000
    assert "3.0 of" in caplog.text or not caplog.text  # the host may have taken the handlers


def test_bytes_elsewhere_counts_the_weights_of_other_devices(world):
    import comfy.ops

    weights = importlib.import_module(f"{world.pack.__name__}.host.memory.weights")
    here = comfy.ops.disable_weight_init.Linear(8, 8, dtype=torch.float32)
    there = comfy.ops.disable_weight_init.Linear(4, 4, device="meta", dtype=torch.float16)
    network = torch.nn.Sequential(here, there)
    assert weights.bytes_elsewhere(network, torch.device("cpu")) == (16 + 4) * 2
    assert weights.bytes_elsewhere(here, torch.device("cpu")) == 0


# ---------------------------------------------------------------------------------------------------- dynamic VRAM


@pytest.fixture
def paged(world, monkeypatch):
    """(patcher that is dynamic, its pages): the world's own network in dynamic VRAM."""
    with torch.inference_mode():
        patcher = dynamic_patcher(world.model.model, world.model.load_device, world.model.offload_device)
    return patcher, dynamic(monkeypatch, world.model.model.diffusion_model)


def fields(patcher) -> dict:
    """What a run must leave as it was: the patcher's own fields, and every layer's."""
    network = patcher.model.diffusion_model
    layers = {
        name: {key: id(value) for key, value in vars(module).items() if not key.startswith("_v_")}
        for name, module in network.named_modules()
    }
    own = {
        key: repr(value)
        for key, value in vars(patcher).items()
        if key not in ("model", "parent", "_last_prepare_log_key")
    }
    return {"patcher": own, "layers": layers}


@pytest.mark.parametrize("memory", ["fast", "low", "auto"])
@pytest.mark.parametrize("before", ["nothing", "a stock sampling"])
def test_dynamic_vram_gradients_are_those_of_the_resident_model(world, resident, paged, memory, before):
    patcher, pages = paged
    if before != "nothing":
        world.stock(patcher)
        assert any(page.generation or page.tensor().any() for page in pages), "the pages must have been used"
    state, _ = world.run(model=patcher, memory=memory)
    assert same(state, resident)


def test_page_taken_by_another_weight_does_not_matter(world, resident, paged):
    patcher, pages = paged
    world.stock(patcher)

    def take_all(_calls):
        for page in pages:
            page.evict()

    state, _ = world.run(reward_that(world, take_all)[0], model=patcher)
    assert same(state, resident)


def test_lora_on_a_dynamic_model_is_climbed_through(world, monkeypatch):
    from comfy.model_patcher import LowVramPatch

    key = "diffusion_model.middle_block.0.in_layers.2.weight"
    layer = world.model.model.diffusion_model.middle_block[0].in_layers[2]
    change = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    with torch.inference_mode():
        patched = world.model.clone()
        patched.add_patches({key: ("diff", (change,))}, 1.0)
    expected, _ = world.run(model=patched)
    plain, _ = world.run()  # the host takes the patch out again
    with monkeypatch.context() as condition:
        patcher = dynamic_patcher(world.model.model, world.model.load_device, world.model.offload_device)
        dynamic(condition, world.model.model.diffusion_model)
        condition.setattr(layer, "weight_lowvram_function", LowVramPatch(key, patched.patches))
        for memory in ("fast", "low"):
            state, _ = world.run(model=patcher, memory=memory)
            assert same(state, expected) and not same(state, plain)


def loaded() -> list:
    """The host's list of loaded models: of which network, and the bytes that it counts."""
    import comfy.model_management as mm

    gc.collect()
    mm.cleanup_models_gc()
    return sorted(
        (type(entry.model.model).__name__, entry.model_loaded_memory())
        for entry in mm.current_loaded_models
        if entry.model is not None
    )


@pytest.mark.parametrize("end", ["well", "cancel", "error", "out of memory"])
def test_run_on_dynamic_vram_leaves_nothing_however_it_ends(world, paged, end):
    import comfy.model_management as mm

    def act(n):
        if n == 2 and end == "cancel":
            mm.interrupt_current_processing(True)
        elif n == 2 and end == "error":
            raise RuntimeError("the reward broke")
        elif n == 2 and end == "out of memory":
            raise torch.OutOfMemoryError("out of memory")

    patcher, _ = paged
    world.run(model=patcher, iterations=1)
    before, list_before = fields(patcher), loaded()
    reward, _ = reward_that(world, act)
    failing = {
        "cancel": mm.InterruptProcessingException,
        "error": RuntimeError,
        "out of memory": torch.OutOfMemoryError,
    }
    if end == "well":
        world.run(reward, model=patcher)
    else:
        with pytest.raises(failing[end]):
            world.run(reward, model=patcher, memory="low")
    mm.interrupt_current_processing(False)
    assert fields(patcher) == before
    assert loaded() == list_before


def test_auto_sees_the_same_room_in_every_run(world, paged, monkeypatch):
    """Version 0.1 left a second network behind, which the next run's estimate counted again."""
    import comfy.model_management as mm

    reservation = importlib.import_module(f"{world.pack.__name__}.host.sampling.reservation")
    patcher, _ = paged
    seen, room = [], reservation.room_beside

    def record(*args):
        seen.append(room(*args))
        return seen[-1]

    def free(device=None, torch_free_too=False):
        used = sum(entry.model_loaded_memory() for entry in mm.current_loaded_models if entry.model is not None)
        return (1e9 - used, 0) if torch_free_too else 1e9 - used

    monkeypatch.setattr(reservation, "room_beside", record)
    monkeypatch.setattr(mm, "get_free_memory", free)
    monkeypatch.setattr(reservation.mm, "is_device_cpu", lambda device: False)
    for _ in range(3):
        world.run(model=patcher, memory="auto", iterations=1)
    assert seen[0] == seen[1] == seen[2] > 0


# ------------------------------------------------------------------------------------------- the pixel judge's decoder


@pytest.fixture(scope="module")
def pixel_encoder(host_env):
    modules = {n: importlib.import_module(f"{host_env.pack.__name__}.host.scorers.{n}") for n in ("shapes_world", "pixel_clip")}
    with torch.inference_mode():
        vae, clip = modules["shapes_world"].load_vae(), modules["shapes_world"].load_pixel_clip()
    return modules["pixel_clip"].pixel_encoder(clip, vae)


def pixel_gradient(world, encoder, between=lambda: None) -> torch.Tensor:
    raw = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 7
    with world.gradients.gradients([patcher.model for patcher in encoder.patchers]):
        leaf = raw.clone().requires_grad_()
        features = encoder(leaf)
        between()
        (gradient,) = torch.autograd.grad(features[..., :8].sum(), leaf)
    return gradient


@pytest.mark.parametrize("before", ["nothing", "a stock decode"])
def test_dynamic_decoder_has_the_gradient_of_the_resident_one(world, pixel_encoder, monkeypatch, before):
    resident = pixel_gradient(world, pixel_encoder)
    network = pixel_encoder.vae.first_stage_model
    pages = dynamic(monkeypatch, network)
    if before != "nothing":
        with torch.inference_mode():
            network.decode(torch.randn(1, 4, 8, 8))
    gradient = pixel_gradient(world, pixel_encoder, between=lambda: [page.evict() for page in pages])
    assert torch.allclose(gradient, resident, atol=1e-7)
