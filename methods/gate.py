"""Safety verdicts: which images are flagged and why, and the altered copies and covers that Safety Gate uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.resample import area_average
from .concepts import largest

BLUR_CELLS = 32  # latent cells per cell of the blurred latent: 1024 px keep 4×4 colours, which show no content
VIEW_NOISE = 0.15  # standard deviation of the noise of a perturbed copy, as a share of the item's own


@dataclass(frozen=True)
class Flags:
    """Decide which images are flagged, and say why: the only place of the pack that does.

    An image is flagged for a category unless its score is a finite number below the finite threshold: NaN and infinity are flagged too.

    Attributes:
        scores: log-odds (B, categories).
        names, thresholds: one per category. Where their number differs from that of the scores, or is 0, every image is flagged.
    """

    scores: Tensor
    names: Sequence[str]
    thresholds: Sequence[float]

    @cached_property
    def categories(self) -> Tensor:
        """Flagged categories of each image: bool (B, categories), on the CPU."""
        if not self._comparable:
            return torch.ones(len(self.scores), max(1, len(self.names)), dtype=torch.bool)
        scores, thresholds = self.scores.detach().cpu().double(), torch.tensor(self.thresholds, dtype=torch.float64)
        return ~(scores.isfinite() & thresholds.isfinite() & (scores < thresholds))

    @cached_property
    def reasons(self) -> list[str]:
        """Reason for each flagged image, the worst category first; "" for the others."""
        if not self._comparable:
            return ["there is nothing to judge by"] * len(self.scores)
        return [self._reason(*image) for image in zip(self.scores.tolist(), self.categories.tolist(), strict=True)]

    @property
    def _comparable(self) -> bool:
        categories = self.scores.shape[1] if self.scores.ndim == 2 else 0
        return 0 < len(self.names) == len(self.thresholds) == categories

    def _reason(self, scores: list[float], flagged: list[bool]) -> str:
        over = []
        for score, name, threshold in compress(zip(scores, self.names, self.thresholds), flagged):
            if not (math.isfinite(score) and math.isfinite(threshold)):
                return f"{name} could not be judged: log-odds {score}, threshold {threshold}"
            over.append((score - threshold, f"{name}: log-odds {score:.2f}, threshold {threshold:.2f}"))
        return "; ".join(text for _, text in sorted(over, reverse=True))


def reasons_to_block_clips(scores: Tensor, names: Sequence[str], thresholds: Sequence[float]) -> tuple[list[str], list[int]]:
    """Decide which clips are blocked: those with a flagged frame.

    Args:
        scores: log-odds (B, T, categories); an image is a clip of one frame.

    Returns:
        (reason of each clip, "" for those that pass; number of frames before the first flagged one).
    """
    reasons, clean = [], []
    for clip in scores:
        blocked = [place for place, reason in enumerate(Flags(clip, names, thresholds).reasons) if reason]
        (worst,) = Flags(largest(clip, dim=0)[None], names, thresholds).reasons
        where = f" (in {len(blocked)} of {len(clip)} frames, from frame {blocked[0] + 1} on)" if blocked and len(clip) > 1 else ""
        reasons.append(worst + where)
        clean.append(blocked[0] if blocked else len(clip))
    return reasons, clean


def extra_views(raw_latents: Tensor, count: int) -> Tensor:
    """Perturbed copies of latents, with a little seeded noise and shifted by a cell: (count, B, C, H, W).

    They stop most latents that were made to fool the encoder, and innocent ones with them (docs/safety-study.md).
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
    """Blur latents (B, C, H, W) until only the coarsest colours are left."""
    height, width = raw_latents.shape[-2:]
    coarse = area_average(raw_latents, max(1, height // BLUR_CELLS), max(1, width // BLUR_CELLS))
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
