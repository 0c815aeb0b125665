"""Every node through the real host on a GPU that is not there (tests/emulated_gpu.py): the results of the CPU, no tensor of two devices
in one operator, nothing that Apple's GPU does not have, and no more waiting for the device than is meant.
"""

import asyncio
import importlib
import json
from pathlib import Path

import pytest
import torch

from latent_clip.tests import emulated_gpu
from latent_clip.tests.checkpoints import save_pixel_clip


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


ROOM = 1 << 34  # bytes
SIDE = (104, 64)  # pixels; latents of 13 cells, which no pooling divides
STEPS, PLAYED = 6, 5
TYPED = "star: a red star, a blue star\nneutral: a red circle, a blue circle"
CONCEPTS = {"concepts": "typed below", "typed": TYPED, "categories": "", "thresholds": "0"}
WINDOW = {"start": 0.0, "end": 1.0, "every_n": 1}
SOCKETS = {"noise": ["noise", 0], "guider": ["guider", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]}
CLIP = {"latent_clip": ["world", 3]}
RENO = {
    "iterations": 3, "learning_rate": 5.0, "optimizer": "nesterov", "gradient_clip": 0.1, "prior_weight": 0.01, "patience": 0,
}  # fmt: skip
SEARCH = {
    "candidates": 6, "keep": 2, "look": "both", "budget": 0.6, "variety": 0.2, "chooses": "reward", "time_out": 1.0, "cuts": "",
    "draft_steps": 0, "draft_scheduler": "simple", "images_at_once": 2,
}  # fmt: skip
GRAPH = {
    "world": node("LatentCLIPShapesWorld"),
    "pos": node("CLIPTextEncode", clip=["world", 1], text="a red star"),
    "neg": node("CLIPTextEncode", clip=["world", 1], text=""),
    "empty": node("EmptyLatentImage", width=SIDE[0], height=SIDE[1], batch_size=2),
    "noise": node("RandomNoise", noise_seed=7),
    "one": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=1, denoise=1.0),
    "sigmas": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=STEPS, denoise=1.0),
    "long": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=12, denoise=1.0),
    "guider": node("CFGGuider", model=["world", 0], positive=["pos", 0], negative=["neg", 0], cfg=2.0),
    "turbo": node("BasicGuider", model=["world", 0], conditioning=["pos", 0]),
    "euler": node("KSamplerSelect", sampler_name="euler"),
    "latents": node("SamplerCustomAdvanced", sampler=["euler", 0], **SOCKETS),
    "single": node("LatentFromBatch", samples=["latents", 0], batch_index=0, length=1),
    # rewards of every kind, as one
    "text": node("LatentCLIPTextReward", **CLIP, text="a red star", weight=1.0, fit="tiles", text_to_avoid="a green square"),
    "avoid": node("LatentCLIPAvoidReward", **CLIP, **CONCEPTS, weight=0.1, fit="tiles"),
    "like": node("LatentCLIPLatentReward", **CLIP, reference=["single", 0], weight=0.5, fit="crop"),
    "pixels": node(
        "LatentCLIPPixelReward", vae=["world", 2], file="devices.safetensors", text="a star", weight=1.0, dtype="auto", quick_gelu=False
    ),
    "latent_rewards": node(
        "LatentCLIPCombineRewards", **{"rewards.reward_0": ["text", 0], "rewards.reward_1": ["avoid", 0], "rewards.reward_2": ["like", 0]}
    ),
    "rewards": node("LatentCLIPCombineRewards", **{"rewards.reward_0": ["latent_rewards", 0], "rewards.reward_1": ["pixels", 0]}),
    # consumers
    "score": node("LatentCLIPScore", latent=["latents", 0], reward=["rewards", 0]),
    "classify": node("LatentCLIPClassify", latent=["latents", 0], **CLIP, labels="a red star\na blue circle", templates="{}", route="", fit="tiles"),
    "select": node("LatentCLIPSelect", latent=["latents", 0], reward=["rewards", 0], keep=1, use_threshold=False, threshold=0.2),
    "gate": node(
        "LatentCLIPSafetyGate", latent=["latents", 0], **CLIP, **CONCEPTS, on_block="blur", views=2, fit="tiles", audit_log=False,
        log_prompt=False, closer_look=True,
    ),
    "fast": node("LatentCLIPOptimizeNoise", reward=["rewards", 0], **SOCKETS | {"sigmas": ["one", 0], "guider": ["turbo", 0]}, **RENO, memory="fast"),
    "low": node("LatentCLIPOptimizeNoise", reward=["latent_rewards", 0], **SOCKETS | {"sigmas": ["one", 0]}, **RENO, memory="low"),
    "played": node(
        "LatentCLIPOptimizeNoise", reward=["latent_rewards", 0], **SOCKETS | {"sigmas": ["one", 0], "guider": ["turbo", 0]},
        **RENO | {"iterations": PLAYED}, memory="fast", views=True, cuda_graphs=True,
    ),
    "search": node("LatentCLIPSearch", sampler=["euler", 0], reward=["rewards", 0], **SOCKETS | {"latent_image": ["single", 0], "sigmas": ["long", 0]}, **SEARCH),
    "guide": node("LatentCLIPGuideModel", model=["world", 0], reward=["rewards", 0], strength=0.5, momentum=0.3, **WINDOW | {"every_n": 3}),
    "push": node("LatentCLIPSafetyGuidance", model=["world", 0], **CLIP, **CONCEPTS, strength=0.5, momentum=0.0, fit="tiles", **WINDOW),
    "instead": node(
        "LatentCLIPSafetyGuidance", model=["world", 0], **CLIP, **CONCEPTS, strength=0.5, momentum=0.0, fit="tiles", **WINDOW, instead=["neg", 0]
    ),
}  # fmt: skip
for name in ("guide", "push", "instead"):
    GRAPH[f"{name} guider"] = node("CFGGuider", model=[name, 0], positive=["pos", 0], negative=["neg", 0], cfg=2.0)
    GRAPH[f"{name} sampled"] = node(
        "SamplerCustomAdvanced", sampler=["euler", 0], **SOCKETS | {"guider": [f"{name} guider", 0]}
    )
