"""Latents in which Safety Guidance saw something, recognised where a later sampling starts from them.

A sampling is often split: over two samplers or two models, over a small and a large latent, over an image and its variation. What was
seen in the first part holds for the second. The rule: a latent is known if it is one of these, number for number, or if it correlates
with one of them as closely as copies of one image do, also when the host has resized it. What is known counts for guidance with the
same categories, thresholds and Latent-CLIP only, wherever it stands. Images in which nothing was seen are never kept.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.utils
import torch
from torch import Tensor

from ..methods.concepts import ConceptDirections
from .looks import digests

MOST = 1024  # latents; older ones are forgotten
MOST_BYTES = 128_000_000
ALIKE = 0.93  # correlation of copies: decoded and encoded again it is 0.94 and more on the demo world, of other images at most 0.91
ROUGHLY = 0.6  # of thumbnails, below which nobody compares closer
THUMBNAIL = 16  # cells along the longer side
RESIZERS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")  # of the host's Upscale Latent
NEW = 0.1  # share of the schedule within which a sampling with noise of its own makes another image


def fingerprint(*concepts: ConceptDirections) -> bytes:
    """Whose verdicts are the same: the categories, thresholds and texts of one CLIP."""
    digest = hashlib.sha256()
    for one in concepts:
        digest.update(repr((one.names, one.thresholds, one.logit_scale)).encode())
        for texts in (*one.phrases, one.anchors):
            digest.update(repr(tuple(texts.shape)).encode() + texts.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def starts_from(guider, noise: Tensor, sigmas: Tensor) -> bool:
    """Whether a sampling goes on from its latent: without noise of its own, or with less than hides what was there."""
    first = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma(NEW)
    return not bool(noise.any()) or float(sigmas[0]) <= float(first)


class LastPrediction:
    """A sampler's callback that keeps the newest prediction of the clean latent, which the host hands on as `denoised_output`."""

    def __init__(self, callback):
        self.callback, self.x0 = callback, None

    def __call__(self, step: int, x0: Tensor, x: Tensor, total: int) -> None:
        self.x0 = x0
        if self.callback is not None:
            self.callback(step, x0, x, total)

    def raw(self, guider, sigmas: Tensor) -> Tensor | None:
        """In raw latents; None where it is the image itself."""
        if self.x0 is None or float(sigmas[-1]) == 0:
            return None
        return guider.model_patcher.model.process_latent_out(self.x0.detach().cpu())


@dataclass(frozen=True)
class _Known:
    """A latent (C, H, W) or (C, T, H, W), and what was found in it."""

    latent: Tensor
    found: object

    @property
    def bytes(self) -> int:
        return self.latent.numel() * self.latent.element_size()


class KnownLatents:
    """Latents with what was found in each, the newest last."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, bytes], _Known] = OrderedDict()

    def remember(self, whose: bytes, samples: Tensor, found: Sequence) -> None:
        """Keep what was found in raw latents (B, C, H, W) or (B, C, T, H, W); None is nothing, also if it was something before."""
        for item, one in zip(samples, found, strict=True):
            keys = [(whose, digest) for digest in digests(item)]
            for key in keys:
                self._known.pop(key, None)
            if one is not None:
                kept = _Known(item.detach().to("cpu", torch.bfloat16, copy=True), one)
                self._known |= dict.fromkeys(keys, kept)
        while len(self._known) > MOST or self._bytes() > MOST_BYTES:
            self._known.popitem(last=False)

    def of(self, whose: bytes, samples: Tensor) -> list:
        """What was found in each of these latents, or in the one that it is a copy of; None where nothing was."""
        if samples.ndim not in (4, 5) or not any(key[0] == whose for key in self._known):
            return [None] * len(samples)
        return [self._of_one(whose, item.detach().cpu()) for item in samples]

    def _of_one(self, whose: bytes, item: Tensor):
        for digest in digests(item):
            if (whose, digest) in self._known:
                return self._known[whose, digest].found
        if not bool(item.any()):
            return None
        kept = {id(known): known for key, known in self._known.items() if key[0] == whose}
        likeness = [(alike(known.latent, item), known.found) for known in kept.values()]
        best, found = max(likeness, key=lambda pair: pair[0], default=(0.0, None))
        return found if best >= ALIKE else None

    def _bytes(self) -> int:
        return sum({id(known): known.bytes for known in self._known.values()}.values())


def alike(known: Tensor, item: Tensor) -> float:
    """How closely a latent (C, H, W) or (C, T, H, W) follows a known one: their correlation, of the resizes the closest."""
    known, item = known.float(), item.float()
    if known.shape[:-2] != item.shape[:-2]:
        return 0.0
    if known.shape == item.shape:
        return _correlation(known, item)
    height, width = item.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    small = max(1, round(width * scale)), max(1, round(height * scale))
    best = 0.0
    for crop in ("disabled", "center"):
        if _correlation(_resized(known, *small, "area", crop), _resized(item, *small, "area", "disabled")) >= ROUGHLY:
            best = max(best, *(_correlation(_resized(known, width, height, method, crop), item) for method in RESIZERS))
    return best


def _resized(latent: Tensor, width: int, height: int, method: str, crop: str) -> Tensor:
    return comfy.utils.common_upscale(latent[None], width, height, method, crop)[0]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Of what differs from place to place within each channel; 0 where nothing does, or where it is not finite."""
    a, b = (x - x.mean(dim=(-2, -1), keepdim=True) for x in (a, b))
    value = float((a * b).sum() / (a.norm() * b.norm()))
    return value if value == value else 0.0


KNOWN = KnownLatents()
