"""The functions that `import latent_clip` offers. They need torch, einops and open_clip, and no ComfyUI."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..models.concepts import ConceptSet, read_concepts, shipped_concepts, shipped_names
from ..models.fit import Fit
from ..models.latent_spaces import LATENT_SPACES, LatentSpace
from . import rewards
from .concepts import concept_directions
from .encoder import TorchLatentCLIP, load
from .reno import RenoSettings, RenoState, optimize_noise
from .rewards import Reward

__all__ = [
    "LATENT_SPACES",
    "LatentSpace",
    "RenoSettings",
    "RenoState",
    "Reward",
    "avoid_reward",
    "combine",
    "latent_reward",
    "load",
    "optimize_noise",
    "text_reward",
]


def text_reward(
    clip: TorchLatentCLIP, text: str, avoid: str | None = None, weight: float = 1.0, fit: Fit = "tiles"
) -> Reward:
    """Reward for matching a text: cos(image, text), minus cos(image, avoid) where one is given.

    Args:
        text, avoid: descriptions of an image. fit: how latents that are not square are read, see `models.fit`.
    """
    features = clip.encode_text([text] if avoid is None else [text, avoid])
    return rewards.text_reward(clip.encoder(fit), text, features[0], features[1] if avoid is not None else None, weight)


def latent_reward(clip: TorchLatentCLIP, raw_latent: Tensor, weight: float = 1.0, fit: Fit = "tiles") -> Reward:
    """Reward for looking like a reference: cos(image, reference).

    Args:
        raw_latent: the reference, (1, C, H, W).
    """
    if raw_latent.ndim != 4 or len(raw_latent) != 1:
        raise ValueError(f"Got a reference of shape {tuple(raw_latent.shape)}, expected one raw latent (1, C, H, W).")
    encoder = clip.encoder(fit)
    return rewards.latent_reward(encoder, "reference", encoder(raw_latent.detach())[0], weight)


def avoid_reward(
    clip: TorchLatentCLIP, concepts: str | Path | ConceptSet, weight: float = 1.0, fit: Fit = "tiles"
) -> Reward:
    """Reward for keeping concepts out: 0 for an image below the threshold of every category, negative above.

    Args:
        concepts: the name of a shipped set (`i2p`), a JSON file, or a set.

    Raises:
        ValueError: there is no such set, or the file is none.
    """
    if not isinstance(concepts, ConceptSet):
        shipped = str(concepts) in shipped_names()
        concepts = shipped_concepts(str(concepts)) if shipped else read_concepts(Path(concepts))
    directions = concept_directions(clip.encode_text, concepts, clip.logit_scale)
    return rewards.avoid_reward(clip.window_encoder(fit), directions, weight)


def combine(*terms: Reward) -> Reward:
    """Weighted sum of rewards; terms on one Latent-CLIP share its forward pass.

    Raises:
        ValueError: no reward, or rewards on different latent spaces.
    """
    return rewards.combine(list(terms))
