"""Log-odds of each category in finished latents, as Safety Gate and drafts use them."""

import math

import torch
from torch import Tensor

from ...methods.concepts import ConceptDirections, largest
from ...methods.gate import extra_views
from ...models.frames import by_clip, clips_of, frames_in, pictures_of
from ...models.latent_spaces import LatentSpaceError
from .encoders import HostWindowEncoder
from .latents import image_part, raw_latents_of
from .scoring import window_features


def log_odds(
    samples, encoder: HostWindowEncoder, concepts: ConceptDirections, views: int = 0, progress: bool = True
) -> Tensor:
    """Log-odds (B, categories), the largest over frames, windows and views; NaN for an item that is not finite.

    Args, Raises: see `log_odds_of_frames`.
    """
    return largest(log_odds_of_frames(samples, encoder, concepts, views, progress), dim=1)


def log_odds_of_frames(
    samples, encoder: HostWindowEncoder, concepts: ConceptDirections, views: int = 0, progress: bool = True
) -> Tensor:
    """Log-odds (B, T, categories), the largest over windows and views; NaN for a frame that is not finite.

    Args:
        samples: raw latents (B, C, H, W), which are one frame, or (B, C, T, H, W), of the space that `encoder` reads; of several
            parts, the first.
        views: see `methods.gate.extra_views`.
        progress: show it on the node that runs.

    Raises:
        LatentSpaceError: these are no such latents.
    """
    samples = image_part(samples)
    if not isinstance(samples, Tensor) or samples.ndim not in (4, 5) or not samples.is_floating_point():
        raise LatentSpaceError("these are no image latents (batch, channels, height, width) and no clip of frames")
    pictures = pictures_of(samples.float())
    finite = pictures.isfinite().flatten(1).all(dim=1)
    pictures = torch.where(finite.view(-1, 1, 1, 1), pictures, 0.0)  # one broken item must not hide the others
    raw = raw_latents_of({"samples": clips_of(pictures, samples)}, encoder.space)
    altered = [clips_of(view, raw) for view in extra_views(pictures, views)] if views > 0 else []
    scores = torch.stack([concepts.worst(window_features(encoder, view, progress)) for view in [raw, *altered]])
    scores = torch.where(finite.cpu()[:, None], largest(scores, dim=0), math.nan)
    return by_clip(scores, frames_in(raw.shape))
