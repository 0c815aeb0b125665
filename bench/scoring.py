"""Cost of scoring one latent: SDXL's VAE and a pixel ViT-B/32, against a Latent-CLIP. Random weights, real sizes."""

from collections.abc import Callable

import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..methods.features import encode_latents, encode_pixels
from ..models.config import latent_grid, published_configs
from ..models.latent_clip import LatentCLIP
from .timing import alternate, device_name, use_cpu_host

SDXL_VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
PIXELS = "pixel ViT-B-32 after the VAE decode"


@torch.inference_mode()
def run() -> dict:
    """Seconds and FLOP for one picture of 512 and of 1024 pixels, and the factor of the pixel CLIP."""
    use_cpu_host()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    encoders, counted = _encoders(device, dtype), _encoders(torch.device("meta"), torch.float32)
    result: dict = {"device": device_name(), "dtype": str(dtype).removeprefix("torch.")}
    # on a CPU one decode of 1024 pixels takes minutes
    for pixels, rounds in ((512, 5), (1024, 5)) if device.type == "cuda" else ((512, 3), (1024, 1)):
        latents = torch.randn(1, 4, pixels // 8, pixels // 8, device=device) * 7.7
        flops = {name: _flops(encode, latents.to("meta")) for name, encode in counted.items()}
        ways = {name: lambda encode=encode, latents=latents: encode(latents) for name, encode in encoders.items()}
        seconds = alternate(ways, rounds, at_least=2.0)
        result[f"{pixels} px, {rounds} rounds"] = {
            name: {
                "seconds": round(seconds[name], 5), "gflop": round(flops[name] / 1e9, 2),
                "cheaper_in_seconds": round(seconds[PIXELS] / seconds[name], 1), "cheaper_in_flop": round(flops[PIXELS] / flops[name], 1),
            }
            for name in encoders
        }  # fmt: skip
    return result


def _encoders(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """name → raw latents (1, 4, h, w) to features, each with everything that it needs."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.model import AttnBlock, pytorch_attention

    vae = AutoencoderKL(ddconfig=SDXL_VAE, embed_dim=4).to(device, dtype).train(False)
    if device.type == "meta":  # the host's choice of attention asks the device for its free memory
        for module in vae.modules():
            if isinstance(module, AttnBlock):
                module.optimized_attention = pytorch_attention
    for parameter in vae.parameters():  # the host's layers leave their weights uninitialised
        parameter.normal_(std=0.02)
    pixel = open_clip.create_model("ViT-B-32", pretrained=None).visual.to(device, dtype).train(False)
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)

    def by_pixels(latents: Tensor) -> Tensor:
        decoded = ((vae.decode(latents.to(dtype)).float() + 1) / 2).clamp(0, 1)
        return encode_pixels(pixel, decoded, 224, mean, std, dtype)

    encoders = {PIXELS: by_pixels}
    for name, config in published_configs().items():
        tower, grid = LatentCLIP(config).visual.to(device, dtype).train(False), latent_grid(config)
        encoders[name] = lambda latents, tower=tower, grid=grid: encode_latents(tower, latents, grid, "tiles", dtype)
    return encoders


def _flops(encode: Callable[[Tensor], Tensor], latents: Tensor) -> int:
    # PyTorch's fused attention layer hides its products from the counter
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter:
        encode(latents)
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()
