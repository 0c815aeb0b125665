"""Quantised weights, layers without a gradient, hooks on one side, and every way in which a device says that memory is out."""

import contextlib
import importlib

import pytest
import torch

from latent_clip.tests.host.test_reno_leaves_nothing import World, reward_that


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


# --------------------------------------------------------------------------------------------------- quantised


@pytest.mark.parametrize("full_precision", [True, False], ids=["full precision matmul", "fp8 matmul"])
def test_quantised_layer_has_a_gradient(world, full_precision):
    import comfy.ops

    quant = pytest.importorskip("comfy.quant_ops")
    if "float8_e4m3fn" not in getattr(quant, "QUANT_ALGOS", {}) or not hasattr(comfy.ops, "QuantLinearFunc"):
        pytest.skip("this host cannot differentiate quantised layers")
    ops = comfy.ops.mixed_precision_ops({"layers": {}}, compute_dtype=torch.float32, full_precision_mm=full_precision)
    with torch.inference_mode():
        layer = ops.Linear(64, 64, bias=False, dtype=torch.float32, device="cpu")
        algorithm = quant.QUANT_ALGOS["float8_e4m3fn"]
        layer.quant_format, layer.layout_type = "float8_e4m3fn", algorithm["comfy_tensor_layout"]
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        quantised = quant.QuantizedTensor.from_float(weight, layer.layout_type)
        layer.weight = None
        layer.weight = torch.nn.Parameter(quantised, requires_grad=False)
        layer.comfy_cast_weights = True
    held = layer.weight
    with world.gradients.gradients([layer]):
        x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert layer.weight is held
    expected = weight.sum(dim=0).expand(3, 64)
    assert ((gradient - expected).norm() / expected.norm()).item() < 0.05  # what fp8 keeps of the weight


class GGMLTensor(torch.Tensor):
    """What GGUF packs use: a subclass that knows its type, and that nobody else can copy."""

    @staticmethod
    def __new__(cls, tensor, kind):
        return super().__new__(cls, tensor)

    def __init__(self, tensor, kind):
        self.tensor_type = kind


def test_subclass_that_only_its_owner_knows_stays_what_it_is(world):
    with torch.inference_mode():
        layer = torch.nn.Linear(4, 4, bias=False)
        weight = GGMLTensor(torch.zeros(4, 4, dtype=torch.uint8), "Q4_K")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.weight.tensor_type = "Q4_K"
    with world.gradients.gradients([layer]):
        assert layer.weight.tensor_type == "Q4_K"


class SVDQLinear(torch.nn.Module):
    """A kernel of its own without a way back, as Nunchaku's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.detach())


def test_layers_without_a_gradient_are_refused_by_name(world, monkeypatch):
    """A residual connection around them would give a gradient that is wrong in silence."""
    block = next(m for m in world.model.model.diffusion_model.modules() if type(m).__name__ == "BasicTransformerBlock")
    output = block.attn1.to_out
    monkeypatch.setitem(block.attn1._modules, "to_out", SVDQLinear(output))
    with pytest.raises(ValueError, match=r"SVDQLinear.*no gradient"):
        world.run()


# ------------------------------------------------------------------------------------------------------- hooks


def hook_group(world, *strengths: tuple[float, float]):
    """A LoRA as the host's weight hook, with keyframes (start, strength)."""
    import comfy.hooks

    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.need_weight_init = False
    weights = world.model.model.state_dict()
    hook.weights = {
        key: ("diff", (0.7 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)),))
        for key, weight in weights.items()
        if key.startswith("diffusion_model.") and key.endswith("weight") and weight.ndim >= 2
    }
    for start, strength in strengths:
        hook.hook_keyframe.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group


def hooked(world, positive=None, negative=None, cfg=2.0):
    def with_hooks(conds, hooks):
        return [[cond, options | ({"hooks": hooks} if hooks else {})] for cond, options in conds]

    guider = world.guider_class(world.model)
    guider.set_conds(with_hooks(world.positive, positive), with_hooks(world.negative, negative))
    guider.set_cfg(cfg)
    return guider


def run(world, guider, sigmas=(14.6, 0.0), noise=None, latent=None, iterations=1):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    with torch.inference_mode():
        return world.reno.run_reno(
            noise or Noise_RandomNoise(3), guider, torch.tensor(sigmas), latent or world.latent, world.reward,
            world.settings(iterations=iterations), "fast",
        )  # fmt: skip


def test_hook_on_both_sides_has_the_gradient_of_what_was_computed(world, monkeypatch):
    """Against the slope by finite differences along the gradient."""
    found = {}

    def probe(generate, reward, noise, settings, on_step=None, validation=None):
        def value(z):
            return reward.weigh(reward.evaluate(generate(z, [0, 1]))).sum()

        leaf = noise.detach().float().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf)
        with torch.no_grad():
            direction, step = gradient / gradient.norm(), 0.05
            slope = (value(leaf + step * direction) - value(leaf - step * direction)) / (2 * step)
        found.update(gradient=gradient.norm().item(), slope=slope.item())
        return original(generate, reward, noise, settings, on_step)

    original = world.reno.optimize_noise
    monkeypatch.setattr(world.reno, "optimize_noise", probe)
    hooks = hook_group(world)
    run(world, hooked(world, hooks, hooks))
    assert found["gradient"] == pytest.approx(found["slope"], rel=0.02)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_hook_on_one_side_is_refused(world, side):
    with pytest.raises(ValueError, match="on one side of the prompt only"):
        run(world, hooked(world, **{side: hook_group(world)}))


