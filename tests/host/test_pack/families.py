"""Diffusion models of the layouts that people use, small enough to sample in milliseconds on a CPU. For tests only.

Every file is what the stock UNETLoader opens: the network is the host's own class, its weights random but seeded. Most are
recognised as they are, by shapes alone; Z-Image, Qwen-Image and Cosmos-Predict2 have sizes that the host's detection takes for given, so small
ones are registered beside them, as for the tiny SDXL.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from comfy import latent_formats, ops, supported_models
from safetensors.torch import save_file

from .tiny_sdxl import seeded_state

WIDTH = 128  # of a transformer: one head, as the host's detection counts them
CONTEXT = 64  # of the text, where the layout leaves it open


def _flux(**more) -> torch.nn.Module:
    from comfy.ldm.flux.model import Flux

    config = {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": CONTEXT, "context_in_dim": CONTEXT, "hidden_size": WIDTH, "mlp_ratio": 4.0,
        "num_heads": 1, "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
        "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [],
    }  # fmt: skip
    return Flux(image_model="flux", **{**config, **more}, **_COMMON)


def _flux2() -> torch.nn.Module:
    return _flux(
        in_channels=128, out_channels=128, vec_in_dim=None, mlp_ratio=3.0, axes_dim=[32, 32, 32, 32], theta=2000, patch_size=1,
        qkv_bias=False, global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0,
        txt_ids_dims=[3],
    )  # fmt: skip


Z_IMAGE = {
    "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
COSMOS = {"num_blocks": 2, "num_heads": 1}
QWEN_IMAGE = {"num_attention_heads": 1, "joint_attention_dim": CONTEXT}


def _z_image() -> torch.nn.Module:
    from comfy.ldm.lumina.model import NextDiT

    return NextDiT(patch_size=2, in_channels=16, dim=2 * WIDTH, cap_feat_dim=CONTEXT, n_layers=2, qk_norm=True, **Z_IMAGE, **_COMMON)


def _qwen_image() -> torch.nn.Module:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(in_channels=64, num_layers=2, **QWEN_IMAGE, **_COMMON)


def _wan21() -> torch.nn.Module:
    from comfy.ldm.wan.model import WanModel

    return WanModel(dim=WIDTH, ffn_dim=2 * WIDTH, num_heads=1, num_layers=2, **_COMMON)


def _sd3() -> torch.nn.Module:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    embedder = {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": WIDTH}}
    return OpenAISignatureMMDITWrapper(
        input_size=None, patch_size=2, in_channels=16, out_channels=16, depth=WIDTH // 64, adm_in_channels=CONTEXT,
        context_embedder_config=embedder, num_patches=256, pos_embed_max_size=16, pos_embed_scaling_factor=None, qk_norm="rms", **_COMMON,
    )  # fmt: skip


def _sd15() -> torch.nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2], num_heads=2,
        use_spatial_transformer=True, legacy=False, context_dim=CONTEXT, transformer_depth=[1, 1], transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1], use_linear_in_transformer=False, **_COMMON,
    )  # fmt: skip


def _cosmos_predict2() -> torch.nn.Module:
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    return MiniTrainDIT(
        max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
        model_channels=WIDTH, **COSMOS, crossattn_emb_channels=1024, pos_emb_cls="rope3d", pos_emb_learnable=True, use_adaln_lora=True,
        rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0, rope_enable_fps_modulation=False, **_COMMON,
    )  # fmt: skip


_COMMON: dict = {"dtype": torch.float32, "device": "cpu", "operations": ops.disable_weight_init}


@dataclass(frozen=True)
class Family:
    """One layout.

    Attributes:
        space: the latent space of its VAE, by our name; its channels and whether it has frames are in `latent`.
        build: makes the network. context: width of its text. pooled: of a pooled text, 0 where it takes none.
        latent: shape of one latent of 8 × 8 cells, without the batch.
        blocks: how many blocks Optimize Noise recomputes in its low memory mode.
        cfg: what its users sample with; 1 leaves the negative prompt out.
        options: of its conditioning.
    """

    name: str
    space: str
    build: Callable[[], torch.nn.Module]
    latent: tuple[int, ...]
    blocks: int
    context: int = CONTEXT
    pooled: int = 0
    cfg: float = 1.0
    options: dict = field(default_factory=dict)

    def save(self, path: Path, seed: int = 0) -> Path:
        """Write the file that UNETLoader opens."""
        generator = torch.Generator().manual_seed(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(seeded_state(self.build(), "", generator), str(path))
        return path

    def conditioning(self, seed: int = 0, tokens: int = 7) -> list:
        """A CONDITIONING such as its text encoder would make, of random numbers."""
        generator = torch.Generator().manual_seed(seed)
        options = dict(self.options)
        if self.pooled:
            options["pooled_output"] = torch.randn(1, self.pooled, generator=generator)
        return [[torch.randn(1, tokens, self.context, generator=generator), options]]


FAMILIES = {
    family.name: family
    for family in (
        Family("sd15", "sd1", _sd15, (4, 8, 8), 15, cfg=3.0),
        Family("sd3", "sd3", _sd3, (16, 8, 8), 2, pooled=CONTEXT, cfg=3.0),
        Family("flux-schnell", "flux", _flux, (16, 8, 8), 4, pooled=CONTEXT),
        Family(
            "flux-dev", "flux", lambda: _flux(guidance_embed=True), (16, 8, 8), 4, pooled=CONTEXT, options={"guidance": 2.0}
        ),
        Family("flux2", "flux2", _flux2, (128, 8, 8), 4, pooled=CONTEXT),
        Family("z-image", "flux", _z_image, (16, 8, 8), 6),
        Family("qwen-image", "wan21", _qwen_image, (16, 1, 8, 8), 2),
        Family("wan21", "wan21", _wan21, (16, 1, 8, 8), 2, context=4096, cfg=3.0),
        Family("cosmos-predict2", "wan21", _cosmos_predict2, (16, 1, 8, 8), 2, context=1024, cfg=3.0),
    )
}  # fmt: skip


def register() -> None:
    """Let UNETLoader open the small SD 1.5, Z-Image, Qwen-Image and Cosmos-Predict2. Changes the host for everyone: never in a shipped pack."""
    small = [
        type("TinySD15", (supported_models.SD15,), {
            "unet_config": {"model_channels": 32, "context_dim": CONTEXT, "adm_in_channels": None, "use_temporal_attention": False,
                            "use_linear_in_transformer": False},
            "unet_extra_config": {"num_heads": 2, "num_head_channels": -1}, "latent_format": latent_formats.SD15,
        }),
        type("TinyZImage", (supported_models.ZImage,), {
            "unet_config": {"image_model": "lumina2", "dim": 2 * WIDTH}, "unet_extra_config": Z_IMAGE,
        }),
        type("TinyQwenImage", (supported_models.QwenImage,), {
            "unet_config": {"image_model": "qwen_image", "num_layers": 2}, "unet_extra_config": QWEN_IMAGE,
        }),
        type("TinyCosmosPredict2", (supported_models.CosmosT2IPredict2,), {
            "unet_config": {"image_model": "cosmos_predict2", "in_channels": 16, "model_channels": WIDTH}, "unet_extra_config": COSMOS,
        }),
    ]  # fmt: skip
    known = {model.__name__ for model in supported_models.models}
    supported_models.models[:0] = [model for model in small if model.__name__ not in known]


# What shipped workflows load, under the names of the host's own templates.
STOCK_MODELS = {
    "flux1-schnell.safetensors": "flux-schnell", "z_image_turbo_bf16.safetensors": "z-image",
    "qwen_image_fp8_e4m3fn.safetensors": "qwen-image", "wan2.1_t2v_1.3B_fp16.safetensors": "wan21",
}  # fmt: skip
STOCK_VAES = {"ae.safetensors": "flux", "qwen_image_vae.safetensors": "wan", "wan_2.1_vae.safetensors": "wan"}


def save_stock_files(models: Path) -> None:
    """Small models and VAEs under those names."""
    spec = importlib.util.spec_from_file_location("tiny_vaes", Path(__file__).resolve().parents[2] / "tiny_vaes.py")
    tiny_vaes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_vaes)
    for file, name in STOCK_MODELS.items():
        if not (models / "diffusion_models" / file).exists():
            FAMILIES[name].save(models / "diffusion_models" / file)
    (models / "vae").mkdir(exist_ok=True)
    for file, name in STOCK_VAES.items():
        save_file({key: tensor.contiguous() for key, tensor in tiny_vaes.tiny_state(name).items()}, models / "vae" / file)


class TinyText:
    """In the place of a text encoder of billions of parameters, whose size is the host's to know: numbers seeded by the text."""

    def __init__(self, family: Family):
        self.family = family

    def tokenize(self, text: str, **_) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        return self.family.conditioning(zlib.crc32(tokens.encode()))
