"""Shapes World as host objects: MODEL, CLIP, VAE and LATENT_CLIP built from the weights in demo/weights/.

Every part is the host's own class with a small configuration, so that stock nodes, samplers, LoRA and patches work on
it as on any model. Nothing is registered with the host: the configuration object travels with the model.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ...models import shapes_world as shipped
from ...models.latent_spaces import LATENT_SPACES
from .folders import weights_fingerprint
from .latent_clip import LoadedLatentCLIP
from .pixel_clip import LoadedPixelCLIP

LATENT_SCALE = LATENT_SPACES["shapes-world"].scale
CONTEXT_LENGTH = 16  # tokens per chunk; longer prompts continue in further chunks, as on SD 1.5

# 3.98 M parameters: 64 channels on the 8×8 grid, 128 with attention on the 4×4 grid below it
UNET_CONFIG = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1], "channel_mult": (1, 2),
    "transformer_depth": [0, 1], "transformer_depth_middle": 1, "transformer_depth_output": [0, 0, 1, 1],
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "context_dim": 128, "legacy": False,
    "use_checkpoint": False, "dtype": torch.float32,
}  # fmt: skip

TEXT_CONFIG: dict = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512, "hidden_act": "gelu",
    "max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": 49407, "vocab_size": 49408,
}  # fmt: skip

_AUTOENCODER = {
    "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
VAE_CONFIG = {"params": {"embed_dim": 4, "ddconfig": _AUTOENCODER}}


class ShapesWorldLatent(comfy.latent_formats.LatentFormat):
    """SDXL's scale; the preview matrix is a least-squares fit of model-space latents to the downscaled picture (demo.train_vae.fit_preview)."""

    scale_factor = LATENT_SCALE

    def __init__(self) -> None:
        self.latent_rgb_factors = [
            [-0.0868, -0.0376, 0.0299],
            [-0.1421, -0.1850, -0.1226],
            [0.0007, 0.0111, 0.0324],
            [-0.0097, 0.0856, 0.1949],
        ]
        self.latent_rgb_factors_bias = [0.8093, 0.7757, 0.7645]


class ShapesWorldConfig(comfy.supported_models_base.BASE):
    """Configuration for the host's BaseModel: U-Net arguments, latent format, v-prediction."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    latent_format = ShapesWorldLatent

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


class ShapesWorldTextModel(comfy.sd1_clip.SDClipModel):
    """The host's CLIP text model with 3 layers of width 128."""

    def __init__(
        self, device: str = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None
    ) -> None:
        super().__init__(
            device=device, dtype=dtype, max_length=CONTEXT_LENGTH, textmodel_json_config=dict(TEXT_CONFIG),
            return_projected_pooled=False, model_options=model_options or {},
        )  # fmt: skip


class ShapesWorldText(comfy.sd1_clip.SD1ClipModel):
    """Value of a CLIP socket; the name "l" makes LoRA keys map as on SD 1.5."""

    def __init__(
        self, device: str = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            clip_name="l",
            clip_model=ShapesWorldTextModel,
        )


class _Tokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict | None = None) -> None:
        super().__init__(
            max_length=CONTEXT_LENGTH, embedding_directory=embedding_directory, embedding_size=TEXT_CONFIG["hidden_size"],
            tokenizer_data=tokenizer_data or {},
        )  # fmt: skip


class ShapesWorldTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SD 1.5's tokenizer in chunks of 16."""

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict | None = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=_Tokenizer
        )


# ------------------------------------------------------------------------- bare networks, as the training scripts need them


def build_vae(channels: int = 4) -> nn.Module:
    """The host's AutoencoderKL, f8 with 1.0 M parameters, its weights unset; with latents of so many channels."""
    sized = {"embed_dim": channels, "ddconfig": {**_AUTOENCODER, "z_channels": channels}}
    return comfy.ldm.models.autoencoder.AutoencoderKL(**sized)


def build_unet() -> UNetModel:
    """The host's U-Net in float32, its weights unset."""
    config = ShapesWorldConfig(UNET_CONFIG).unet_config
    return UNetModel(**config, operations=comfy.ops.disable_weight_init)


def build_text_encoder() -> nn.Module:
    """The host's CLIPTextModel in float32, its weights unset."""
    return ShapesWorldTextModel(dtype=torch.float32).transformer


# ------------------------------------------------------------------------------------------------- host objects


def load_model(state_dict: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from U-Net weights, with the dtype and devices that the host chooses for a checkpoint of this size."""
    config = ShapesWorldConfig(UNET_CONFIG)
    parameters = sum(tensor.numel() for tensor in state_dict.values())
    device, supported = mm.get_torch_device(), list(config.supported_inference_dtypes)
    dtype = mm.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=torch.float16)
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, device, supported))
    model = config.get_model(state_dict, device=mm.unet_inital_load_device(parameters, dtype))
    model.load_model_weights(dict(state_dict))
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=mm.unet_offload_device())


def load_text_encoder(state_dict: dict[str, Tensor]) -> comfy.sd.CLIP:
    """A CLIP from text-tower weights in the host's CLIPTextModel layout, without a projection of the pooled text."""
    state_dict = state_dict | {"text_projection.weight": torch.eye(TEXT_CONFIG["hidden_size"])}
    target = comfy.supported_models_base.ClipTarget(ShapesWorldTokenizer, ShapesWorldText)
    parameters = sum(tensor.numel() for tensor in state_dict.values())
    return comfy.sd.CLIP(target, parameters=parameters, state_dict=[state_dict])


def load_generator() -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP]:
    """MODEL and CLIP of Shapes World."""
    weights, _ = shipped.load_weights("generator")
    unet = {key.removeprefix("unet."): tensor for key, tensor in weights.items() if key.startswith("unet.")}
    text = {key.removeprefix("text."): tensor for key, tensor in weights.items() if key.startswith("text.")}
    return load_model(unet), load_text_encoder(text)


def load_vae() -> comfy.sd.VAE:
    """VAE of Shapes World: 8× smaller, 4 channels, raw latents with a std of about 7.7."""
    weights, _ = shipped.load_weights("vae")
    return comfy.sd.VAE(sd=weights, config=VAE_CONFIG)


def is_vae(tensors: dict[str, Tensor]) -> bool:
    """Return True if a file's tensors have the sizes of this VAE."""
    first = tensors.get("encoder.conv_in.weight")
    return first is not None and first.shape == (_AUTOENCODER["ch"], 3, 3, 3)


def fingerprint() -> str:
    """Fingerprint of the shipped weights, which `./dev train` replaces."""
    return weights_fingerprint(sorted(shipped.FOLDER.rglob("*.safetensors")))


def load_latent_clip(dtype: str = "auto", noise_aware: bool = False) -> LoadedLatentCLIP:
    """LATENT_CLIP of Shapes World; `noise_aware`: conditioned on the noise level in guidance and cuts."""
    model, config = shipped.load_latent_clip(noise_aware)
    return LoadedLatentCLIP(model, config, LATENT_SPACES["shapes-world"], "Shapes World Latent-CLIP", dtype)


def load_pixel_clip(dtype: str = "auto") -> LoadedPixelCLIP:
    """The pixel CLIP of the same size that was trained beside it, for comparisons."""
    return LoadedPixelCLIP(shipped.load_pixel_clip(), dtype)
