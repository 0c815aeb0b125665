"""Every node of the host that patches a MODEL, under Optimize Noise: it works, or it is refused by name with the reason."""

import asyncio

import pytest
import torch

from latent_clip.tests.host.test_reno_leaves_nothing import World

# node: its settings. Both memory modes must then give one gradient, and `first` what the stock sampler gives.
WORKS = {
    "CFGNorm": {"strength": 1.0},
    "CFGOverride": {"cfg": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "CFGZeroStar": {},
    "DifferentialDiffusion": {},
    "Epsilon Scaling": {"scaling_factor": 1.005},
    "FreSca": {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 2},
    "FreeU": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "HyperTile": {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False},
    "APG": {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0},
    "Mahiro": {},
    "ModelComputeDtype": {"dtype": "fp32"},
    "ModelSamplingDiscrete": {"sampling": "v_prediction", "zsnr": False},
    "ModelSamplingContinuousEDM": {"sampling": "v_prediction", "sigma_max": 120.0, "sigma_min": 0.002},
    "ModelSamplingContinuousV": {"sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03},
    "PatchModelAddDownscale": {
        "block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.9,
        "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic",
    },
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "RescaleCFG": {"multiplier": 0.7},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "TCFG": {},
    "TomePatchModel": {"ratio": 0.3},
    "UNetCrossAttentionMultiply": {"q": 1.1, "k": 1.0, "v": 1.0, "out": 1.0},
    "UNetSelfAttentionMultiply": {"q": 1.1, "k": 1.0, "v": 1.0, "out": 1.0},
    "UNetTemporalAttentionMultiply": {
        "self_structural": 1.1, "self_temporal": 1.0, "cross_structural": 1.0, "cross_temporal": 1.0,
    },
    "VideoLinearCFGGuidance": {"min_cfg": 1.0},
    "VideoTriangleCFGGuidance": {"min_cfg": 1.0},
    "wanBlockSwap": {},
}  # fmt: skip

# node: (settings, what the sentence must say)
REFUSED = {
    "APG": ({"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5}, "APG"),
    "EasyCache": ({"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}, "EasyCache"),
    "LazyCache": ({"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}, "LazyCache"),
    "FreeU_V2": ({"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, "FreeU_V2"),
    "NAGuidance": ({"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}, "NAGuidance"),
}

# Not for a U-Net of images, or with weights or inputs of their own; ReNO's other tests climb through LoRA and merged weights.
ELSEWHERE = {
    "LoRA and other weights": {
        "HypernetworkLoader", "LoraLoader", "LoraLoaderBypass", "LoraLoaderBypassModelOnly", "LoraLoaderModelOnly",
        "LoraModelLoader", "SelectModelDevice", "MultiGPU_WorkUnits", "TorchCompileModel",
    },
    "needs an operation, a prompt or a picture of its own": {
        "LatentApplyOperationCFG", "PerpNeg", "SUPIRApply", "USOStyleReference", "QwenImageDiffsynthControlnet",
        "ZImageFunControlnet",
    },
    "another architecture": {
        "AnimaLLLiteApply", "ChromaRadianceOptions", "FluxKVCache", "HiDreamO1PatchSeamSmoothing", "MiniMaxH3SigmaShift", "ScaleROPE",
        "ModelNoiseScale", "ModelSamplingAuraFlow", "ModelSamplingFlux", "ModelSamplingLTXV", "ModelSamplingSD3", "ModelSamplingStableCascade",
        "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple", "SkipLayerGuidanceSD3", "TripoSplatSamplingPreview",
    },
    "fails in the host with more than one image, however it is sampled": {"RenormCFG", "TemporalScoreRescaling"},
    "several frames": {
        "ARVideoI2V", "ContextWindowsManual", "LTXVContextWindows", "LTXVReferenceAudio", "WanContextWindowsManual",
        "WanInfiniteTalkToVideo", "WanUni3CControlnetApply",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def world(host_env):
    import nodes

    asyncio.new_event_loop().run_until_complete(nodes.init_builtin_extra_nodes())
    return World(host_env)


def patched(world, name: str, settings: dict):
    import nodes

    if name not in nodes.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this host has no {name}")
    node = nodes.NODE_CLASS_MAPPINGS[name]
    with torch.inference_mode():
        if hasattr(node, "define_schema"):
            made = node.execute(model=world.model, **settings)
            return getattr(made, "result", made)[0]
        return getattr(node(), node.FUNCTION)(model=world.model, **settings)[0]


@pytest.mark.parametrize("name", WORKS)
def test_it_works(world, name):
    model = patched(world, name, WORKS[name])
    stock = world.stock(model)
    fast, _ = world.run(model=model, memory="fast", iterations=2)
    low, _ = world.run(model=model, memory="low", iterations=2)
    assert ((fast.first_latents - stock).abs().max() / stock.abs().max()).item() < 1e-3
    step = (fast.noise - low.noise).abs().max()
    assert step < 1e-4, "recomputed blocks must see what the first pass saw"
    assert fast.iterations[0].gradient_norms == pytest.approx(low.iterations[0].gradient_norms, rel=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(world, name):
    settings, named = REFUSED[name]
    model = patched(world, name, settings)
    with pytest.raises(ValueError, match=rf"{named}.*[Bb]ypass"):
        world.run(model=model, iterations=3)


def test_no_node_of_the_newest_host_is_forgotten(world, comfy_tree):
    import nodes

    def takes_and_gives_a_model(node) -> bool:
        inputs = node.INPUT_TYPES()
        sockets = {**inputs.get("required", {}), **inputs.get("optional", {})}.values()
        return "MODEL" in node.RETURN_TYPES and any(socket[0] == "MODEL" for socket in sockets)

    known = set(WORKS) | set(REFUSED) | set().union(*ELSEWHERE.values())
    ours_and_merges = ("LatentCLIP", "ModelMerge", "Test")
    found = {name for name, node in nodes.NODE_CLASS_MAPPINGS.items() if takes_and_gives_a_model(node)}
    assert {name for name in found if not name.startswith(ours_and_merges)} <= known


# ------------------------------------------------------------------------- patches of other packs, by what they do


def replace_patch(q, k, v, extra):
    """What IPAdapter and attention couple do: a patch keyed by block."""
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(q, k, v * 3.0, heads=extra["n_heads"])


def by_block(n, extra):
    return n * (3.0 if extra["block"][0] == "middle" else 1.0)


PER_BLOCK = {
    "attn1 in the middle": lambda model: model.set_model_attn1_replace(replace_patch, "middle", 0),
    "attn2 in the output blocks": lambda model: [
        model.set_model_attn2_replace(replace_patch, "output", i) for i in range(4)
    ],
    "an output patch that asks for its block": lambda model: model.set_model_attn1_output_patch(by_block),
}


@pytest.mark.parametrize("name", PER_BLOCK)
def test_patches_per_block_have_one_gradient_in_both_memory_modes(world, name):
    model = world.model.clone()
    PER_BLOCK[name](model)
    plain, _ = world.run(iterations=2)
    fast, _ = world.run(model=model, memory="fast", iterations=2)
    low, _ = world.run(model=model, memory="low", iterations=2)
    assert torch.allclose(fast.noise, low.noise, atol=1e-5)
    assert not torch.allclose(fast.first_latents, plain.first_latents, atol=1e-3), "the patch must do something"


def test_model_that_throws_dice_is_refused(world):
    model = world.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + torch.randn_like(args["denoised"]))
    with pytest.raises(ValueError, match="another image when it is asked again for the same noise"):
        world.run(model=model)


def test_several_gpus_are_refused(world):
    model = world.model.clone()
    model.set_additional_models("multigpu", [world.model.clone()])
    with pytest.raises(ValueError, match="several GPUs"):
        world.run(model=model)