RESULTS = {
    "latents": 0, "scores": ("score", 1), "probabilities": ("classify", 1), "selected": ("select", 0), "gated": ("gate", 0),
    "gate report": ("gate", 3), "fast": 0, "trace": ("fast", 3), "played": 0, "played trace": ("played", 3), "low": 0, "search": 0, "guide sampled": 0, "push sampled": 0,
    "instead sampled": 0,
}  # fmt: skip


def run_all(host_env, folder: str) -> dict:
    """What comes out of every node: name → tensor, list or text."""
    import folder_paths

    clips = Path(folder_paths.get_folder_paths("open_clip")[0])
    clips.mkdir(parents=True, exist_ok=True)
    save_pixel_clip(clips / "devices.safetensors")
    wires = {name: [name, at] if isinstance(at, int) else list(at) for name, at in RESULTS.items()}
    dumps = {f"dump {name}": node("TestDump", value=wire, name=f"{folder} {name}") for name, wire in wires.items()}
    done = host_env.execute({**GRAPH, **dumps})
    assert done.success, done.status_messages
    output = Path(folder_paths.get_output_directory())
    return {name: torch.load(output / f"{folder} {name}.pt", weights_only=True) for name in wires}


@pytest.fixture(scope="module")
def expected(host_env) -> dict:
    """On the CPU, with the host's nodes for advanced sampling."""
    import nodes

    extra = host_env.tree / "comfy_extras" / "nodes_custom_sampler.py"
    assert asyncio.new_event_loop().run_until_complete(nodes.load_custom_node(str(extra), module_parent="comfy_extras"))
    return run_all(host_env, "cpu")


