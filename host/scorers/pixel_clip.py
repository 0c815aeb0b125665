"""Pixel CLIP baseline: decode the latent with the VAE, then encode the pixels with a CLIP."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor

from ...methods.features import WindowFeatures, average_unit, encode_pixel_windows, encode_pixels
from ...methods.rewards import Reward, log_odds_reward, text_reward
from ...models.fit import Fit
from ...models.frames import frames_in
from ...models.latent_spaces import LatentSpace
from ..memory.oom import BatchLimit
from .decoding import Decoder
from .folders import OPEN_CLIP, find_file
from .latent_clip import TextTower
from .tokenizers import Tokenizer, tokenizer_of
from .towers import device_and_dtype, tower_dtype, tower_patcher

if TYPE_CHECKING:  # open_clip takes seconds to import
    from ...models.pixel_clip import PixelCLIP


class LoadedPixelCLIP:
    """Pixel CLIP managed by the host; `identity`, `image`, `text`, `logit_scale` as in `LoadedLatentCLIP`.

    Attributes:
        logit_bias: of a sigmoid (SigLIP); None for a CLIP.
    """

    def __init__(self, clip: "PixelCLIP", dtype: str = "auto", tokenizer: Tokenizer | None = None):
        """Args:
        tokenizer: of its texts; default: open_clip's own.
        """
        from ...models.latent_clip import identity

        device = mm.get_torch_device()
        self.name = clip.name
        self.identity = identity(clip.model)  # before the towers get their dtype
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
    """Encode the decoded picture of raw latents. Call it with its `patchers` loaded.

    A video VAE decodes a clip as a whole, to more pictures than the latent has frames. A frame is scored by all pictures that it adds.
    """

    backward_cost = Decoder.backward_cost
    clip: LoadedPixelCLIP
    decoder: Decoder

    @property
    def vae(self) -> comfy.sd.VAE:
        return self.decoder.vae

    @property
    def space(self) -> LatentSpace:
        return self.decoder.space

    @property
    def reads_clips(self) -> bool:
        return self.vae.latent_dim == 3

    @property
    def limit(self) -> BatchLimit:
        return self.decoder.limit

    @property
    def patchers(self) -> list:
        return [self.vae.patcher, self.clip.image]

    def memory_per_item(self, shape: torch.Size) -> int:
        return self.decoder.memory_per_item(shape)

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> Tensor:
        return self._when_out(self._encode, raw_latents)

    def _encode(self, raw_latents: Tensor) -> Tensor:
        tower, pixels, added = self._decode(raw_latents)
        features = tower(encode_pixels, pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return average_unit(features[:, added].flatten(0, 1))

    @property
    def plain(self) -> "PixelEncoder":
        return self

    def encode_windows(self, raw_latents: Tensor, noise_level: float | None = None) -> WindowFeatures:
        return self._when_out(self._encode_windows, raw_latents)

    def _encode_windows(self, raw_latents: Tensor) -> WindowFeatures:
        tower, pixels, added = self._decode(raw_latents)
        found = tower(encode_pixel_windows, pixels.flatten(0, 1))
        average, windows = (part.unflatten(0, pixels.shape[:2])[:, added].flatten(0, 1) for part in found)
        return WindowFeatures(average_unit(average), windows.flatten(1, 2))

    def _when_out(self, encode, raw_latents: Tensor):
        """Encode item by item if the backward pass through the decoder has no room for all of them."""
        backward = torch.is_grad_enabled() and raw_latents.requires_grad
        return self.limit.run(encode, raw_latents, not backward or self.decoder.fits(raw_latents))

    def _decode(self, raw_latents: Tensor):
        """Return the tower's encode function, pictures (B, F, 3, H, W) on its device, and each frame's indices (T, G)."""
        clip, network = self.clip, self.clip.image.model
        device, dtype = device_and_dtype(network)

        def tower(read, pixels: Tensor):
            return read(network, pixels, clip.image_size, clip.mean, clip.std, dtype, clip.resize, clip.interpolation)

        pixels = self.decoder(raw_latents).to(device)
        return tower, pixels, pictures_added(pixels.shape[1], frames_in(raw_latents.shape))


class PixelJudge:
    """Pixel CLIP and VAE for a LATENT_CLIP socket: every node works on every model, at the price of a decode.

    Attributes:
        name, identity, logit_scale, space, text: as in `LoadedLatentCLIP`.
    """

    def __init__(self, clip: LoadedPixelCLIP, vae: comfy.sd.VAE):
        self._encoder = pixel_encoder(clip, vae)
        self.name, self.identity, self.logit_scale, self.text = clip.name, clip.identity, clip.logit_scale, clip.text

    @property
    def space(self) -> LatentSpace:
        return self._encoder.space

    def encode_text(self, texts: list[str]) -> Tensor:
        """See `TextTower.encode`."""
        return self.text.encode(texts)

    def encoder(self, fit: Fit = "tiles") -> PixelEncoder:
        """Return the encoder; a pixel CLIP reads a square from the middle of a picture, whatever the fit."""
        return self._encoder

    def window_encoder(self, fit: Fit = "tiles", closer: bool = False) -> PixelEncoder:
        """Return the encoder of squares that cover the whole picture.

        Raises:
            ValueError: `closer`; pictures have no full-resolution windows.
        """
        if closer:
            raise ValueError("Got closer_look with a pixel judge, which has none. Switch it off, or use a Latent-CLIP.")
        return self._encoder


def pictures_added(pictures: int, frames: int) -> list[list[int]]:
    """Indices of the decoded pictures that each frame of a latent clip adds, as many for each: the last one fills up.

    Video VAEs make one picture of the first frame, and a fixed number of every further one.
    """
    ends = [round(frame * (pictures - 1) / max(1, frames - 1)) for frame in range(frames)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    most = max(end - start for start, end in zip(starts, ends)) + 1
    return [[min(start + place, end) for place in range(most)] for start, end in zip(starts, ends)]


def pixel_encoder(clip: LoadedPixelCLIP, vae: comfy.sd.VAE) -> PixelEncoder:
    """Return the encoder for latents of `vae`.

    Raises:
        ValueError: the VAE makes no pictures.
    """
    return PixelEncoder(clip, Decoder(vae))


def pixel_reward(clip: LoadedPixelCLIP, vae: comfy.sd.VAE, name: str, text: str, weight: float = 1.0) -> Reward:
    """Reward for decoded latents that match a text: cosine of a CLIP, or log-odds of one trained with a sigmoid.

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
    from ...models.pixel_clip import read_pixel_clip

    path = find_file(OPEN_CLIP, name)
    clip = read_pixel_clip(path, quick_gelu)
    return LoadedPixelCLIP(clip, dtype, tokenizer_of(path, clip.config["text_cfg"], clip.model.vocab_size))
