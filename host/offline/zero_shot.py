"""A Latent-CLIP with its VAE as functions from pictures and texts to features: what zero-shot classification needs of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.latent_spaces import check_raw_latents
from ..scorers import scoring
from .calibrate import CalibrationScorer


@dataclass(frozen=True)
class ZeroShotModel:
    """Models loaded by the host.

    Attributes:
        name: of the Latent-CLIP. side: pixels of the square that fills its grid.
        space: name of the latent space that it reads. vae: its file's record of the VAE.
        encode: pictures (B, 3, side, side) in [0, 1] → (B, D); encode_latents: raw latents (B, C, H, W) → (B, D);
            encode_text: texts → (N, D); all of unit length.
    """

    name: str
    side: int
    space: str
    vae: dict
    encode_latents: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    encode_text: Callable[[list[str]], Tensor]


def load_judge(clip: str, vae: str | None) -> ZeroShotModel:
    """Load both by file, or the demo's as "shapes-world"; without a VAE it reads latents only.

    A VAE draws a sample of its posterior: here the same for the same batch, so that a result can be repeated.

    Raises:
        ValueError: a file is none, or the VAE writes other latents than the Latent-CLIP reads.
    """
    scorer = CalibrationScorer(clip, vae, "crop", 0)
    encoder, loaded = scorer.clip.encoder("crop"), scorer.vae

    def encode_latents(raw_latents: Tensor) -> Tensor:
        with torch.inference_mode():
            return scoring.encode(encoder, check_raw_latents(raw_latents, scorer.clip.space).float())

    def encode(pictures: Tensor) -> Tensor:
        if loaded is None:
            raise ValueError("Got pictures and no VAE, expected one to make latents of them. Name it with --vae.")
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(0)
            raw = loaded.encode(pictures.movedim(1, -1))
        return encode_latents(raw)

    space = scorer.clip.space
    return ZeroShotModel(
        scorer.clip.name, scorer.clip.grid * space.downscale, space.name, scorer.vae_info, encode_latents, encode,
        scorer.clip.encode_text,
    )  # fmt: skip
