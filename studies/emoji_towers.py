"""The CLIPs of the emoji study: equal towers, steps, batches, captions and views, made by the house's own loop.

A pixel CLIP is a tower whose latent space has three channels and no downscale, so that both kinds share every line but what they read.
No batch has a name twice: what two artists drew under one name would be each other's false negatives. While a tower trains it has only
those rows of the vocabulary that captions use, which makes a step a fifth quicker; the finished one has all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..demo.corpus import CONTEXT, tokenize
from ..demo.training import cached
from ..models.latent_clip import LatentCLIP, load_latent_clip
from ..training.loop import Draw, Recipe, fit
from ..training.objectives import Batch, Objectives, Task, start_temperature
from ..training.starts import channel_statistics, config_for_latents, from_clip, from_nothing, layered_groups
from .emoji_pictures import FOLDER, Drawing, caption_of

PIXEL: dict = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16, "latent_factor": 1, "latent_n_channels": 3,
    },
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 2},
}  # fmt: skip
CHANNELS = 16
LATENT = config_for_latents(PIXEL, CHANNELS, grid=8, patch_size=2, factor=8)
TEMPLATES = ("{}", "an emoji of {}", "a drawing of {}", "a small picture of {}")

BATCH, STEPS, MORE_STEPS = 128, 1000, 600
STATISTICS = 1000  # views that channel statistics and the least squares are taken from


def recipe_of(name: str) -> Recipe:
    """The recipe that all towers share, so that a step shows all of them the same views and captions."""
    return Recipe(name, STEPS, lr=1.5e-3, seed=32, warmup=100, weight_decay=0.2)


def longer(name: str) -> Recipe:
    """Steps that go on from a finished tower, with views and captions of their own."""
    return Recipe(name, MORE_STEPS, lr=1.5e-3, seed=36, warmup=50, weight_decay=0.2)


# ----------------------------------------------------------------------------------------------------- the batches


def pixels_of(views: Tensor) -> Tensor:
    """What a pixel tower reads of uint8 pictures: 0..1."""
    return views.float() / 255


def distinct_rows(draw: Draw, names: Sequence[str], count: int) -> list[int]:
    """Rows of `count` drawings with as many names, each drawing as likely as another where names allow it.

    Raises:
        ValueError: there are not as many names.
    """
    found: dict[str, int] = {}
    for row in draw.python.sample(range(len(names)), len(names)):
        found.setdefault(names[row], row)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"Got {len(found)} names for a batch of {count}, expected at least as many. Choose smaller batches.")


def draw_batch(
    draw: Draw, drawings: Sequence[Drawing], views: int, count: int = BATCH
) -> tuple[Tensor, Tensor, list[str]]:
    """Rows, views and captions of a step, the same for every tower of a recipe's seed."""
    rows = distinct_rows(draw, [drawing.name for drawing in drawings], count)
    captions = [draw.python.choice(TEMPLATES).format(caption_of(drawings[row].name)) for row in rows]
    return torch.tensor(rows), draw.rows(views, count), captions


# ------------------------------------------------------------------------------------------------------ the towers


class Seen:
    """Views of the training drawings as one kind of tower reads them.

    Args:
        stored: (N, V, C, h, w), uint8 pictures or float16 latents. batch: of a step.
    """

    def __init__(self, drawings: Sequence[Drawing], stored: Tensor, batch: int = BATCH) -> None:
        self.drawings, self.stored, self.batch = drawings, stored, batch

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        return readable(self.stored[rows, views])

    def first(self, count: int = STATISTICS) -> Tensor:
        """Some views of all sets, for statistics."""
        rows = torch.linspace(0, len(self.stored) - 1, count).long()
        return self.read(rows, torch.arange(count) % self.stored.shape[1])

    def used_ids(self) -> Tensor:
        """Ids of all captions, sorted, so that the end of the text stays the largest."""
        names = sorted({drawing.name for drawing in self.drawings})
        return tokenize([template.format(caption_of(name)) for name in names for template in TEMPLATES]).unique()


def readable(stored: Tensor) -> Tensor:
    """Stored pictures or latents as a tower reads them."""
    return pixels_of(stored) if stored.dtype == torch.uint8 else stored.float()


