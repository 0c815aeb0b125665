"""Figures of a VAE and its Latent-CLIP, before and after they are trained together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.latent_clip import LatentCLIP
from .picture_batches import Shown
from .probe import probe
from .regularisers import distance, kl_to_normal, psnr
from .shards import Sample, stack_views

FIGURES = 256  # pictures that figures are measured on


class PictureSource(Protocol):
    """Pictures that give the same batch for the same step: `picture_batches.PictureBatches`, or another class."""

    def batch(self, step: int) -> Shown: ...

    def some(self, count: int) -> Iterator[Shown]: ...


class FeatureTeacher(Protocol):
    """A pixel CLIP, see `teachers.PixelTeacher`."""

    def features(self, pixels: Tensor) -> Tensor: ...


@torch.no_grad()
def raw_latents_of(vae: nn.Module, pictures: PictureSource, count: int) -> Tensor:
    """Return raw latents (N, C, h, w) of `count` pictures, on the CPU."""
    device = next(vae.parameters()).device
    return torch.cat([vae.encode(shown.pixels.to(device))["raw"].float().cpu() for shown in pictures.some(count)])


@dataclass
class Figures:
    """Figures by name, and the latents (N, C, h, w) that they were measured on."""

    values: dict[str, float]
    latents: Tensor


@torch.no_grad()
def measure(
    vae: nn.Module, model: LatentCLIP, pictures: PictureSource, teacher: FeatureTeacher | None, context: int, variance: Tensor,
    old: Tensor | None = None,
) -> Figures:  # fmt: skip
    """Measure the round trip, the posterior, the distance to the `old` latents, and the Latent-CLIP's figures."""
    device = next(vae.parameters()).device
    numbers: list[Tensor] = []
    samples: list[Sample] = []
    for shown in pictures.some(FIGURES):
        pixels = shown.pixels.to(device)
        encoded = vae.encode(pixels)
        decoded = vae.decode(encoded["raw"]).clamp(0, 1)
        kl = [kl_to_normal(mean, log_variance) for mean, log_variance in zip(encoded["mean"], encoded["log_variance"])]
        l1 = (decoded - pixels).abs().flatten(1).mean(1)
        numbers.append(torch.stack([l1, psnr(decoded, pixels), torch.stack(kl)]).float().cpu())
        agreed = None if teacher is None else F.normalize(teacher.features(pixels).float().cpu(), dim=-1)
        for number, (raw, captions) in enumerate(zip(encoded["raw"].float().cpu(), shown.captions)):
            taught = {} if agreed is None else {"features": agreed[number, None]}
            samples.append(Sample(str(len(samples)), {"latent": raw[None]}, captions, {}, taught))
    latents, means = stack_views(samples), torch.cat(numbers, 1).mean(1).tolist()
    values = dict(zip(("reconstruction l1", "reconstruction PSNR", "kl"), means))
    values["distance"] = distance(latents, latents if old is None else old, variance.cpu()).item()
    return Figures(values | probe(model, samples, context), latents)
