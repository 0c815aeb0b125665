"""Gradient push of Safety Guidance without a fallback prompt. Deprecated: it changes the encoder's verdict and hardly the image."""

import logging

from ...methods.guidance import AvoidConcepts, GuidanceSettings
from ..sampling.guide import Climb
from ..sampling.steering import SAFETY, Window, steered
from .carried import SafetySteering

LOGGER = logging.getLogger(__name__)


def push_model(patcher, objective: AvoidConcepts, settings: GuidanceSettings, window: Window):
    """Return a copy of a MODEL whose flagged images are pushed away from their categories by a gradient.

    Deprecated: kept for saved workflows without `instead`.

    Raises:
        LatentSpaceError: the model makes latents that the objective cannot read.
    """
    LOGGER.warning(
        "%s: got no prompt in `instead`, so flagged images are pushed by a gradient. This way is deprecated, because most of what it "
        "changes still shows the category. Connect a CLIP Text Encode with a harmless prompt to `instead`.",
        SAFETY,
    )
    return steered(patcher, PushAway(objective, settings, window))


class PushAway(SafetySteering, Climb):
    """Steering of flagged images down the scores of their categories; those flagged in an earlier sampling stay flagged."""

    rank = 1

    def __init__(self, objective: AvoidConcepts, settings: GuidanceSettings, window: Window):
        super().__init__(objective, settings, window)
        self.monitor = objective.monitor
