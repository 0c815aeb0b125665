"""A second VAE for Shapes World, with 16 channels and its own normalisation, and a Latent-CLIP distilled for it from pictures alone.

The teacher is the shipped pixel CLIP, whose text tower is kept. The way is a user's own: shards by training/embed.py, then
training/run.py. What it is measured against is what costs nothing: the new latents mapped to the old space in closed form, and
the shipped Latent-CLIP on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.corpus import sample_corpus
from ..demo.scenes import Scene, render, sample_crowd
from ..demo.train_vae import BATCH, picture_loss, sample_mixed
from ..demo.training import CACHE, Draw, Recipe, fit, initialise
from ..host.shapes_world import build_vae
from ..models.checkpoint import read_checkpoint
from ..models.latent_clip import load_latent_clip
from ..models.latent_spaces import LatentSpace
from ..models.own_spaces import space_as_dict
from ..models.pixel_clip import PixelCLIP
from ..training.embed import Prepared, Settings, Tools, begin, embed_batch
from ..training.run import SHAPES_WORLD, Options, train
from ..training.shards import Dataset, write_shard
from ..training.sources import Row
from ..training.teachers import PixelTeacher

CHANNELS, NOISE = 16, 0.2
CROWDS = Recipe("vae16_crowds", steps=600, lr=2e-3, seed=21)
SCENES = Recipe("vae16_scenes", steps=300, lr=1.2e-3, seed=22)
FOLDER_OF = CACHE / "training_study"
PICTURES, HELD_OUT, STEPS = 10_000, 500, 450
SPACE = LatentSpace("shapes-world-16", CHANNELS, 8, 1.0, 0.0, "the second VAE of the study")


def mean_of(vae: nn.Module, images: Tensor) -> Tensor:
    """The posterior's mean: (B, 16, 8, 8) for images (B, 3, 64, 64) in [-1, 1]."""
    return vae.quant_conv(vae.encoder(images))[:, :CHANNELS]


@torch.enable_grad()
def second_vae() -> nn.Module:
    """Train or resume it; its latents stay as training left them: every channel with a mean and a spread of its own."""
    vae = build_vae(CHANNELS)
    initialise(vae, seed=21, zero=("conv2", "proj_out"))

    def autoencode(draw: Draw, scenes: list[Scene]) -> tuple[Tensor, dict[str, float]]:
        images = render(scenes) * 2 - 1
        mean = mean_of(vae, images)
        loss = picture_loss(vae.decode(mean + NOISE * draw.normal(*mean.shape)), images)
        return loss + 1e-3 * mean.square().mean(), {"picture": loss.item(), "std": mean.std().item()}

    fit(vae, CROWDS, lambda draw: autoencode(draw, [sample_crowd(draw.python) for _ in range(BATCH)]))
    fit(vae, SCENES, lambda draw: autoencode(draw, sample_mixed(draw.python, BATCH)))
    return vae.requires_grad_(False)


@torch.no_grad()
def encode(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Raw latents of pictures (N, 3, 64, 64) in 0..1."""
    return torch.cat([mean_of(vae, part * 2 - 1) for part in pictures.split(100)])


def make_shards(vae: nn.Module, name: str, count: int, teacher: PixelCLIP) -> Path:
    """Shards of rendered scenes in the second VAE's latents; see `embed_scenes`."""
    return embed_scenes(name, count, lambda pictures: encode(vae, pictures), SPACE, "second VAE", teacher)


@torch.no_grad()
def embed_scenes(
    name: str, count: int, encode: Callable[[Tensor], Tensor], space: LatentSpace, vae: str, teacher: PixelCLIP
) -> Path:
    """Shards of rendered scenes without captions, with the teacher's features; a stopped run goes on.

    Args:
        name: of the folder, and the seed of the scenes. encode: pictures (N, 3, 64, 64) in 0..1 → raw latents of `space`.
    """
    folder, settings = FOLDER_OF / name, Settings(64, batch=100, shard=1000, patch_grid=8)
    rows, scenes = [Row(f"{n:06}", "") for n in range(count)], sample_corpus(f"distil {name}", count)
    header = Dataset(
        space_as_dict(space), {"name": vae, "sha256": ""}, {"names": ["centre"], "side": 64},
        {"name": "Shapes World pixel CLIP"}, "Shapes World",
    )  # fmt: skip
    left, _ = begin(rows, folder, header)
    tutor, samples = PixelTeacher(teacher), []

    def encoder(pixels: Tensor) -> dict[str, Tensor]:
        return {"latent": encode(pixels.movedim(-1, 1))}

    for start in range(0, len(left), settings.batch):
        part = left[start : start + settings.batch]
        pixels = render([scenes[int(row.id)] for row in part]).movedim(1, -1)
        batch = [Prepared(row, picture[None], {}) for row, picture in zip(part, pixels)]
        samples += embed_batch(batch, Tools(encoder, tutor), settings, patches=start < settings.shard)
        if len(samples) >= settings.shard or start + settings.batch >= len(left):
            write_shard(folder, samples)
            samples = []
    return folder


@torch.enable_grad()
def distil(
    train_data: Path, held_out: Path, name: str = "distilled", teacher: str = SHAPES_WORLD
) -> tuple[Path, float]:
    """Train the tower from its teacher's file; the file and the processor seconds that it took."""
    options = Options(
        train_data, FOLDER_OF / f"{name}.safetensors", FOLDER_OF / name, val_data=held_out, start=teacher, patch_size=1,
        distil=1.0, batch_size=96, train_num_samples=96 * STEPS, patch_samples=96 * 100, lr=1e-3, wd=0.05, warmup=50, ema=0.995,
        precision="fp32", workers=0, shuffle=2000, save_every=250, probe_every=250,
    )  # fmt: skip
    began = time.process_time()
    return train(options), time.process_time() - began


# --------------------------------------------------------------------------------------------------------- measured


@torch.no_grad()
def old_space_map(vae: nn.Module, world, count: int = 1000) -> Callable[[Tensor], Tensor]:
    """Least squares from a 3×3 neighbourhood of new latents to an old one: new (N, 16, 8, 8) → old (N, 4, 8, 8)."""
    pictures = render(sample_corpus("map to the old space", count))
    old, new = world.encode(pictures), encode(vae, pictures)

    def read(latents: Tensor) -> Tensor:
        return F.pad(F.unfold(latents, 3, padding=1).movedim(1, 2), (0, 1), value=1.0)

    solution = torch.linalg.lstsq(read(new).flatten(0, 1), old.flatten(2).movedim(1, 2).flatten(0, 1)).solution
    return lambda latents: (read(latents) @ solution).movedim(1, 2).unflatten(-1, (8, 8))


Pair = tuple[Callable, Callable]  # texts → features, pictures → features


def towers(vae: nn.Module, world, path: Path, teacher: Pair | None = None) -> dict[str, Pair]:
    """By name: the distilled tower, its teacher (default: the shipped pixel CLIP), and the closed-form way."""
    teacher = teacher or (world.pixel_clip.text.encode, world.pixel_features)
    checkpoint = read_checkpoint(path)
    tower, to_old = load_latent_clip(checkpoint.config, checkpoint.state_dict).visual, old_space_map(vae, world)

    def distilled(pictures: Tensor) -> Tensor:
        return F.normalize(tower(encode(vae, pictures)), dim=-1)

    return {
        "distilled": (teacher[0], distilled),
        "teacher": teacher,
        "closed form": (world.latent_clip.encode_text, lambda p: world.latent_features(to_old(encode(vae, p)))),
    }
