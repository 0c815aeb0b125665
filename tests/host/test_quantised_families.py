"""Files of fp8 weights, plain and scaled, of transformers: they load, and their noise is optimised as that of the full ones."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_clip.tests.host.test_families import Lab

FP8 = torch.float8_e4m3fn
NAMES = ("flux-schnell", "z-image", "qwen-image", "wan21")


def scaled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layout of *_fp8_scaled files: weights of the blocks in fp8, a scale beside each, and a mark."""
    made = {"scaled_fp8": torch.zeros(2, dtype=FP8)}
    for name, tensor in state.items():
        in_a_block = any(part.isdigit() for part in name.split(".")[:2])
        if name.endswith(".weight") and tensor.ndim == 2 and in_a_block:
            scale = tensor.abs().max() / 400
            made[name] = (tensor / scale).to(FP8)
            made[name.removesuffix("weight") + "scale_weight"] = scale.float()
        else:
            made[name] = tensor
    return made


@pytest.fixture(scope="module", params=NAMES)
def lab(request, host_env, tmp_path_factory):
    return Lab(host_env, request.param, tmp_path_factory.mktemp("quantised"))


@pytest.mark.parametrize("layout", ["fp8", "fp8 scaled"])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_noise_is_optimised_through_fp8_weights(lab, host_env, layout, memory, monkeypatch):
    import nodes

    folder, name = host_env.base / "models" / "diffusion_models", f"{lab.family.name}-scaled.safetensors"
    if layout == "fp8 scaled" and not (folder / name).exists():
        save_file(scaled(load_file(folder / f"{lab.family.name}.safetensors")), str(folder / name))
    with torch.inference_mode():
        file, dtype = (name, "default") if layout == "fp8 scaled" else (f"{lab.family.name}.safetensors", "fp8_e4m3fn")
        (model,) = nodes.UNETLoader().load_unet(file, dtype)
    kinds = {type(p).__name__ for p in model.model.parameters()} | {str(p.dtype) for p in model.model.parameters()}
    assert kinds & {str(FP8), "QuantizedTensor"}, kinds
    monkeypatch.setattr(lab, "model", model)
    state, used = lab.reno(lab.reward("latent"), memory=memory, iterations=3)
    stock = lab.plain(lab.empty(1), 1)
    torch.testing.assert_close(state.first_latents, stock, atol=2e-2 * stock.std().item(), rtol=1e-2)
    assert used.checkpointed_blocks == (lab.family.blocks if memory == "low" else 0)
    assert state.iterations[0].gradient_norms[0] > 0 and state.rewards.item() >= state.iterations[0].rewards[0]
