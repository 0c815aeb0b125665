"""Keep concepts out: zero while an image is innocent, falling as it shows more of a concept than its threshold."""

from torch import Tensor

from ..concepts import ConceptDirections
from .base import Encoder, Reward, Term


def avoid_reward(encoder: Encoder, concepts: ConceptDirections, weight: float = 1.0) -> Reward:
    """min(0, threshold − log-odds) for every category: at and below the threshold value and gradient are exactly zero."""

    def hinge(category: int):
        def head(features: Tensor) -> Tensor:
            return -(concepts.score_of(category, features) - concepts.thresholds[category]).relu()

        return head

    return Reward(tuple(Term(f"avoid: {name}", encoder, hinge(i), weight) for i, name in enumerate(concepts.names)))
