"""Latent-CLIP inside the host: the value of a LATENT_CLIP wire."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...methods import encoder
from ...methods.encoder import LARGEST_SCALE, Features
from ...models.config import latent_grid
from ...models.file_metadata import statistics_of, unlike, vae_of
from ...models.fit import Fit, fit_latents, safety_windows
from ...models.frames import frames_in
from ...models.latent_spaces import LatentSpace
from ...models.texts import cut_text
from ..memory.oom import BatchLimit
from .folders import LATENT_CLIP, find_file
from .prompt_words import words_of
from .tokenizers import Tokenizer
from .towers import TowerPatcher, device_and_dtype, tower_dtype, tower_patcher
from .vae_check import check_vae

if TYPE_CHECKING:  # open_clip takes seconds to import
    import comfy.sd

    from ...models.latent_clip import LatentCLIP

LOGGER = logging.getLogger(__name__)
END_OF_TEXT = "<end_of_text>"  # the tokenizer takes it for its own token, at which CLIP reads the features
TEXT_CACHE_SIZE = 512  # prompts; at 640 floats each 1.3 MB


class TextTower:
    """Text features of a CLIP, encoded once per prompt and kept (the last `TEXT_CACHE_SIZE` of them).

    Texts may be prompts: their words are read, not their syntax (`host.scorers.prompt_words`).
    Its own ModelPatcher, so it can leave the GPU while the image tower works.
    """

    def __init__(self, module: nn.Module, context_length: int, tokenizer: Tokenizer | None = None):
        """Args:
        tokenizer: default: open_clip's own.
        """
        from ...models.tokenizer import CLIPTokenizer

        device = mm.text_encoder_device()
        self.patcher = tower_patcher(module, device, mm.text_encoder_offload_device())
        self.tokenizer = tokenizer or CLIPTokenizer(context_length)
        self.room = context_length - getattr(tokenizer, "ends", 2)  # tokens beside those that mark the ends of a text
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, texts: list[str]) -> Tensor:
        """Features of texts: (N, D) float32 of unit length, on the CPU.

        Raises:
            ValueError: a text has no words.
        """
        prompts, texts = texts, [words_of(text)[0] for text in texts]
        for prompt, text in zip(prompts, texts):
            if not text.strip():
                got = f"only prompt syntax, {prompt.strip()!r:.100}," if prompt.strip() else "an empty text,"
                raise ValueError(
                    f"Got {got} expected a description of what the image shows. Type one, or remove the node."
                )
        missing = list(dict.fromkeys(text for text in texts if text not in self._cache))
        for text, features in zip(missing, self._forward(missing) if missing else []):
            self._cache[text] = features
        for text in texts:
            self._cache.move_to_end(text)
        features = torch.stack([self._cache[text] for text in texts])
        while len(self._cache) > TEXT_CACHE_SIZE:
            self._cache.popitem(last=False)
        return features

    def remarks(self, text: str) -> list[str]:
        """Remarks on the part of a text that is not read, such as "cut to 77 tokens"; for names in reports."""
        from ...models.tokenizer import CLIPTokenizer

        words, left_out = words_of(text)
        remarks = [f"{kind} not used" for kind in left_out]
        if END_OF_TEXT in words and isinstance(self.tokenizer, CLIPTokenizer):
            remarks.append(f"not read after {END_OF_TEXT}")
        if len(self.tokenizer.encode(words)) > self.room:
            remarks.append(f"cut to {self.tokenizer.context_length} tokens")
        elif cut_text(words, self.tokenizer.context_length) != words:
            remarks.append("cut inside a very long word")
        return remarks

    def _forward(self, texts: list[str]) -> Tensor:
        from ...models.tokenizer import encode_texts

        for text in texts:
            if remarks := self.remarks(text):
                LOGGER.warning("This text is %s: %.60s…", " and ".join(remarks), text)
        mm.load_models_gpu([self.patcher])
        return encode_texts(self.patcher.model, self.tokenizer, texts)


class LoadedLatentCLIP:
    """Value of a LATENT_CLIP socket: two towers under the host's memory management, and the space that they read.

    Attributes:
        name: for reports.
        config: open_clip model config.
        space: the latent space of the image tower. vae_info: name, sha256 and encoder signature of the VAE, from the file's metadata.
        identity: which weights these are, whatever their dtype; see `models.latent_clip.identity`.
        logit_scale: exp of the learned temperature; logits are logit_scale × cosine.
        limit: largest batches that the image tower had room for.
        image: patcher of the image tower. text: the text tower with its cache.
    """

    def __init__(
        self, model: "LatentCLIP", config: dict, space: LatentSpace, name: str, dtype: str = "auto",
        statistics: dict | None = None, vae_info: dict | None = None,
    ):  # fmt: skip
        from ...models.latent_clip import identity

        device = mm.get_torch_device()
        self.name = name
        self.identity = identity(model)  # before the towers get their dtype
        self.config = config
        self.space = space
        self.grid = latent_grid(config)
        self._statistics = statistics
        self.vae_info = vae_info or {}
        self.limit = BatchLimit()
        self.logit_scale = min(model.logit_scale.float().exp().item(), LARGEST_SCALE)
        self.image: TowerPatcher = tower_patcher(
            model.visual.to(tower_dtype(dtype, device)), device, mm.unet_offload_device()
        )
        text_dtype = tower_dtype(dtype, mm.text_encoder_device())
        self.text = TextTower(model.text.to(text_dtype), config["text_cfg"]["context_length"])

    @property
    def image_tower(self) -> nn.Module:
        return self.image.model

    def encode_text(self, texts: list[str]) -> Tensor:
        """See `TextTower.encode`."""
        return self.text.encode(texts)

    def warn_if_unusual(self, raw_latents: Tensor) -> None:
        """Warn once if the first latents' channel statistics differ from the training data: perhaps another VAE's."""
        statistics, self._statistics = self._statistics, None
        if statistics and (odd := unlike(raw_latents, statistics)):
            LOGGER.warning(
                "%s was trained on the latents of the %s space, and these are not like them: %s. Are they of that VAE? "
                "Scores of another VAE's latents mean nothing.", self.name, self.space.name, odd,
            )  # fmt: skip

    def encoder(self, fit: Fit = "tiles") -> "HostedLatentEncoder":
        return HostedLatentEncoder(self, fit)

    def window_encoder(self, fit: Fit = "tiles", closer: bool = False) -> "HostedWindowEncoder":
        """Return the encoder of windows for safety checks; `closer` as in `models.fit.safety_windows`."""
        return HostedWindowEncoder(self, fit, closer)


@dataclass(frozen=True)
class HostedLatentEncoder(encoder.LatentEncoder):
    """The library's encoder with the host's memory management. Call it with its `patchers` loaded."""

    backward_cost = 11  # times memory_per_item, with gradients: counted in bench/reno_memory.py
    clip: LoadedLatentCLIP

    @property
    def limit(self) -> BatchLimit:
        return self.clip.limit

    @property
    def patchers(self) -> list[TowerPatcher]:
        return [self.clip.image]

    def memory_per_item(self, shape: torch.Size) -> int:
        """Bytes of activations, generously, for one latent of (B, C, H, W) or (B, C, T, H, W) in the forward pass."""
        vision = self.clip.config["vision_cfg"]
        tokens = (self.clip.grid // vision["patch_size"]) ** 2 + 1
        _, dtype = device_and_dtype(self.clip.image.model)
        return 2 * frames_in(shape) * self._windows(shape) * tokens * vision["width"] * 12 * dtype.itemsize

    def _windows(self, shape: torch.Size) -> int:
        """Number of windows that the tower reads of one latent of this shape."""
        return fit_latents(torch.empty(1, 1, *shape[-2:], device="meta"), self.clip.grid, self.fit).shape[1]

    def _run(self, encode: Callable[[Tensor], Features], raw_latents: Tensor, noise_level: float | None) -> Features:
        if noise_level is None or not self.reads_noise_level:
            self.clip.warn_if_unusual(raw_latents)
        device, _ = device_and_dtype(self.clip.image_tower)
        return self.limit.run(encode, raw_latents.to(device, torch.float32))


@dataclass(frozen=True)
class HostedWindowEncoder(HostedLatentEncoder, encoder.LatentWindowEncoder):
    """The library's window encoder with the host's memory management."""

    @property
    def plain(self) -> HostedLatentEncoder:
        return HostedLatentEncoder(self.clip, self.fit)

    def _windows(self, shape: torch.Size) -> int:
        latents = torch.empty(1, 1, *shape[-2:], device="meta")
        return super()._windows(shape) + safety_windows(latents, self.clip.grid, self.fit, self.closer).shape[1]


def load_latent_clip_file(name: str, dtype: str = "auto", vae: "comfy.sd.VAE | None" = None) -> LoadedLatentCLIP:
    """Load a file of ComfyUI/models/latent_clip.

    Args:
        vae: to be checked to be the one whose latents it reads; default: nothing is checked.

    Raises:
        ValueError: the file is gone or is no Latent-CLIP, or reads the latents of another VAE; the message says what it is.
    """
    from ...models.checkpoint import read_checkpoint
    from ...models.latent_clip import load_latent_clip

    checkpoint = read_checkpoint(find_file(LATENT_CLIP, name))
    vae_info = vae_of(checkpoint.metadata)
    if vae is not None:
        check_vae(name, checkpoint.space, vae_info, vae)
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    LOGGER.info("Loaded %s: reads %s latents", checkpoint.name, checkpoint.space.name)
    statistics = statistics_of(checkpoint.metadata, checkpoint.space.channels)
    return LoadedLatentCLIP(model, checkpoint.config, checkpoint.space, checkpoint.name, dtype, statistics, vae_info)
