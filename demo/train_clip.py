"""Train a Latent-CLIP and a pixel CLIP of the same size, on the same scenes and captions, for equal steps.

Both have 64 patches (one latent cell, or 8×8 px), the same transformer and the same text tower. The loss is CLIP's
symmetric cross entropy, where captions that are also true of another picture of the batch are left out, plus a term
of its own for hard negatives: each picture must prefer its caption to three near misses of it. Relations come last to a
CLIP, so later stages show more of them, and reverse them more often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from ..models.latent_clip import LatentCLIP
from .captions import COLOURS, KINDS, Caption, Thing
from .corpus import CONTEXT, Corpus, pick_caption, tokenize
from .scenes import Scene, render
from .training import Draw, Recipe, fit

_VISION = {"image_size": 64, "layers": 4, "width": 128, "head_width": 32}
_TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 3}
LATENT_CONFIG = {
    "embed_dim": 96, "vision_cfg": {**_VISION, "patch_size": 1, "latent_factor": 8, "latent_n_channels": 4}, "text_cfg": _TEXT,
}  # fmt: skip
PIXEL_CONFIG = {"embed_dim": 96, "vision_cfg": {**_VISION, "patch_size": 8}, "text_cfg": _TEXT}

BATCH = 96


@dataclass(frozen=True)
class Stage:
    """Steps and mixture: share of "and" among captions of two things; odds of reversed to swapped relations among misses; share of scenes of one thing."""

    suffix: str
    steps: int
    lr: float
    seed: int
    and_share: float
    reversals: int
    swaps: int = 1
    single: float = 0.25

    @property
    def swap_share(self) -> float:
        """Share of pairs whose third near miss swaps colours; the others' reverses a relation."""
        return self.and_share + (1 - self.and_share) * self.swaps / (self.swaps + self.reversals)


STAGES = (
    Stage("", 700, 1.5e-3, seed=6, and_share=0.5, reversals=1),
    Stage("_relations", 300, 1.0e-3, seed=7, and_share=0.2, reversals=2),
    Stage("_reversals", 500, 1.0e-3, seed=10, and_share=0.15, reversals=6, single=0.35),
)

LATENT_NOISE, PIXEL_NOISE = 1.0, 0.05  # largest std of the augmentation: raw latents have std 7.7, pixels span 1


def near_misses(rng: random.Random, caption: Caption, reversals: int, swaps: int) -> list[Caption]:
    """Three false captions that differ little: a wrong colour, a wrong kind, and a swap, a reversal or another wrong colour.

    The odds of a relation to be reversed rather than swapped are `reversals` to `swaps`.
    """

    def altered(colour: bool) -> Caption:
        things, at = list(caption.things), rng.randrange(len(caption.things))
        old = things[at]
        if colour:
            things[at] = Thing(rng.choice([c for c in COLOURS if c != old.colour]), old.kind)
        else:
            things[at] = Thing(old.colour, rng.choice([k for k in KINDS if k != old.kind]))
        return Caption(tuple(things), caption.relation)

    relation = rng.choice([caption.swapped] * swaps + [caption.reversed] * reversals)
    third = {"single": lambda: altered(True), "and": caption.swapped, "relation": relation}
    return [altered(True), altered(False), third[caption.category]()]


def true_captions(scene: Scene) -> set[str]:
    """Every caption that is true of a scene, as text."""
    return {str(caption) for group in scene.captions().values() for caption in group}


def contrastive_loss(
    image: Tensor, text: Tensor, near: Tensor, also_true: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """CLIP's loss and the hard-negative loss.

    Args:
        image, text: unit features (B, D). near: unit features of false captions (B, 3, D).
        also_true: (B, B) boolean, whether caption j is true of picture i; the diagonal is.
        scale: exp of the log temperature.
    """
    logits = scale * image @ text.T
    target = torch.arange(len(image))
    others = also_true & ~torch.eye(len(image), dtype=torch.bool)
    logits = logits.masked_fill(others, -torch.inf)
    symmetric = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    candidates = torch.cat([text[:, None], near], 1)
    hard = nn.functional.cross_entropy(scale * (candidates @ image[:, :, None])[..., 0], torch.zeros_like(target))
    return symmetric, hard


def train_clip(
    name: str, model: nn.Module, corpus: Corpus, images: Callable[[Draw, Tensor], Tensor],
    stages: Sequence[Stage] = STAGES, after: Callable[[int], None] | None = None,
) -> nn.Module:  # fmt: skip
    """Train either CLIP.

    Args:
        images: what its image tower reads for rows of the corpus.
        after: called after each step with the number of steps of the stage made.
    """
    truths = [true_captions(scene) for scene in corpus.scenes]

    def loss_of(draw: Draw, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        rows = corpus.rows(draw.python, BATCH, stage.single)
        captions = [
            pick_caption(draw.python, corpus.scenes[row], stage.and_share, reading_order=False) for row in rows.tolist()
        ]
        misses = [
            miss for caption in captions for miss in near_misses(draw.python, caption, stage.reversals, stage.swaps)
        ]
        texts = [str(caption) for caption in captions]
        also_true = torch.tensor([[text in truths[row] for text in texts] for row in rows.tolist()])
        features = model.encode_text(tokenize(texts + [str(miss) for miss in misses]), normalize=True)
        image = model.encode_image(images(draw, rows), normalize=True)
        near = features[BATCH:].unflatten(0, (BATCH, 3))
        symmetric, hard = contrastive_loss(
            image, features[:BATCH], near, also_true, model.logit_scale.exp().clamp(max=100)
        )
        return symmetric + hard, {"contrastive": symmetric.item(), "hard": hard.item()}

    for stage in stages:
        recipe = Recipe(name + stage.suffix, stage.steps, stage.lr, seed=stage.seed, warmup=100, weight_decay=0.05)
        fit(model, recipe, partial(loss_of, stage=stage), after)
    return model


def new_latent_clip(seed: int, config: dict = LATENT_CONFIG) -> LatentCLIP:
    """Untrained, for raw latents of std 7.7: it starts as if they had 1."""
    torch.manual_seed(seed)
    model = LatentCLIP(config)
    with torch.no_grad():
        model.visual.conv1.weight.mul_(0.13025)
    return model


def with_noise(draw: Draw, images: Tensor, largest: float) -> Tensor:
    """Images with noise on them, of a std for each that is drawn up to the largest."""
    return images + draw.normal(*images.shape) * draw.uniform(len(images), 1, 1, 1) * largest


def train_latent_clip(corpus: Corpus) -> nn.Module:
    """Reads raw latents with a little noise, as a generator's latents have."""

    def images(draw: Draw, rows: Tensor) -> Tensor:
        return with_noise(draw, corpus.latents[rows], LATENT_NOISE)

    return train_clip("latent_clip", new_latent_clip(6), corpus, images)


def new_pixel_clip(seed: int) -> CustomTextCLIP:
    """Untrained."""
    torch.manual_seed(seed)
    return CustomTextCLIP(**PIXEL_CONFIG)


def normalised(pixels: Tensor) -> Tensor:
    """Pictures (N, 3, 64, 64) in 0..1 as open_clip's towers read them."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (pixels - mean) / std


def train_pixel_clip(corpus: Corpus) -> nn.Module:
    """Reads rendered pixels, normalised as open_clip does, with a little noise."""

    def images(draw: Draw, rows: Tensor) -> Tensor:
        return normalised(with_noise(draw, render([corpus.scenes[row] for row in rows.tolist()]), PIXEL_NOISE))

    return train_clip("pixel_clip", new_pixel_clip(6), corpus, images)
