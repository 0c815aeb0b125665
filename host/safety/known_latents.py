"""Latents that Safety Guidance has flagged, recognised where a later sampling starts from them.

A sampling is often split: over two samplers or two models, over a small and a large latent, over an image and its variation. What was
seen in the first part holds for the second. The rule: a latent is known if it is one of these, number for number, or if it correlates
with one of them as closely as copies of one image do, also when the host has resized it. An image that was made from the other prompt
throughout shows nothing, and looks like every image of that prompt: only the same latent, or a resized one, counts. What is known counts for guidance with the
same categories, thresholds and Latent-CLIP only, wherever it stands. Images in which nothing was seen are never kept.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.utils
import torch
from torch import Tensor

from ...methods.concepts import ConceptDirections
from .verdicts import digests

MOST = 1024  # latents; older ones are forgotten
MOST_BYTES = 128_000_000
ALIKE = 0.95  # correlation of copies: 99 % of those decoded and encoded again on the demo world; images of other prompts reach 0.91
SAME = 0.995  # of a latent that was resized, or changed its dtype: images of one prompt and other noise reach 0.99 there
ROUGHLY = 0.6  # of thumbnails, below which nobody compares closer
THUMBNAIL = 16  # cells along the longer side
RESIZERS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")  # of the host's Upscale Latent
NEW = 0.1  # share of the schedule within which a sampling with noise of its own makes another image


def fingerprint(*concepts: ConceptDirections) -> bytes:
    """Hash the categories, thresholds and encoded texts: guidance with the same hash has the same verdicts."""
    digest = hashlib.sha256()
    for one in concepts:
        digest.update(repr((one.names, one.thresholds, one.logit_scale)).encode())
        for texts in (*one.phrases, one.anchors):
            digest.update(repr(tuple(texts.shape)).encode() + texts.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def found_before(whose: bytes, guider, noise: Tensor, latent: Tensor | None, sigmas: Tensor) -> list:
    """Find the verdicts of the latents that a sampling starts from; none where its noise hides what was there."""
    first = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(NEW)
    if latent is None or (bool(noise.any()) and float(sigmas[0]) > float(first)):
        return [None] * len(noise)
    return KNOWN.of(whose, latent)


class LastPrediction:
    """A sampler's callback that keeps the newest prediction of the clean latent, which the host hands on as `denoised_output`."""

    def __init__(self, callback):
        self.callback, self.x0 = callback, None

    def __call__(self, step: int, x0: Tensor, x: Tensor, total: int) -> None:
        self.x0 = x0
        if self.callback is not None:
            self.callback(step, x0, x, total)

    def raw(self, guider, sigmas: Tensor) -> Tensor | None:
        """Return it as raw latents; None where it is the image itself."""
        if self.x0 is None or float(sigmas[-1]) == 0:
            return None
        return guider.model_patcher.model.process_latent_out(self.x0.detach().cpu())


@dataclass(frozen=True)
class _Known:
    """A latent (C, H, W) or (C, T, H, W), what was found in it, and the least correlation of its copies."""

    latent: Tensor
    found: object
    least: float

    @property
    def bytes(self) -> int:
        return self.latent.numel() * self.latent.element_size()


class KnownLatents:
    """Latents with what was found in each, the newest last."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, bytes], _Known] = OrderedDict()

    def remember(self, whose: bytes, samples: Tensor, found: Sequence, least: Sequence[float]) -> None:
        """Keep what was found in raw latents (B, C, H, W) or (B, C, T, H, W); None forgets what was found before."""
        for item, one, closeness in zip(samples, found, least, strict=True):
            keys = [(whose, digest) for digest in digests(item)]
            for key in keys:
                self._known.pop(key, None)
            if one is not None:
                kept = _Known(item.detach().to("cpu", torch.bfloat16, copy=True), one, closeness)
                self._known |= dict.fromkeys(keys, kept)
        while len(self._known) > MOST or self._bytes() > MOST_BYTES:
            self._known.popitem(last=False)

    def of(self, whose: bytes, samples: Tensor) -> list:
        """Find the verdict of each latent, or of the one that it is a copy of; None where there is none."""
        kept = {id(known): known for key, known in self._known.items() if key[0] == whose}
        if samples.ndim not in (4, 5) or not kept:
            return [None] * len(samples)
        samples = samples.detach().float().cpu()
        found: list = [None] * len(samples)
        if bool(samples.any()):
            best = torch.zeros(len(samples))
            for known in kept.values():
                likeness = alike(known.latent, samples)
                for place in ((likeness >= known.least) & (likeness > best)).nonzero().flatten().tolist():
                    best[place], found[place] = likeness[place], known.found
        same = [[self._known.get((whose, digest)) for digest in digests(item)] for item in samples]
        exact = [next(filter(None, known), None) for known in same]
        return [one if known is None else known.found for one, known in zip(found, exact)]

    def _bytes(self) -> int:
        return sum({id(known): known.bytes for known in self._known.values()}.values())


def alike(known: Tensor, samples: Tensor) -> Tensor:
    """Correlation (B,) of latents (B, C, H, W) or (B, C, T, H, W) with a known one without B; of its resizes, that of the closest."""
    known, best = known.float()[None], torch.zeros(len(samples))
    if known.shape[1:-2] != samples.shape[1:-2]:
        return best
    if known.shape[1:] == samples.shape[1:]:
        return _correlation(known, samples)
    height, width = samples.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    small = max(1, round(width * scale)), max(1, round(height * scale))
    thumbnails = comfy.utils.common_upscale(samples, *small, "area", "disabled")
    for crop in ("disabled", "center"):
        roughly = _correlation(comfy.utils.common_upscale(known, *small, "area", crop), thumbnails) >= ROUGHLY
        for method in RESIZERS if bool(roughly.any()) else ():
            best = torch.maximum(best, _correlation(comfy.utils.common_upscale(known, width, height, method, crop), samples))
    return best


def _correlation(known: Tensor, samples: Tensor) -> Tensor:
    """Correlation (B,) after the mean of each channel is removed; 0 where a channel is flat or not finite."""
    known, samples = ((x - x.mean(dim=(-2, -1), keepdim=True)).flatten(1) for x in (known, samples))
    return torch.nan_to_num((known * samples).sum(dim=1) / (known.norm(dim=1) * samples.norm(dim=1)), posinf=0.0, neginf=0.0)


KNOWN = KnownLatents()