def train_contrastive(
    recipe: Recipe, seen: Seen, config: dict, start: LatentCLIP | None = None
) -> tuple[LatentCLIP, float]:
    """Train or resume a CLIP on pictures and captions, from nothing or from another; returns it with the processor seconds."""

    used = seen.used_ids()

    def make() -> LatentCLIP:
        small = config | {"text_cfg": config["text_cfg"] | {"vocab_size": len(used)}}
        model = from_nothing(small, *channel_statistics(seen.first()), seed=33)
        start_temperature(model, siglip=False)
        if start is not None:
            rows = {"text.token_embedding.weight": start.text.token_embedding.weight[used]}
            model.load_state_dict(start.state_dict() | rows)
        _fit(model, recipe, Objectives(contrastive=1.0), seen, used=used)
        return with_all_words(model, config, used)

    return _made(recipe.name, config, make)


def train_distilled(
    recipe: Recipe, seen: Seen, config: dict, pixels: Seen, teacher: LatentCLIP
) -> tuple[LatentCLIP, float]:
    """Train or resume a Latent-CLIP on pictures alone, from its teacher's blocks and a patch convolution by least squares."""

    def make() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):  # as it was trained
            return {"features": features_of(teacher, pixels.stored.flatten(0, 1)).half()}

    told = cached(f"emoji/{recipe.name}_teacher", make)["features"].unflatten(0, pixels.stored.shape[:2])

    def make_student() -> LatentCLIP:
        with torch.no_grad():
            patches = teacher.visual.conv1(pixels.first()).flatten(2).movedim(1, 2)
        pairs = seen.first(), patches
        model = from_clip(teacher, config, *channel_statistics(pairs[0]), seed=33, pairs=pairs)
        model.text.requires_grad_(False)
        model.logit_scale.requires_grad_(False)
        _fit(model, recipe, Objectives(distil=1.0), seen, told)
        return model

    return _made(recipe.name, config, make_student)


@torch.enable_grad()
def _fit(
    model: LatentCLIP, recipe: Recipe, objectives: Objectives, seen: Seen, told: Tensor | None = None, used: Tensor | None = None
) -> None:
    """Run the loop; `told`: the teacher's features (N, V, D); `used`: the ids of the rows of the model's vocabulary."""
    task = Task(model, objectives)

    def loss_of(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows, views, captions = draw_batch(draw, seen.drawings, seen.stored.shape[1], seen.batch)
        teacher = None if told is None else F.normalize(told[rows, views].float(), dim=-1)
        tokens = None if used is None else torch.searchsorted(used, tokenize(captions))
        batch = Batch(seen.read(rows, views), tokens, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            losses = task(batch)
        return torch.stack(list(losses.values())).sum(), {}

    trained = {key: p for key, p in task.named_parameters() if p.requires_grad}
    groups = layered_groups(trained, model.visual.transformer.layers, 1.0, recipe.weight_decay)
    fit(task, recipe, loss_of, FOLDER / f"{recipe.name}.safetensors", groups=groups)


def with_all_words(model: LatentCLIP, config: dict, used: Tensor) -> LatentCLIP:
    """A tower with a full vocabulary, of which the rows of `used` are the model's and all others zero."""
    state = model.state_dict()
    rows = state["text.token_embedding.weight"]
    table = rows.new_zeros(config["text_cfg"]["vocab_size"], rows.shape[1])
    table[used] = rows
    full = LatentCLIP(config)
    full.load_state_dict(state | {"text.token_embedding.weight": table})
    return full


def _made(name: str, config: dict, make: Callable[[], LatentCLIP]) -> tuple[LatentCLIP, float]:
    """The finished tower from its file, or made and written to it, frozen; with the processor seconds of the run that finished it."""
    path = FOLDER / f"{name}_finished.safetensors"
    if not path.exists():
        began = time.process_time()
        model = make()
        write_tower(path, model, time.process_time() - began)
    with safe_open(path, "pt") as file:
        seconds = float(file.metadata()["seconds"])
    return load_latent_clip(config, load_file(path)), seconds


def write_tower(path: Path, model: LatentCLIP, seconds: float) -> None:
    """Write a finished tower with what it took."""
    half = path.with_suffix(".part")
    tensors = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, half, {"seconds": json.dumps(seconds)})
    half.replace(path)


@torch.no_grad()
def features_of(model: LatentCLIP, stored: Tensor) -> Tensor:
    """Unit features (N, D) of stored pictures or latents (N, C, h, w)."""
    return torch.cat([F.normalize(model.visual(readable(part)), dim=-1) for part in stored.split(256)])


@torch.no_grad()
def texts_of(model: LatentCLIP, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Unit features (N, D) of names, averaged over templates."""
    captions = [template.format(caption_of(name)) for name in names for template in templates]
    features = torch.cat([F.normalize(model.text(tokenize(captions[i : i + 512])), dim=-1) for i in range(0, len(captions), 512)])
    return F.normalize(features.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)
