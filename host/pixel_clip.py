"""The baseline that everyone else uses: decode the latent with the VAE, then look at the pixels with a CLIP."""

from dataclasses import dataclass

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor

from ..methods.features import Look, encode_pixels, look_everywhere_in_pixels
from ..models.latent_spaces import LatentSpace, space_of_channels
from .folders import OPEN_CLIP, find_file
from .latent_clip import TextTower
from .oom import one_by_one_when_out
from .towers import device_and_dtype, tower_dtype, tower_patcher


class LoadedPixelCLIP:
    """A pixel CLIP in the host's care; `image`, `text`, `logit_scale` as in `LoadedLatentCLIP`."""

    def __init__(self, clip, dtype: str = "auto"):
        device = mm.get_torch_device()
        self.name = clip.name
        self.image_size = clip.image_size
        self.logit_scale = clip.model.logit_scale.float().exp().item()
        with torch.inference_mode(False):  # constants of a computation that gradients go through
            self.mean, self.std = torch.tensor(clip.mean), torch.tensor(clip.std)
        self.image = tower_patcher(clip.model.visual.to(tower_dtype(dtype, device)), device, mm.unet_offload_device())
        text_dtype = tower_dtype(dtype, mm.text_encoder_device())
        self.text = TextTower(clip.model.text.to(text_dtype), clip.model.context_length)


@dataclass(frozen=True)
class PixelEncoder:
    """Raw latents → features of the decoded picture. Call it with its `patchers` loaded."""

    way_back = 3  # times memory_per_item, with gradients: counted in bench/reno_memory.py
    clip: LoadedPixelCLIP
    vae: comfy.sd.VAE
    space: LatentSpace

    @property
    def patchers(self) -> list:
        return [self.vae.patcher, self.clip.image]

    def memory_per_item(self, shape: torch.Size) -> int:
        """The host's own estimate for decoding one latent of (B, C, H, W)."""
        return int(self.vae.memory_used_decode((1, *shape[1:]), self.vae.vae_dtype))

    def __call__(self, raw_latents: Tensor) -> Tensor:
        return one_by_one_when_out(self._encode, raw_latents)

    def _encode(self, raw_latents: Tensor) -> Tensor:
        tower = self.clip.image.model
        device, dtype = device_and_dtype(tower)
        pixels = self._decode(raw_latents).to(device)
        return encode_pixels(tower, pixels, self.clip.image_size, self.clip.mean, self.clip.std, dtype)

    @property
    def plain(self) -> "PixelEncoder":
        return self

    def look(self, raw_latents: Tensor) -> Look:
        return one_by_one_when_out(self._look, raw_latents)

    def _look(self, raw_latents: Tensor) -> Look:
        tower = self.clip.image.model
        device, dtype = device_and_dtype(tower)
        pixels = self._decode(raw_latents).to(device)
        return look_everywhere_in_pixels(tower, pixels, self.clip.image_size, self.clip.mean, self.clip.std, dtype)

    def _decode(self, raw_latents: Tensor) -> Tensor:
        vae = self.vae
        decoded = vae.first_stage_model.decode(raw_latents.to(device=vae.device, dtype=vae.vae_dtype)).float()
        # the host's process_output writes into its argument, which autograd may still need
        return vae.process_output(decoded.clone())


def pixel_encoder(clip: LoadedPixelCLIP, vae: comfy.sd.VAE) -> PixelEncoder:
    """The encoder for latents of `vae`.

    Raises:
        ValueError: the VAE does not make images.
    """
    if vae.latent_dim != 2 or vae.output_channels != 3:
        raise ValueError(
            f"Got a VAE with {vae.latent_dim}-dimensional latents and {vae.output_channels} output channels, expected an image VAE. "
            "Use the VAE of the checkpoint that made the latents."
        )
    return PixelEncoder(clip, vae, space_of_channels(vae.latent_channels, vae.spacial_compression_decode()))


def load_pixel_clip_file(name: str, dtype: str = "auto", quick_gelu: bool = False) -> LoadedPixelCLIP:
    """Load a file of ComfyUI/models/open_clip.

    Raises:
        ValueError: the file is gone or is no pixel CLIP; the message says what it is.
    """
    from ..models.pixel_clip import read_pixel_clip

    return LoadedPixelCLIP(read_pixel_clip(find_file(OPEN_CLIP, name), quick_gelu), dtype)
