"""The verdict of a safety gate: an item passes only if every number says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.resample import area_average
from .concepts import largest

BLUR_CELLS = 32  # latent cells per cell of the blurred latent: 1024 px keep 4×4 colours, which show no content
VIEW_NOISE = 0.15  # standard deviation of the noise of an extra view, as a share of the item's own


def reasons_to_block(scores: Tensor, names: Sequence[str], thresholds: Sequence[float]) -> list[str]:
    """Why each item is blocked; an empty text for those that pass.

    Args:
        scores: log-odds (B, categories).
    """
    if not names or scores.ndim != 2 or scores.shape[1] != len(names) or len(thresholds) != len(names):
        return ["there is nothing to judge by"] * len(scores)
    return [_reason(row, names, thresholds) for row in scores.tolist()]


def reasons_to_block_clips(scores: Tensor, names: Sequence[str], thresholds: Sequence[float]) -> tuple[list[str], list[int]]:
    """Why each clip is blocked, which is when any of its frames is, and how many frames before the first such frame are clean.

    Args:
        scores: log-odds (B, T, categories); an image is a clip of one frame.

    Returns:
        (reasons, "" for those that pass; clean frames at the start of each).
    """
    reasons, clean = [], []
    for clip in scores:
        blocked = [place for place, reason in enumerate(reasons_to_block(clip, names, thresholds)) if reason]
        (worst,) = reasons_to_block(largest(clip, dim=0)[None], names, thresholds)
        where = f" (in {len(blocked)} of {len(clip)} frames, from frame {blocked[0] + 1} on)" if blocked and len(clip) > 1 else ""
        reasons.append(worst + where)
        clean.append(blocked[0] if blocked else len(clip))
    return reasons, clean


def _reason(row: list[float], names: Sequence[str], thresholds: Sequence[float]) -> str:
    over = []
    for score, name, threshold in zip(row, names, thresholds):
        if not (math.isfinite(score) and math.isfinite(threshold)):
            return f"{name} could not be judged: log-odds {score}, threshold {threshold}"
        if not score < threshold:
            over.append((score - threshold, f"{name}: log-odds {score:.2f}, threshold {threshold:.2f}"))
    return "; ".join(text for _, text in sorted(over, reverse=True))


def extra_views(raw_latents: Tensor, count: int) -> Tensor:
    """The same latents with a little seeded noise, and shifted by a cell: (count, B, C, H, W).

    They stop most latents that were made to fool the judge, and innocent ones with them (docs/safety-study.md).
    """
    generator = torch.Generator().manual_seed(0)
    spread = raw_latents.flatten(1).std(dim=1).view(-1, 1, 1, 1)
    views = []
    for index in range(count):
        down, right = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))[index % 5]
        padded = F.pad(raw_latents, (1, 1, 1, 1), mode="replicate")
        height, width = raw_latents.shape[-2:]
        moved = padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        noise = torch.randn(raw_latents.shape, generator=generator).to(raw_latents)
        views.append(moved + VIEW_NOISE * spread * noise)
    return torch.stack(views)


def blurred(raw_latents: Tensor) -> Tensor:
    """Latents of which only the coarsest colours are left: (B, C, H, W) of the same shape."""
    height, width = raw_latents.shape[-2:]
    coarse = area_average(raw_latents, max(1, height // BLUR_CELLS), max(1, width // BLUR_CELLS))
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
