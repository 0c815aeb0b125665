"""The baseline that everyone else uses: decode the latent with the VAE, then look at the pixels with a CLIP."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor

from ..methods.features import Look, average_unit, encode_pixels, look_everywhere_in_pixels
from ..methods.rewards import Reward, log_odds_reward, text_reward
from ..models.latent_spaces import LatentSpace
from .decoding import Decoder
from .folders import OPEN_CLIP, find_file
from .latent_clip import TextTower
from .oom import one_by_one_when_out
from .towers import device_and_dtype, tower_dtype, tower_patcher
from .word_pieces import Tokenizer, tokenizer_of

if TYPE_CHECKING:  # open_clip takes seconds to import
    from ..models.pixel_clip import PixelCLIP


class LoadedPixelCLIP:
    """A pixel CLIP in the host's care; `image`, `text`, `logit_scale` as in `LoadedLatentCLIP`.

    Attributes:
        logit_bias: of a sigmoid (SigLIP); None for a CLIP.
    """

    def __init__(self, clip: "PixelCLIP", dtype: str = "auto", tokenizer: Tokenizer | None = None):
        """Args:
        tokenizer: of its texts; default: open_clip's own.
        """
        device = mm.get_torch_device()
        self.name = clip.name
        self.image_size = clip.image_size
        self.resize, self.interpolation = clip.preparation.resize, clip.preparation.interpolation
        self.logit_scale, self.logit_bias = clip.logit_scale, clip.logit_bias
        with torch.inference_mode(False):  # constants of a computation that gradients go through
            self.mean, self.std = torch.tensor(clip.mean), torch.tensor(clip.std)
        self.image = tower_patcher(clip.model.visual.to(tower_dtype(dtype, device)), device, mm.unet_offload_device())
        text_dtype = tower_dtype(dtype, mm.text_encoder_device())
        self.text = TextTower(clip.model.text.to(text_dtype), clip.model.context_length, tokenizer)


@dataclass(frozen=True)
class PixelEncoder:
    """Raw latents → features of the decoded picture; those of several frames are averaged. Call it with its `patchers` loaded."""

    way_back = Decoder.way_back
    clip: LoadedPixelCLIP
    decoder: Decoder

    @property
    def vae(self) -> comfy.sd.VAE:
        return self.decoder.vae

    @property
    def space(self) -> LatentSpace:
        return self.decoder.space

    @property
    def patchers(self) -> list:
        return [self.vae.patcher, self.clip.image]

    def memory_per_item(self, shape: torch.Size) -> int:
        return self.decoder.memory_per_item(shape)

    def __call__(self, raw_latents: Tensor) -> Tensor:
        return self._when_out(self._encode, raw_latents)

    def _encode(self, raw_latents: Tensor) -> Tensor:
        tower, pixels = self._decode(raw_latents)
        features = tower(encode_pixels, pixels.flatten(0, 1))
        return average_unit(features.unflatten(0, pixels.shape[:2]))

    @property
    def plain(self) -> "PixelEncoder":
        return self

    def look(self, raw_latents: Tensor) -> Look:
        return self._when_out(self._look, raw_latents)

    def _look(self, raw_latents: Tensor) -> Look:
        tower, pixels = self._decode(raw_latents)
        look = tower(look_everywhere_in_pixels, pixels.flatten(0, 1))
        windows = look.windows.unflatten(0, pixels.shape[:2]).flatten(1, 2)
        return Look(average_unit(look.average.unflatten(0, pixels.shape[:2])), windows)

    def _when_out(self, encode, raw_latents: Tensor):
        """Item by item where the way back through the decoder has no room for all of them."""
        way_back = torch.is_grad_enabled() and raw_latents.requires_grad
        return one_by_one_when_out(encode, raw_latents, not way_back or self.decoder.fits(raw_latents))

    def _decode(self, raw_latents: Tensor):
        """What reads pictures with the tower, and the pictures (B, F, 3, H, W) on its device."""
        clip, network = self.clip, self.clip.image.model
        device, dtype = device_and_dtype(network)

        def tower(read, pixels: Tensor):
            return read(network, pixels, clip.image_size, clip.mean, clip.std, dtype, clip.resize, clip.interpolation)

        return tower, self.decoder(raw_latents).to(device)


def pixel_encoder(clip: LoadedPixelCLIP, vae: comfy.sd.VAE) -> PixelEncoder:
    """The encoder for latents of `vae`.

    Raises:
        ValueError: the VAE makes no pictures.
    """
    return PixelEncoder(clip, Decoder(vae))


def pixel_reward(clip: LoadedPixelCLIP, vae: comfy.sd.VAE, name: str, text: str, weight: float = 1.0) -> Reward:
    """How well decoded latents match a text: the cosine of a CLIP, or the log-odds of one that was trained with a sigmoid.

    Raises:
        ValueError: the VAE makes no pictures, or the text has no words.
    """
    encoder, features = pixel_encoder(clip, vae), clip.text.encode([text])[0]
    if clip.logit_bias is None:
        return text_reward(encoder, name, features, weight=weight)
    return log_odds_reward(encoder, name, features, clip.logit_scale, clip.logit_bias, weight)


def load_pixel_clip_file(name: str, dtype: str = "auto", quick_gelu: bool = False) -> LoadedPixelCLIP:
    """Load a file of ComfyUI/models/open_clip.

    Raises:
        ValueError: the file is gone, is no pixel CLIP, or needs a tokenizer that is not there; the message says what it is.
    """
    from ..models.pixel_clip import read_pixel_clip

    path = find_file(OPEN_CLIP, name)
    clip = read_pixel_clip(path, quick_gelu)
    return LoadedPixelCLIP(clip, dtype, tokenizer_of(path, clip.config["text_cfg"], clip.model.vocab_size))
