"""Optimize Noise in the real host, on a tiny SDXL through the stock loader."""

import json

import pytest
import torch

from latent_clip.tests.checkpoints import save_latent_clip, save_pixel_clip
from latent_clip.tests.host_server import TINY_SDXL

SIZE = 64  # pixels; 8 x 8 latents, which the tower reads enlarged


@pytest.fixture(scope="module", autouse=True)
def checkpoints(comfy):
    for folder in ("latent_clip", "open_clip"):
        (comfy.models_dir / folder).mkdir(parents=True, exist_ok=True)
    save_latent_clip(comfy.models_dir / "latent_clip" / "tiny.safetensors")
    save_pixel_clip(comfy.models_dir / "open_clip" / "tiny_pixels.safetensors")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(batch_size=1, steps=1, cfg=1.0, iterations=4, **settings) -> dict:
    """A stock advanced-sampling graph with Optimize Noise in the sampler's place, and the stock sampler beside it."""
    reno = {
        "iterations": iterations, "learning_rate": 5.0, "optimizer": "nesterov", "gradient_clip": 0.1,
        "prior_weight": 0.01, "patience": 0, "memory": "auto",
    }  # fmt: skip
    sockets = {"noise": ["noise", 0], "guider": ["guider", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=TINY_SDXL),
        "pos": node("CLIPTextEncode", clip=["ckpt", 1], text="a red circle"),
        "neg": node("CLIPTextEncode", clip=["ckpt", 1], text=""),
        "guider": node("CFGGuider", model=["ckpt", 0], positive=["pos", 0], negative=["neg", 0], cfg=cfg),
        "noise": node("RandomNoise", noise_seed=7),
        "sigmas": node("BasicScheduler", model=["ckpt", 0], scheduler="simple", steps=steps, denoise=1.0),
        "empty": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=batch_size),
        "clip": node("LatentCLIPLoader", file="tiny.safetensors", dtype="auto"),
        "reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a red circle", weight=1.0, fit="tiles"),
        "reno": node("LatentCLIPOptimizeNoise", reward=["reward", 0], **sockets, **{**reno, **settings}),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "stock": node("SamplerCustomAdvanced", sampler=["euler", 0], **sockets),
    }


def run(comfy, prompt: dict, **wires) -> dict:
    dumps = {f"dump_{name}": node("TestDump", value=list(wire), name=f"reno_{name}") for name, wire in wires.items()}
    comfy.run(prompt | dumps)
    return {name: comfy.dump(f"reno_{name}")[0] for name in wires}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 5e-6) -> bool:
    """Equal but for rounding, relative to the largest value (the tiny SDXL's latents reach 150)."""
    return ((a - b).abs().max() / b.abs().max()).item() < tolerance


@pytest.mark.parametrize(("steps", "cfg"), [(1, 1.0), (1, 3.0), (3, 2.0)])
def test_first_equals_the_stock_sampler_and_best_scores_higher(comfy, steps, cfg):
    wires = run(
        comfy,
        graph(batch_size=2, steps=steps, cfg=cfg),
        best=("reno", 0),
        first=("reno", 2),
        trace=("reno", 3),
        stock=("stock", 0),
    )
    assert close(wires["first"]["samples"], wires["stock"]["samples"])
    trace = json.loads(wires["trace"])
    first = trace["iterations"][0]["rewards"]
    assert all(b > f for b, f in zip(trace["best"], first)), "four iterations on a smooth reward must find a better one"
    assert not torch.equal(wires["best"]["samples"], wires["first"]["samples"])
    assert trace["stop_reasons"] == ["iterations"] * 2


def test_optimised_noise_gives_the_best_latent_in_a_stock_sampler(comfy):
    prompt = graph(batch_size=2)
    prompt["again"] = node(
        "SamplerCustomAdvanced",
        noise=["reno", 1],
        guider=["guider", 0],
        sampler=["euler", 0],
        sigmas=["sigmas", 0],
        latent_image=["empty", 0],
    )
    wires = run(comfy, prompt, best=("reno", 0), again=("again", 0))
    assert close(wires["again"]["samples"], wires["best"]["samples"])


