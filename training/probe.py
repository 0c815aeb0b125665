"""Figures of a tower on held-out samples: naming captions, and agreement with the teacher."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.latent_clip import LatentCLIP
from ..models.tokenizer import CLIPTokenizer, encode_texts
from .shards import Sample, stack_views

LOGGER = logging.getLogger(__name__)
CHUNK = 256


@torch.no_grad()
def image_features(model: LatentCLIP, latents: Tensor) -> Tensor:
    """Unit features (N, D) on the CPU of raw latents (N, C, grid, grid)."""
    device = model.logit_scale.device
    return torch.cat(
        [F.normalize(model.visual(part.to(device)).float(), dim=-1).cpu() for part in latents.split(CHUNK)]
    )


@torch.no_grad()
def text_features(model: LatentCLIP, texts: list[str], context: int) -> Tensor:
    """Unit features (N, D) on the CPU."""
    return encode_texts(model.text, CLIPTokenizer(context), texts)


def probe(model: LatentCLIP, samples: list[Sample], context: int) -> dict[str, float]:
    """Figures on held-out samples.

    Returns:
        top1, top5: share whose caption is the nearest, or among the five nearest, of all distinct captions of the samples; where
        they have captions. teacher: mean cosine to the teacher's features; where all have some of the tower's width.
    """
    training = model.training
    model.train(False)
    images = image_features(model, stack_views(samples))
    model.train(training)
    found: dict[str, float] = {}
    if all(sample.captions for sample in samples):
        names = sorted({caption for sample in samples for caption in sample.captions})
        nearest = (images @ text_features(model, names, context).T).topk(min(5, len(names)), dim=-1).indices.tolist()
        right = [[names[i] in sample.captions for i in row] for row, sample in zip(nearest, samples)]
        found["top1"] = sum(row[0] for row in right) / len(right)
        found["top5"] = sum(any(row) for row in right) / len(right)
    if all("features" in sample.teacher for sample in samples):
        features = [sample.teacher["features"][0].float() for sample in samples]
        if any(len(one) != images.shape[-1] for one in features):
            LOGGER.warning("The samples have features of another teacher, of %d numbers: no agreement is measured.", len(features[0]))
            return found
        found["teacher"] = (images * F.normalize(torch.stack(features), dim=-1)).sum(-1).mean().item()
    return found
