"""Guidance whose judge is on another device than the diffusion model, is moved out in mid-run, or whose model has several devices.

Two CUDA devices are fake tensors where the question is which tensors meet; the host's own code for several devices runs with the
CPU under two names.
"""

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from latent_clip.tests.checkpoints import save_latent_clip
from latent_clip.tests.guided_world import World
from latent_clip.tests.host_server import TINY_SDXL

ALWAYS = -1000


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


class Tower:
    """An encoder whose network lies on one device, as the host's towers do: it takes latents from anywhere."""

    space, reads_clips = None, False

    def __init__(self, device: str):
        self.network = nn.Linear(256, 16, device=device).requires_grad_(False)

    def __call__(self, raw_latents, noise_level=None):
        weight = self.network.weight
        return self.network(raw_latents.to(weight.device).flatten(1))

    def encode_windows(self, raw_latents, noise_level=None):
        return SimpleNamespace(windows=self(raw_latents)[:, None])


class Star:
    """One concept, by the first feature."""

    names, thresholds = ("star",), (0.0,)

    def worst(self, windows):
        return windows.amax(dim=1)[:, :1]


DEVICES = [("cuda:0", "cuda:0"), ("cuda:1", "cuda:0"), ("cuda:0", "cpu")]


@pytest.mark.parametrize(("latents", "tower"), DEVICES)
def test_judge_on_another_device(world, latents, tower):
    with FakeTensorMode():
        watch = world.guidance.ConceptMonitor(Tower(tower), Star())
        scores = watch.check(torch.empty(2, 4, 8, 8, device=latents)).scores
        value, active = world.guidance.AvoidConcepts(watch)(torch.empty(2, 4, 8, 8, device=latents))
    assert scores.device == value.device == active.device == torch.device(tower)


@pytest.mark.parametrize(("before", "after"), [("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", "cuda:1")])
def test_judge_that_is_moved_in_mid_run_remembers(world, before, after):
    """What it saw on one device meets what it sees on the other."""
    with FakeTensorMode():
        tower = Tower(before)
        watch = world.guidance.ConceptMonitor(tower, Star())
        watch.check(torch.empty(2, 4, 8, 8, device="cuda:0"))
        tower.network = Tower(after).network
        scores = watch.check(torch.empty(2, 4, 8, 8, device="cuda:0")).scores
    assert scores.device == torch.device(after) and watch.flagged.device == torch.device("cpu")


@pytest.mark.parametrize(("latents", "tower"), DEVICES)
def test_correction_meets_the_prediction_on_its_device(world, latents, tower, monkeypatch):
    monkeypatch.setattr(world.guidance, "bool", lambda value: True, raising=False)  # fake tensors hold no values
    # autograd refuses a device that is not there; the gradient comes out where the prediction is, whatever lies between
    monkeypatch.setattr(torch.autograd, "grad", lambda value, x0: (torch.empty_like(x0),))
    with FakeTensorMode(), torch.enable_grad():
        watch = world.guidance.ConceptMonitor(Tower(tower), Star())
        change, direction = world.guidance.correction(
            world.guidance.AvoidConcepts(watch), torch.empty(2, 4, 8, 8, device=latents), lambda x: 7 * x, 0.5,
            world.guidance.GuidanceSettings(1.0, 0.5), torch.empty(2, 4, 8, 8, device=latents),
        )  # fmt: skip
    assert change.device == direction.device == torch.device(latents)


@pytest.mark.parametrize("way", ["guided", "redirected"])
def test_host_moves_the_judge_out_in_mid_run(world, way):
    """Another model needs the room: the tower is off its device when the next step asks it."""
    model = getattr(world, way)(ALWAYS)
    expected = world.sample(model)
    tower, looks = world.clip.image, []
    watch = world.steering(model).scorer
    watch = getattr(watch, "monitor", watch)
    look = watch.check

    def evicted(raw_latents, *level):
        looks.append(1)
        tower.detach()
        return look(raw_latents, *level)

    watch.check = evicted
    torch.testing.assert_close(world.sample(model), expected)
    assert len(looks) == 5


@pytest.fixture
def sdxl(host_env, monkeypatch):
    """The tiny SDXL through the stock loader, a tiny Latent-CLIP for it, and a second device: the CPU under another name."""
    multigpu = pytest.importorskip("comfy.multigpu", reason="this host knows no several devices")
    import comfy.model_management as mm
    import comfy.sd
    import folder_paths

    if not hasattr(multigpu, "create_multigpu_deepclones"):
        pytest.skip("this host knows no several devices")
    monkeypatch.setattr(mm, "get_all_torch_devices", lambda exclude_current=False: [torch.device("cpu"), torch.device("cpu", 0)])  # fmt: skip
    folder = host_env.base / "models" / "latent_clip"
    folder.mkdir(parents=True, exist_ok=True)
    save_latent_clip(folder / "devices.safetensors")
    path = folder_paths.get_full_path_or_raise("checkpoints", TINY_SDXL)
    load = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.latent_clip").load_latent_clip_file
    with torch.inference_mode():
        model, text, _, _ = comfy.sd.load_checkpoint_guess_config(path)
        clip = load("devices.safetensors", "fp32")

    def condition(words: str):
        return text.encode_from_tokens_scheduled(text.tokenize(words))

    def sample(model, words="a red star"):
        import comfy.sample

        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        return comfy.sample.sample(
            model, noise, 3, 2.0, "euler", "normal", condition(words), condition(""), torch.zeros_like(noise),
            disable_pbar=True, seed=5,
        )  # fmt: skip

    with torch.inference_mode():
        yield SimpleNamespace(model=model, clip=clip, condition=condition, sample=sample, split=lambda m: multigpu.create_multigpu_deepclones(m, 2))  # fmt: skip


@pytest.mark.parametrize("split_first", [False, True])
@pytest.mark.parametrize("way", ["climb", "redirect"])
def test_multigpu_work_units_of_a_guided_model(world, sdxl, way, split_first):
    host, methods = world.host, world.guidance
    concepts = world.concepts.directions(sdxl.clip, world.parsed(ALWAYS))

    def guide(model):
        watch = methods.ConceptMonitor(sdxl.clip.window_encoder("tiles"), concepts)
        if way == "redirect":
            return host.redirect_model(model, watch, sdxl.condition("a green circle"), world.window(0.0, 1.0))
        return world.push_model(
            model, methods.AvoidConcepts(watch), methods.GuidanceSettings(0.2), world.window(0.0, 1.0)
        )

    guided = guide(sdxl.model)
    expected = sdxl.sample(guided)
    split = guide(sdxl.split(sdxl.model)) if split_first else sdxl.split(guided)
    made = sdxl.sample(split)
    (clone,) = split.get_additional_models_with_key("multigpu")
    assert clone.load_device == torch.device("cpu", 0) and clone.model is not sdxl.model.model
    assert not any(clone.additional_models.values()), "the second device has no use for the judge"
    torch.testing.assert_close(made, expected, atol=2e-3, rtol=2e-3)  # the two conditions are no longer one batch
    assert not torch.allclose(made, sdxl.sample(sdxl.model), atol=0.1)
