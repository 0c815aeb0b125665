"""Cosine rewards on CLIP features: match a text, match a latent."""

import torch
from torch import Tensor

from .base import Encoder, Reward, Term


def text_reward(
    encoder: Encoder, name: str, text_features: Tensor, avoid_features: Tensor | None = None, weight: float = 1.0
) -> Reward:
    """cos(image, text), minus cos(image, text to avoid) where one is given.

    With weight 1 this equals the CLIP term of the original ReNO (0.01 × its 100 × cosine).

    Args:
        text_features, avoid_features: (D,) of unit length.
    """
    direction = text_features if avoid_features is None else text_features - avoid_features
    return _dot_product_reward(encoder, name, direction, weight)


def log_odds_reward(
    encoder: Encoder, name: str, text_features: Tensor, scale: float, bias: float, weight: float = 1.0
) -> Reward:
    """scale × cos(image, text) + bias: the log-odds that the two belong together, of a model that was trained with a sigmoid (SigLIP).

    0 is an even chance. The probability itself would have no gradient where the model is sure.

    Args:
        text_features: (D,) of unit length.
    """
    cosine = text_reward(encoder, name, text_features).terms[0].head
    return Reward((Term(name, encoder, lambda features: scale * cosine(features) + bias, weight),))


def latent_reward(encoder: Encoder, name: str, reference_features: Tensor, weight: float = 1.0) -> Reward:
    """cos(image, reference).

    Args:
        reference_features: (D,) of unit length.
    """
    return _dot_product_reward(encoder, name, reference_features, weight)


def _dot_product_reward(encoder: Encoder, name: str, direction: Tensor, weight: float) -> Reward:
    # built inside a caller's inference mode it would be a tensor that autograd refuses to save
    with torch.inference_mode(False):
        direction = direction.clone()

    def head(features: Tensor) -> Tensor:
        return features @ direction.to(features)

    return Reward((Term(name, encoder, head, weight),))
