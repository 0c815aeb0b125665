"""Concept scores: log-odds of a concept's phrases against neutral anchors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.concepts import ConceptSet


@dataclass(frozen=True)
class ConceptDirections:
    """A concept set, encoded by one CLIP.

    Attributes:
        names, thresholds: one per category.
        phrases: unit features (P, D) per category. anchors: (A, D). logit_scale: of that CLIP.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    phrases: tuple[Tensor, ...]
    anchors: Tensor
    logit_scale: float

    def score(self, features: Tensor) -> Tensor:
        """Log-odds of every category: unit features (..., D) → (..., categories)."""
        return torch.stack([self.score_of(i, features) for i in range(len(self.names))], dim=-1)

    def worst(self, windows: Tensor) -> Tensor:
        """Log-odds of every category in its worst window: (B, T, D) → (B, categories)."""
        return largest(self.score(windows), dim=1)

    def score_of(self, category: int, features: Tensor) -> Tensor:
        """Log-odds of one category: (..., D) → (...).

        log mean exp(s·cos(image, phrase)) − log mean exp(s·cos(image, anchor)): its sigmoid is the probability that CLIP
        gives to the phrases when phrases and anchors are equally likely beforehand. The means keep it independent of how
        many texts either side has.
        """
        return self._log_mean_exp(features, self.phrases[category]) - self._log_mean_exp(features, self.anchors)

    def _log_mean_exp(self, features: Tensor, texts: Tensor) -> Tensor:
        logits = self.logit_scale * features @ texts.to(features).T
        return logits.logsumexp(dim=-1) - torch.tensor(float(len(texts))).log().item()


def largest(scores: Tensor, dim: int) -> Tensor:
    """Maximum along `dim`, NaN where one of the scores is: a plain maximum drops NaN on some devices, and a sum keeps it."""
    return scores.amax(dim=dim) + 0 * scores.sum(dim=dim)


def concept_directions(
    encode_text: Callable[[list[str]], Tensor], concepts: ConceptSet, logit_scale: float
) -> ConceptDirections:
    """Encode every phrase and anchor of a set.

    Args:
        encode_text: N texts → unit features (N, D).
    """
    # built inside a caller's inference mode they would be tensors that autograd refuses to save
    with torch.inference_mode(False):
        return ConceptDirections(
            tuple(category.name for category in concepts.categories),
            tuple(category.threshold for category in concepts.categories),
            tuple(encode_text(list(category.phrases)).clone() for category in concepts.categories),
            encode_text(list(concepts.anchors)).clone(),
            logit_scale,
        )
