"""VAE of `latent-clip embed`, loaded by the host, so that shards hold the numbers that a LATENT wire carries."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...models.checkpoint import sha256_of
from ...models.latent_spaces import LATENT_SPACES, LatentSpace
from ...models.shapes_world import FOLDER
from ..scorers.vae_check import loaded_signature
from .calibrate import SHAPES_WORLD, _load_vae


class HostVAE:
    """A VAE in the host's care, as training's embed calls it.

    Attributes:
        channels, downscale: of its latents.
        vae_info: name and sha256 of its file, and the signature of its encoder (`models.vae_signature`).
    """

    def __init__(self, vae: str, moments: bool = False) -> None:
        path = FOLDER / "vae.safetensors" if vae == SHAPES_WORLD else Path(vae)
        self.vae = _load_vae(vae)
        self.vae.throw_exception_if_invalid()
        self.vae_info: dict = {
            "name": vae if vae == SHAPES_WORLD else path.name, "sha256": sha256_of(path),
            "signature": loaded_signature(self.vae),
        }  # fmt: skip
        self.moments = moments
        self.channels, self.downscale = self.vae.latent_channels, self.vae.spacial_compression_encode()
        if moments and not hasattr(self.vae.first_stage_model, "regularization"):
            raise ValueError(
                f"{path.name}: not a VAE whose posterior can be read. Leave --moments out: shards then hold its latents."
            )

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (N, side, side, 3) in 0..1 → `latent`, or `mean` and `std`: (N, C, h, w)."""
        if not self.moments:
            return {"latent": self._frame(self.vae.encode(pixels))}
        caught: list[Tensor] = []
        regularization = self.vae.first_stage_model.regularization
        handle = regularization.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float().cpu()))
        try:
            self.vae.encode(pixels)
        finally:
            handle.remove()
        mean, log_variance = torch.cat(caught).chunk(2, dim=1)
        return {"mean": mean, "std": (0.5 * log_variance.clamp(-30, 20)).exp()}

    @staticmethod
    def _frame(latents: Tensor) -> Tensor:
        """Return the single frame that a video VAE makes of a picture."""
        return latents[:, :, 0] if latents.ndim == 5 and latents.shape[2] == 1 else latents


def space_of(name: str, encoder: HostVAE) -> LatentSpace:
    """The space that the user names, or one of the VAE's own, named after its file.

    Raises:
        ValueError: the space that was named is not one of this VAE's shape.
    """
    name = name or (SHAPES_WORLD if encoder.vae_info["name"] == SHAPES_WORLD else "")
    if not name:
        own = f"{Path(encoder.vae_info['name']).stem}-{encoder.vae_info['sha256'][:8]}"
        description = f"those of {encoder.vae_info['name']}"
        return LatentSpace(own, encoder.channels, encoder.downscale, 1.0, 0.0, description, video=encoder.vae.latent_dim == 3)
    if name not in LATENT_SPACES:
        raise ValueError(
            f"Got --space {name}, expected one of {', '.join(LATENT_SPACES)}, or none for a space of its own."
        )
    space = LATENT_SPACES[name]
    if (space.channels, space.downscale) != (encoder.channels, encoder.downscale):
        raise ValueError(
            f"Got --space {name}, of {space.channels} channels and {space.downscale} pixels a cell, but the latents of "
            f"{encoder.vae_info['name']} have {encoder.channels} and {encoder.downscale}. Name the VAE's own space, or none."
        )
    return space
