"""Optimize Noise in this process: whatever happens in a run, the cached model is what it was."""

import gc
import hashlib
import importlib

import pytest
import torch

from latent_clip.tests.checkpoints import TINY_CONFIG, tiny_latent_clip
from latent_clip.tests.host_server import TINY_SDXL


@pytest.fixture(scope="module")
def world(host_env):
    """The pieces of a run: the stock loader's model, a guider, a reward of the pack as the host imported it."""
    return World(host_env)


class World:
    def __init__(self, host_env):
        import comfy.samplers
        import folder_paths
        import nodes

        self.pack = host_env.pack
        modules = {name: importlib.import_module(f"{self.pack.__name__}.{name}") for name in MODULES}
        self.reno, self.settings = modules["host.reno.run"], modules["methods.reno"].RenoSettings
        self.rewards, self.gradients = modules["methods.rewards"], modules["host.memory.gradients"]
        self.reservation, self.reservation_weights = modules["host.sampling.reservation"], modules["host.memory.weights"]
        with torch.inference_mode():
            self.model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(TINY_SDXL)
            encode = nodes.CLIPTextEncode()
            self.positive, self.negative = encode.encode(clip, "a red circle")[0], encode.encode(clip, "")[0]
            loaded = modules["host.scorers.latent_clip"].LoadedLatentCLIP
            space = modules["models.latent_spaces"].LATENT_SPACES["sdxl"]
            self.clip = loaded(tiny_latent_clip(), TINY_CONFIG, space, "tiny")
            features = self.clip.encode_text(["a red circle"])[0]
            self.reward = self.rewards.text_reward(self.clip.encoder("tiles"), "match", features)
        self.sigmas = torch.tensor([14.6, 0.0])
        self.latent = {"samples": torch.zeros(2, 4, 8, 8)}
        self.guider_class = comfy.samplers.CFGGuider
        assert folder_paths.models_dir

    def guider(self, model=None, cfg=2.0):
        guider = self.guider_class(model or self.model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(cfg)
        return guider

    def run(self, reward=None, model=None, memory="fast", iterations=3, cfg=2.0):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        with torch.inference_mode():
            noise = Noise_RandomNoise(3)
            settings = self.settings(iterations=iterations)
            guider = self.guider(model, cfg)
            return self.reno.run_reno(
                noise, guider, self.sigmas.clone(), self.latent, reward or self.reward, settings, memory
            )

    def stock(self, model=None) -> torch.Tensor:
        import comfy.samplers

        with torch.inference_mode():
            noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
            sampler = comfy.samplers.sampler_object("euler")
            return self.guider(model).sample(noise, self.latent["samples"], sampler, self.sigmas.clone(), seed=3)

    def fingerprint(self) -> list:
        """Identity, flags and content of every weight of every network that a run touches."""
        networks = [self.model.model, self.clip.image.model]
        weights = [(name, t) for n in networks for name, t in [*n.named_parameters(), *n.named_buffers()]]
        return [
            (name, id(t), t.requires_grad, t.is_inference(), t.grad is None, hashlib.sha256(t.detach().cpu().float().numpy().tobytes()).hexdigest())
            for name, t in weights
        ]  # fmt: skip


MODULES = (
    "host.reno.run", "host.memory.gradients", "host.scorers.latent_clip", "host.sampling.reservation", "host.memory.weights",
    "methods.reno", "methods.rewards", "models.latent_spaces",
)  # fmt: skip


@pytest.fixture
def unchanged(world):
    """Whatever the test does: weights, flags, block forwards and a stock result afterwards equal those before."""
    stock, before = world.stock(), world.fingerprint()
    yield
    assert world.fingerprint() == before
    assert not any("forward" in module.__dict__ for module in world.model.model.modules())
    assert "optimized_attention_override" not in world.model.model_options["transformer_options"]
    assert not world.model.additional_models
    assert torch.equal(world.stock(), stock)


def reward_that(world, act):
    """A reward whose encoder runs `act(call number)` before it encodes."""
    calls = []

    class Encoder(type(world.reward.encoders[0])):
        def __call__(self, raw_latents, noise_level=None):
            calls.append(len(raw_latents))
            act(len(calls))
            return super().__call__(raw_latents, noise_level)

    encoder = Encoder(world.clip, "tiles")
    head = world.reward.terms[0].head
    return world.rewards.Reward((world.rewards.Term("match", encoder, head),)), calls


@pytest.mark.parametrize("memory", ["fast", "low", "auto"])
def test_run_that_ends_well(world, unchanged, memory):
    state, _ = world.run(memory=memory)
    assert state.stop_reasons == ["iterations"] * 2
    assert torch.isfinite(state.latents).all()


def test_cancel_stops_within_one_iteration(world, unchanged):
    import comfy.model_management as mm

    reward, calls = reward_that(world, lambda n: mm.interrupt_current_processing(n == 2))
    with pytest.raises(mm.InterruptProcessingException):
        world.run(reward, iterations=20)
    mm.interrupt_current_processing(False)
    assert len(calls) == 2


def test_error_in_the_reward(world, unchanged):
    def fail(n):
        if n == 2:
            raise RuntimeError("the reward broke")

    with pytest.raises(RuntimeError, match="the reward broke"):
        world.run(reward_that(world, fail)[0])


def test_out_of_memory_falls_back_to_low_and_starts_again(world, unchanged):
    import comfy.model_management as mm

    def run_out(n):
        if n == 2:
            raise mm.OOM_EXCEPTION("out of memory")

    reward, calls = reward_that(world, run_out)
    state, used = world.run(reward, memory="auto")
    assert used.checkpointed_blocks > 0 and len(calls) == 2 + 3
    fast, _ = world.run(memory="fast")
    assert torch.allclose(state.rewards, fast.rewards, atol=1e-5)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_out_of_memory_is_an_error_where_there_is_nothing_left_to_try(world, unchanged, memory):
    import comfy.model_management as mm

    def run_out(n):
        raise mm.OOM_EXCEPTION("out of memory")

    with pytest.raises(mm.OOM_EXCEPTION):
        world.run(reward_that(world, run_out)[0], memory=memory)


def test_low_memory_keeps_fewer_activations(world):
    """The bytes that autograd keeps for the way back, counted: the reason why `low` exists."""

    def kept(memory):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.untyped_storage().nbytes() if not isinstance(tensor, torch.nn.Parameter) else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            world.run(memory=memory, iterations=2)
        return total

    assert kept("low") < 0.6 * kept("fast")


def test_lora_is_climbed_through_and_changes_the_result(world):
    stock, before = world.stock(), [entry[-1] for entry in world.fingerprint()]
    weight = world.model.model.state_dict()["diffusion_model.input_blocks.0.0.weight"]
    patch = {
        "diffusion_model.input_blocks.0.0.weight": (
            "diff",
            (torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1,),
        )
    }
    with torch.inference_mode():
        patched = world.model.clone()
        assert patched.add_patches(patch, 1.0)
    plain, _ = world.run()
    with_lora, _ = world.run(model=patched)
    assert not torch.allclose(plain.first_latents, with_lora.first_latents, atol=1e-2)
    with torch.inference_mode():
        assert (with_lora.rewards >= world.reward(with_lora.first_latents)).all()
    difference = (world.stock(patched) - with_lora.first_latents).abs().max() / with_lora.first_latents.abs().max()
    assert difference < 5e-6
    assert torch.equal(world.stock(), stock)  # the host takes its patch out again, into new parameters
    assert [entry[-1] for entry in world.fingerprint()] == before


def test_model_of_another_latent_space_is_refused_by_name(world):
    import comfy.latent_formats

    with torch.inference_mode():
        other = world.model.clone()
        other.add_object_patch("latent_format", comfy.latent_formats.SD15())
    with pytest.raises(ValueError, match=r"SD15 latents.*sdxl space"):
        world.run(model=other)


def test_sixty_runs_leak_nothing(world, unchanged):
    def alive() -> tuple[int, int]:
        gc.collect()
        ordinary = (torch.Tensor, torch.nn.Parameter)  # other tests of this process leave fake ones without storage
        tensors = [t for t in gc.get_objects() if type(t) in ordinary and t.device.type == "cpu"]
        return len(tensors), sum(t.numel() * t.element_size() for t in tensors)

    world.run(iterations=2, cfg=1.0)
    count, size = alive()
    for _ in range(60):
        world.run(iterations=2, cfg=1.0)
    count_after, size_after = alive()
    assert count_after <= count + 5 and size_after <= size + 100_000
