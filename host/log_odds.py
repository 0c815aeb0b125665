"""How much finished latents show of each category: what the gate judges by, and those who look ahead with it."""

import math

import torch
from torch import Tensor

from ..methods.concepts import ConceptDirections, largest
from ..methods.gate import extra_views
from ..models.latent_spaces import LatentSpaceError
from .encoders import HostWatcher
from .latents import raw_latents_of
from .scoring import encode_windows


def log_odds(
    samples, watcher: HostWatcher, concepts: ConceptDirections, views: int = 0, progress: bool = True
) -> Tensor:
    """Log-odds (B, categories), the largest over windows and views; NaN for an item that is not finite.

    Args:
        samples: raw latents (B, C, H, W), of the space that `watcher` reads.
        views: see `methods.gate.extra_views`.
        progress: show it on the node that runs.

    Raises:
        LatentSpaceError: these are no such latents.
    """
    if not isinstance(samples, Tensor) or samples.ndim != 4 or not samples.is_floating_point():
        raise LatentSpaceError("these are no image latents (batch, channels, height, width)")
    finite = samples.float().isfinite().flatten(1).all(dim=1)
    raw = torch.where(finite.view(-1, 1, 1, 1), samples.float(), 0.0)  # one broken item must not hide the others
    raw = raw_latents_of({"samples": raw}, watcher.space)
    all_views = [raw, *extra_views(raw, views)] if views > 0 else [raw]
    scores = torch.stack([concepts.worst(encode_windows(watcher, view, progress)) for view in all_views])
    return torch.where(finite.cpu()[:, None], largest(scores, dim=0), math.nan)