def test_hook_on_a_side_that_is_not_evaluated_does_no_harm(world):
    state, _ = run(world, hooked(world, negative=hook_group(world), cfg=1.0))
    assert torch.isfinite(state.latents).all()


def test_keyframes_need_one_step(world):
    hooks = hook_group(world, (0.0, 1.0), (0.5, 0.2))
    with pytest.raises(ValueError, match="hook keyframes and 2 steps"):
        run(world, hooked(world, hooks, hooks), sigmas=(14.6, 4.0, 0.0))
    first, _ = run(world, hooked(world, hooks, hooks), iterations=3)
    again, _ = run(world, hooked(world, hooks, hooks), iterations=3)
    assert torch.equal(first.latents, again.latents)


# ----------------------------------------------------------------------------------------------- what comes in


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ((), "denoise of 0"),
        ((14.6,), "denoise of 0"),
        ((14.6, 4.0), "high half of Split Sigmas"),
        ((14.6, 9.0, 7.0, 5.0, 3.0, 0.0), "expected 1 to 4"),
    ],
)
def test_sigmas_that_cannot_be_climbed_are_refused_before_anything_is_loaded(world, monkeypatch, sigmas, words):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "load_models_gpu", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=words):
        run(world, hooked(world), sigmas=sigmas)


def test_disabled_noise_is_refused(world):
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    with pytest.raises(ValueError, match="Disable Noise"):
        run(world, hooked(world), noise=Noise_EmptyNoise())


# ----------------------------------------------------------------------------------------------- out of memory

OUT = {
    "PyTorch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "newer CUDA": lambda: getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
    "Apple": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 17.90 GB, max allowed: 18.13 GB)."),
    "DirectML": lambda: RuntimeError("Could not allocate tensor with 1073741824 bytes. There is not enough GPU video memory available!"),
}  # fmt: skip


@pytest.mark.parametrize("device", OUT)
def test_out_of_memory_in_a_run_falls_back_to_low(world, device):
    def run_out(n):
        if n == 2:
            raise OUT[device]()

    state, used = world.run(reward_that(world, run_out)[0], memory="auto")
    assert used.checkpointed_blocks > 0 and torch.isfinite(state.latents).all()


@contextlib.contextmanager
def room_for(tower, items, error, sizes):
    """The real image tower on a device that holds the activations of so many latents; `sizes` are those it was given."""

    def count(module, arguments):
        sizes.append(len(arguments[0]))
        if sizes[-1] > items:
            raise error()

    handle = tower.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("device", OUT)
def test_out_of_memory_in_scoring_halves_the_chunk_and_remembers(world, device, monkeypatch):
    scoring = importlib.import_module(f"{world.pack.__name__}.host.scorers.scoring")
    monkeypatch.setattr(scoring, "MAX_CHUNK", 16)
    reward, latents, sizes = world.reward, torch.randn(40, 4, 8, 8), []
    with torch.inference_mode():
        expected = scoring.score_frames(reward, latents)
        with room_for(world.clip.image.model, 8, OUT[device], sizes):
            values = scoring.score_frames(reward, latents)
    assert sizes == [16, 8, 8, 8, 8, 8]
    assert all(torch.allclose(values[name], expected[name], atol=1e-6) for name in expected)


def test_out_of_memory_outside_of_scoring_is_remembered_too(world):
    encoder, latents, sizes = world.reward.encoders[0], torch.randn(4, 4, 8, 8), []
    encoder.limit.forget()
    with torch.no_grad(), room_for(world.clip.image.model, 2, OUT["PyTorch"], sizes):
        encoder(latents), encoder(latents)
    encoder.limit.forget()
    assert sizes == [4, 2, 2, 2, 2]


def test_out_of_memory_with_a_gradient_computes_single_items_again(world):
    encoder, latents, sizes = world.reward.encoders[0], torch.randn(4, 4, 8, 8), []
    with world.gradients.gradients([world.clip.image.model]):
        (expected,) = torch.autograd.grad(encoder(leaf := latents.clone().requires_grad_())[:, 0].sum(), leaf)
        with room_for(world.clip.image.model, 2, OUT["PyTorch"], sizes):
            (gradient,) = torch.autograd.grad(encoder(leaf := latents.clone().requires_grad_())[:, 0].sum(), leaf)
    encoder.limit.forget()
    assert sizes == [4, 1, 1, 1, 1, 1, 1, 1, 1]  # forward, and again in the backward pass
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_one_item_without_room_is_an_error(world):
    nothing = room_for(world.clip.image.model, 0, OUT["PyTorch"], sizes := [])
    with torch.no_grad(), nothing, pytest.raises(torch.OutOfMemoryError):
        world.reward.encoders[0](torch.randn(4, 4, 8, 8))
    world.reward.encoders[0].limit.forget()
    assert sizes == [4, 2, 1]


def test_another_error_is_not_taken_for_it(world):
    def fail(n):
        if n == 2:
            raise RuntimeError("the reward broke")

    reward, calls = reward_that(world, fail)
    with pytest.raises(RuntimeError, match="the reward broke"):
        world.run(reward, memory="auto")
    assert len(calls) == 2
