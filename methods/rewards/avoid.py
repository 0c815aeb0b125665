"""Keep concepts out: zero while an image is innocent, falling as it shows more of a concept than its threshold."""

from torch import Tensor

from ..concepts import ConceptDirections, largest
from .base import Encoder, Reward, Term


def avoid_reward(encoder: Encoder, concepts: ConceptDirections, weight: float = 1.0) -> Reward:
    """min(0, threshold − log-odds) for every category: at and below the threshold value and gradient are exactly zero.

    The log-odds are those of the worst window: a corner that shows the concept is not made good by the rest.
    """

    def hinge(category: int):
        def head(windows: Tensor) -> Tensor:
            log_odds = largest(concepts.score_of(category, windows), dim=1)
            return -(log_odds - concepts.thresholds[category]).relu()

        return head

    return Reward(
        tuple(
            Term(f"avoid: {name}", encoder, hinge(i), weight, every_window=True)
            for i, name in enumerate(concepts.names)
        )
    )
