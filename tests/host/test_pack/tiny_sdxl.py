"""A checkpoint laid out like SDXL's, small enough to sample in milliseconds on a CPU. For tests only.

The weights are random but seeded, so the pictures mean nothing while every code path is the real one: the stock
checkpoint loader, both text towers, the U-Net with its size conditioning, and a VAE with SDXL's latent scale.
"""

from pathlib import Path

import torch
from comfy import latent_formats, model_management, ops, sd1_clip, sdxl_clip, supported_models, supported_models_base
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file

HIDDEN = 32  # width of each text tower; the U-Net's context is both side by side
CLIP_CONFIG = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "hidden_act": "gelu", "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip


class TinySDXLClip(sdxl_clip.SDXLClipModel):
    """SDXL's pair of text towers, three layers each."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        shared = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}
        shared |= {"device": device, "dtype": dtype}
        # The host writes options into the config it is given, so each tower gets its own copy.
        options = model_options or {}
        self.clip_l = sd1_clip.SDClipModel(
            textmodel_json_config=dict(CLIP_CONFIG), model_options={**options, "model_name": "clip_l"}, **shared
        )
        self.clip_g = sd1_clip.SDClipModel(
            textmodel_json_config=dict(CLIP_CONFIG), model_options={**options, "model_name": "clip_g"},
            special_tokens={"start": 49406, "end": 49407, "pad": 0}, **shared,
        )  # fmt: skip
        self.dtypes = {dtype}

    def load_sd(self, sd):
        """Load both towers; the host hands over keys that still carry clip_l. and clip_g. in front."""
        missing = self.load_state_dict(sd, strict=False)
        return missing.missing_keys, missing.unexpected_keys


class TinySDXL(supported_models.SDXL):
    """What the stock loader recognises by its 32 channels."""

    unet_config = {
        "model_channels": 32,
        "use_linear_in_transformer": True,
        "transformer_depth": [0, 1, 1],
        "context_dim": 2 * HIDDEN,
        "adm_in_channels": 6 * 256 + HIDDEN,
        "use_temporal_attention": False,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}
    latent_format = latent_formats.SDXL

    def process_clip_state_dict(self, state_dict):
        """Keep the two text towers' keys as they are."""
        return {key: value for key, value in state_dict.items() if key.startswith(("clip_l.", "clip_g."))}

    def clip_target(self, state_dict=None):
        """The tokenizers are SDXL's own, so the vocabulary is full size."""
        return supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, TinySDXLClip)


def register() -> None:
    """Let CheckpointLoaderSimple open tiny checkpoints. Changes the host for everyone: never in a shipped pack."""
    if TinySDXL not in supported_models.models:
        supported_models.models.append(TinySDXL)


def seeded_state(module: torch.nn.Module, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Give every tensor of a module a seeded value: comfy's layers leave their weights uninitialised."""
    state = {}
    for name, tensor in module.state_dict().items():
        if tensor.dim() >= 2:
            fan_in = tensor[0].numel() if "embedding" not in name else 1
            value = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        else:  # norms multiply by one, biases add nothing
            value = torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
        state[prefix + name] = value.contiguous()
    return state


def make_tiny_sdxl(path: str | Path, seed: int = 0) -> Path:
    """Write a tiny SDXL-layout checkpoint (about 20 MB, float32) that CheckpointLoaderSimple opens once registered."""
    generator = torch.Generator().manual_seed(seed)
    config = TinySDXL.unet_config | TinySDXL.unet_extra_config
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, num_res_blocks=[1, 1, 1], channel_mult=[1, 2, 4],
        num_classes="sequential", use_spatial_transformer=True, legacy=False, dtype=torch.float32, device="cpu",
        operations=ops.disable_weight_init, transformer_depth_middle=1, transformer_depth_output=[0, 0, 1, 1, 1, 1],
        **{key: value for key, value in config.items() if key != "transformer_depth"},
        transformer_depth=list(config["transformer_depth"]),
    )  # fmt: skip
    state = seeded_state(unet, "model.diffusion_model.", generator)
    state |= seeded_state(TinySDXLClip(dtype=torch.float32), "", generator)
    state |= seeded_state(TAESD(latent_channels=4), "first_stage_model.", generator)
    state["first_stage_model.vae_scale"] = torch.tensor(0.13025)
    state["first_stage_model.vae_shift"] = torch.tensor(0.0)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(path))
    model_management.soft_empty_cache()
    return Path(path)
