"""A Latent-CLIP ready to use with torch alone: raw latents and texts → unit features.

ComfyUI's version (`host`) extends these classes: it moves the towers, keeps to the memory and caches texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..models.fit import Fit
from ..models.latent_spaces import LatentSpace
from .features import WindowFeatures, encode_latents, encode_windows

if TYPE_CHECKING:  # open_clip takes seconds to import
    from ..models.latent_clip import LatentCLIP

LARGEST_SCALE = 100.0  # to which open_clip, and latent-clip train, keep it while they train
Features = TypeVar("Features", Tensor, WindowFeatures)


class Towers(Protocol):
    """The part of a Latent-CLIP that encoders read.

    Attributes:
        space: the latent space of the image tower. grid: cells along a side of its input.
    """

    @property
    def space(self) -> LatentSpace: ...

    @property
    def grid(self) -> int: ...

    @property
    def image_tower(self) -> nn.Module: ...


@dataclass(frozen=True)
class LatentEncoder:
    """Raw latents (B, C, H, W) of any size → features (B, D), float32 of unit length.

    Equal encoders give equal features, so rewards on equal encoders share one forward pass.

    Args:
        clip: whose image tower it is. fit: see `models.fit.fit_latents`.
    """

    reads_clips = False
    clip: Towers
    fit: Fit = "tiles"

    @property
    def space(self) -> LatentSpace:
        return self.clip.space

    @property
    def reads_noise_level(self) -> bool:
        """True if the tower is conditioned on the noise level; only towers of `models.noise_level` say so."""
        return getattr(self.clip.image_tower, "reads_noise_level", False)

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> Tensor:
        """Encode latents.

        Args:
            noise_level: share of noise, 0 to 1, in what the latents were predicted from; None for finished latents. Towers that
                are not conditioned on it ignore it.
        """
        tower, dtype = self._tower(noise_level)
        return self._run(lambda raw: encode_latents(tower, raw, self.clip.grid, self.fit, dtype), raw_latents, noise_level)

    def _tower(self, noise_level: float | None) -> tuple[Callable[[Tensor], Tensor], torch.dtype]:
        tower = self.clip.image_tower
        dtype = next(tower.parameters()).dtype
        given = noise_level is not None and self.reads_noise_level
        return (partial(tower, noise_level=noise_level) if given else tower), dtype

    def _run(self, encode: Callable[[Tensor], Features], raw_latents: Tensor, noise_level: float | None) -> Features:
        """Move latents to the tower and encode them; hosts that manage memory do it here."""
        return encode(raw_latents.to(next(self.clip.image_tower.parameters()).device, torch.float32))


@dataclass(frozen=True)
class LatentWindowEncoder(LatentEncoder):
    """A `LatentEncoder` that also encodes every window by itself, for safety, where the worst window decides.

    Args:
        closer: add windows at full resolution, see `models.fit.safety_windows`.
    """

    closer: bool = False

    @property
    def plain(self) -> LatentEncoder:
        return LatentEncoder(self.clip, self.fit)

    def encode_windows(self, raw_latents: Tensor, noise_level: float | None = None) -> WindowFeatures:
        """Encode latents as `__call__` does, and all windows."""
        tower, dtype = self._tower(noise_level)
        grid, fit, closer = self.clip.grid, self.fit, self.closer
        return self._run(lambda raw: encode_windows(tower, raw, grid, fit, dtype, closer), raw_latents, noise_level)


@dataclass(frozen=True, eq=False)
class TorchLatentCLIP:
    """A Latent-CLIP on one device, as `latent_clip.load` returns it.

    Attributes:
        model: both towers. config: its open_clip model config. space: the latent space that it reads; `space.to_raw` turns a
            diffusion model's latents (as diffusers returns them) into the raw latents that encoders and rewards take.
        name: of the file. logit_scale: exp of the learned temperature; logits are logit_scale × cosine.
    """

    model: LatentCLIP
    config: dict
    space: LatentSpace
    name: str
    grid: int
    logit_scale: float

    @property
    def image_tower(self) -> nn.Module:
        return self.model.visual

    def encoder(self, fit: Fit = "tiles") -> LatentEncoder:
        """The encoder for rewards."""
        return LatentEncoder(self, fit)

    def window_encoder(self, fit: Fit = "tiles", closer: bool = False) -> LatentWindowEncoder:
        """The encoder for safety."""
        return LatentWindowEncoder(self, fit, closer)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Features (N, D) of texts, float32 of unit length, on the CPU.

        Raises:
            ValueError: a text has no words.
        """
        from ..models.tokenizer import CLIPTokenizer, encode_texts

        if empty := [text for text in texts if not text.strip()]:
            raise ValueError(f"Got the empty text {empty[0]!r}, expected a description of what the image shows.")
        with torch.no_grad():
            return encode_texts(self.model.text, CLIPTokenizer(self.config["text_cfg"]["context_length"]), texts)


def load(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> TorchLatentCLIP:
    """Load a Latent-CLIP from a file, frozen: a converted one, the authors' checkpoint, or one that `latent-clip train` wrote.

    Args:
        dtype: of the weights and of the computation; features are float32 in any case.

    Raises:
        ValueError: the file is missing, or is no Latent-CLIP; the message says what it is.
    """
    from ..models.checkpoint import read_checkpoint
    from ..models.config import latent_grid
    from ..models.latent_clip import load_latent_clip

    checkpoint = read_checkpoint(Path(path))
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    logit_scale = min(model.logit_scale.float().exp().item(), LARGEST_SCALE)
    model.to(device, dtype)
    return TorchLatentCLIP(
        model, checkpoint.config, checkpoint.space, checkpoint.name, latent_grid(checkpoint.config), logit_scale
    )
