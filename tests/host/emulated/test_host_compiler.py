"""The compiler of ComfyUI ≥ 0.34, emulated: blocks that are replayed refuse gradients, and ask the host's arguments at every call."""

import contextlib
import importlib
import sys
import types

import pytest
import torch

from latent_clip.tests.host.test_reno_leaves_nothing import World, reward_that


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


class Compiler:
    """The host's switch as newer hosts have it, and a block of the network that is replayed where it is on."""

    def __init__(self, args, block):
        self.args, self.block, self.replays, self.refused = args, block, 0, 0

    def enabled(self, device) -> bool:
        return not self.args.disable_comfy_compiler

    def run(self, module, arguments):
        if self.enabled(None):
            self.replays += 1
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                self.refused += 1
                raise RuntimeError("aimdo memory compile error")


@pytest.fixture
def compiler(world, monkeypatch):
    from comfy.cli_args import args

    for switch in ("disable_comfy_compiler", "disable_cuda_graphs"):
        monkeypatch.setattr(args, switch, False, raising=False)
    block = world.model.model.diffusion_model.middle_block[0]
    compiler = Compiler(args, block)
    try:
        prefetch = importlib.import_module("comfy.model_prefetch")
    except ImportError:
        prefetch = types.ModuleType("comfy.model_prefetch")
        monkeypatch.setitem(sys.modules, "comfy.model_prefetch", prefetch)
    monkeypatch.setattr(prefetch, "malloc_graph_enabled", compiler.enabled, raising=False)
    handle = block.register_forward_pre_hook(compiler.run)
    yield compiler
    handle.remove()
    assert not args.disable_comfy_compiler and not args.disable_cuda_graphs


def test_stock_sampler_is_replayed(world, compiler):
    world.stock()
    assert compiler.replays > 0


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_optimize_noise_runs_with_the_compiler_off(world, compiler, memory):
    state, _ = world.run(memory=memory)
    assert compiler.replays == 0 and compiler.block is world.model.model.diffusion_model.middle_block[0]
    compiler.args.disable_comfy_compiler = True
    expected, _ = world.run(memory=memory)
    compiler.args.disable_comfy_compiler = False
    assert torch.equal(state.latents, expected.latents)


def test_switch_is_set_back_after_an_error(world, compiler):
    def fail(n):
        raise RuntimeError("the reward broke")

    with pytest.raises(RuntimeError, match="the reward broke"):
        world.run(reward_that(world, fail)[0])  # the fixture checks the switches
    world.stock()
    assert compiler.replays > 0


def test_user_who_switched_it_off_keeps_it_off(world, compiler):
    compiler.args.disable_comfy_compiler = True
    world.run()
    assert compiler.args.disable_comfy_compiler and not compiler.args.disable_cuda_graphs
    compiler.args.disable_comfy_compiler = False


def test_guide_model_keeps_the_compiler_for_the_network_and_not_for_its_gradient(world, compiler):
    host, steering, methods = (
        importlib.import_module(f"{world.pack.__name__}.{name}")
        for name in ("host.sampling.guide", "host.sampling.steering", "methods.guidance")
    )
    seen = []
    reward, _ = reward_that(
        world, lambda n: seen.append((compiler.args.disable_comfy_compiler, torch.is_grad_enabled()))
    )
    objective, settings = methods.ClimbReward(reward), methods.GuidanceSettings()
    guided = host.guide_model(world.model, objective, settings, steering.Window(0.0, 1.0))
    world.stock(guided)
    assert compiler.replays > 0 and compiler.refused == 0
    assert seen and all(off for off, gradient in seen if gradient)


def test_own_graphs_are_not_recorded_where_the_host_compiles(world, compiler, monkeypatch):
    capture = importlib.import_module(f"{world.pack.__name__}.host.reno.cuda_graphs")
    monkeypatch.setattr(capture, "DEVICES", ("cpu",))
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    with torch.inference_mode():
        _, used = world.reno.run_reno(
            Noise_RandomNoise(3), world.guider(), world.sigmas.clone(), world.latent, world.reward,
            world.settings(iterations=2), "fast", None, True,
        )  # fmt: skip
    assert "--disable-comfy-compiler" in used.cuda_graphs


def test_hosts_without_a_compiler_are_left_alone(world, monkeypatch):
    from comfy.cli_args import args

    before = dict(vars(args))
    with contextlib.suppress(ImportError):
        prefetch = importlib.import_module("comfy.model_prefetch")
        monkeypatch.delattr(prefetch, "malloc_graph_enabled", raising=False)
    world.run()
    assert vars(args) == before