@pytest.fixture
def gpu(host_env):
    """The host with the emulated device as its GPU, with room for everything, and no half precision."""
    import comfy.model_management as mm

    if not emulated_gpu.AVAILABLE:
        pytest.skip("this torch lets no test register a device")

    there = emulated_gpu.device()

    def room(dev=None, torch_total_too=False, torch_free_too=False):
        return (ROOM, ROOM) if torch_total_too or torch_free_too else ROOM

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mm, "get_torch_device", lambda: there)
        patch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
        for name in ("get_free_memory", "get_total_memory"):
            patch.setattr(mm, name, room)
        for name in ("should_use_fp16", "should_use_bf16"):
            patch.setattr(mm, name, lambda *args, **kwargs: False)
        capture = importlib.import_module(f"{host_env.pack.__name__}.host.reno.cuda_graphs")
        patch.setattr(capture, "DEVICES", (there.type,))
        emulated_gpu.with_graphs(patch)
        mm.unload_all_models()
        with emulated_gpu.EmulatedGPU("mps") as active:  # which refuses all that cuda refuses, and more
            yield active
            mm.unload_all_models()


def test_every_node_gives_on_a_gpu_what_it_gives_on_the_cpu(host_env, expected, gpu):
    found = run_all(host_env, "gpu")
    for name, value in expected.items():
        assert_close(name, found[name], value)
    assert json.loads(found["played trace"][0])["cuda_graphs"] == "recorded"
    assert "CUDA graphs need an NVIDIA or AMD GPU" in json.loads(expected["played trace"][0])["cuda_graphs"]
    assert json.loads(found["trace"][0])["cuda_graphs"] == ""
    # once for every iteration of all runs, when all numbers are read back, and not at every step of the sampler
    assert gpu.waits["methods/reno.py:_read_back"] == 2 * RENO["iterations"] + PLAYED
    assert not gpu.waits["methods/sampling.py:euler"]
    # whether anything is to be corrected, for each of the samplings that are guided
    assert gpu.waits["methods/guidance.py:correction"] <= 2 * STEPS
    allowed = {
        "reno.py:_read_back",
        "reno.py:_optimize",
        "guidance.py:correction",
        "gate.py:categories",
        "rewards/base.py:<dictcomp>",
    }
    assert {place for place in gpu.waits if place.startswith("methods/")} <= {f"methods/{place}" for place in allowed}


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 0.01), ("bf16", 0.06)])
def test_judges_in_half_precision_there_and_back(host_env, gpu, dtype, tolerance):
    """No operator meets two dtypes, and features and gradients are near those of full precision."""

    def module(name: str):
        return importlib.import_module(f"{host_env.pack.__name__}.host.{name}")

    shapes_world, gradients = module("scorers.shapes_world"), module("memory.gradients").gradients
    raw, found = torch.randn(1, 4, 13, 8, generator=torch.Generator().manual_seed(0)) * 7, {}
    for precision in ("fp32", dtype):
        with torch.inference_mode():
            clips = shapes_world.load_latent_clip(precision), shapes_world.load_pixel_clip(precision)
            encoders = clips[0].window_encoder("tiles"), module("scorers.pixel_clip").pixel_encoder(clips[1], shapes_world.load_vae())
        for encoder in encoders:
            importlib.import_module("comfy.model_management").load_models_gpu(encoder.patchers)
            with gradients([patcher.model for patcher in encoder.patchers]):
                leaf = raw.to(emulated_gpu.device()).requires_grad_()
                features = encoder.encode_windows(leaf).windows.mean(dim=1)
                (gradient,) = torch.autograd.grad(features[:, :8].sum(), leaf)
            found.setdefault(type(encoder).__name__, []).append((features.detach().cpu(), gradient.cpu()))
    for (features, gradient), (half_features, half_gradient) in found.values():
        assert (half_features - features).abs().max() < tolerance
        assert (
            torch.nn.functional.cosine_similarity(gradient.flatten(), half_gradient.flatten(), dim=0)
            > 1 - 4 * tolerance
        )


def assert_close(name: str, found, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.device == expected.device
        assert (found - expected).abs().max() <= 2e-3 * expected.abs().max(), name
    elif isinstance(expected, dict):
        assert_close(name, found["samples"], expected["samples"])
    elif isinstance(expected, list):
        for a, b in zip(found, expected, strict=True):
            assert_close(name, a, b)
    elif isinstance(expected, str) and expected.startswith("{"):
        assert json.loads(found).keys() == json.loads(expected).keys()
    else:
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), name