@pytest.mark.parametrize("with_mask", [False, True])
def test_optimised_noise_of_a_selected_latent_is_its_own(comfy, with_mask):
    """Select #2 of four by batch_index, sample it again with the NOISE of the whole batch: it is the best #2 of the run."""
    prompt = graph(batch_size=4)
    if with_mask:
        mask = torch.zeros(4, 1, SIZE, SIZE)
        mask[:, :, : SIZE // 2] = 1
        comfy.save_input("four", {"samples": torch.randn(4, 4, 8, 8) * 5, "noise_mask": mask})
        prompt["empty"] = node("TestLoadLatent", name="four")
    prompt["one"] = node("LatentFromBatch", samples=["empty", 0], batch_index=2, length=1)
    sockets = {"noise": ["reno", 1], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    prompt["again"] = node("SamplerCustomAdvanced", latent_image=["one", 0], **sockets)
    wires = run(comfy, prompt, best=("reno", 0), one=("one", 0), again=("again", 0))
    assert wires["one"]["batch_index"] == [2]
    assert close(wires["again"]["samples"][0], wires["best"]["samples"][2])
    assert not close(wires["again"]["samples"][0], wires["best"]["samples"][0], 1e-2)


def test_noise_of_a_latent_that_was_selected_before_keeps_its_index(comfy):
    """Optimise item 2 alone, then sample it with and without its batch_index; another item is refused in words."""
    prompt = graph(batch_size=4)
    prompt["one"] = node("LatentFromBatch", samples=["empty", 0], batch_index=2, length=1)
    prompt["reno"]["inputs"]["latent_image"] = ["one", 0]
    prompt["plain"] = node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1)
    sockets = {"noise": ["reno", 1], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    prompt["same"] = node("SamplerCustomAdvanced", latent_image=["one", 0], **sockets)
    prompt["fresh"] = node("SamplerCustomAdvanced", latent_image=["plain", 0], **sockets)
    wires = run(comfy, prompt, best=("reno", 0), same=("same", 0), fresh=("fresh", 0))
    assert close(wires["same"]["samples"], wires["best"]["samples"])
    assert close(wires["fresh"]["samples"], wires["best"]["samples"])
    prompt["other"] = node("LatentFromBatch", samples=["empty", 0], batch_index=3, length=1)
    prompt["same"]["inputs"]["latent_image"] = ["other", 0]
    result = comfy.run(prompt | {"d": node("TestDump", value=["same", 0], name="x")}, expect_failure=True)
    assert "items [3]" in result.error and "optimised for [2]" in result.error


def test_empty_batch_is_refused_in_words(comfy):
    comfy.save_input("none", {"samples": torch.zeros(0, 4, 8, 8)})
    prompt = graph() | {"d": node("TestDump", value=["reno", 0], name="x")}
    prompt["empty"] = node("TestLoadLatent", name="none")
    assert "empty batch" in comfy.run(prompt, expect_failure=True).error


def test_batch_gives_what_single_runs_give(comfy):
    together = run(comfy, graph(batch_size=3), best=("reno", 0), trace=("reno", 3))
    for i in range(3):
        prompt = graph(batch_size=3)
        prompt["one"] = node("LatentFromBatch", samples=["empty", 0], batch_index=i, length=1)
        prompt["reno"]["inputs"]["latent_image"] = ["one", 0]
        alone = run(comfy, prompt, best=("reno", 0), trace=("reno", 3))
        assert close(alone["best"]["samples"][0], together["best"]["samples"][i], 1e-4)


def test_low_memory_gives_the_same_result(comfy):
    fast = run(comfy, graph(memory="fast"), best=("reno", 0), trace=("reno", 3))
    low = run(comfy, graph(memory="low"), best=("reno", 0), trace=("reno", 3))
    assert json.loads(fast["trace"])["checkpointed_blocks"] == 0 < json.loads(low["trace"])["checkpointed_blocks"]
    assert close(low["best"]["samples"], fast["best"]["samples"])


def test_image_to_image_with_a_mask_keeps_what_is_outside(comfy):
    prompt = graph(steps=1)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    original = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(3)) * 5
    comfy.save_input("masked", {"samples": original, "noise_mask": mask})
    prompt["empty"] = node("TestLoadLatent", name="masked")
    prompt["sigmas"] = node("BasicScheduler", model=["ckpt", 0], scheduler="simple", steps=1, denoise=0.6)
    wires = run(comfy, prompt, best=("reno", 0), first=("reno", 2), stock=("stock", 0), trace=("reno", 3))
    assert close(wires["first"]["samples"], wires["stock"]["samples"])
    assert close(wires["best"]["samples"][..., SIZE // 16 :], original[..., SIZE // 16 :])
    assert not torch.allclose(wires["best"]["samples"][..., : SIZE // 16], wires["first"]["samples"][..., : SIZE // 16])
    assert torch.equal(wires["best"]["noise_mask"], mask)


def test_pixel_reward_is_climbed_through_the_decoder(comfy):
    prompt = graph()
    prompt["reward"] = node(
        "LatentCLIPPixelReward",
        vae=["ckpt", 2],
        file="tiny_pixels.safetensors",
        text="a star",
        weight=1.0,
        dtype="auto",
        quick_gelu=False,
    )
    trace = json.loads(run(comfy, prompt, trace=("reno", 3))["trace"])
    assert trace["best"][0] > trace["iterations"][0]["rewards"][0]


def test_nothing_is_left_behind_in_the_model(comfy):
    """Weights, flags and a stock result after runs that end well, badly and in low memory are what they were."""
    before = run(comfy, graph(), stock=("stock", 0))
    run(comfy, graph(memory="low", iterations=3), best=("reno", 0))
    broken = graph(iterations=2)
    broken["empty"] = node(
        "TestMakeLatent",
        batch_size=1,
        channels=4,
        height=8,
        width=8,
        seed=1,
        std=1e30,
        with_mask=False,
        with_batch_index=False,
    )
    assert comfy.run(broken | {"d": node("TestDump", value=["reno", 0], name="x")}, expect_failure=True).error
    prompt = graph(iterations=2)
    prompt["noise"] = node("RandomNoise", noise_seed=7)
    after = run(comfy, prompt | {"seed": node("RandomNoise", noise_seed=1)}, best=("reno", 0), stock=("stock", 0))
    assert torch.equal(before["stock"]["samples"], after["stock"]["samples"])


def test_too_many_steps_are_refused(comfy):
    result = comfy.run(graph(steps=9) | {"d": node("TestDump", value=["reno", 0], name="x")}, expect_failure=True)
    assert "expected 1 to 4" in result.error
