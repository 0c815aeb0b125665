"""The VAE of the emoji study trained on together with its Latent-CLIP, beside the same steps with the VAE as it is."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..host.shapes_world import build_vae
from ..host.trainable_vae import TrainableVAE
from ..models.checkpoint import read_checkpoint
from ..models.latent_clip import LatentCLIP, load_latent_clip
from ..models.latent_spaces import LatentSpace
from ..models.own_spaces import space_as_dict
from ..training.finetune_vae import Options, Start, finetune
from ..training.leash import Leash
from ..training.loop import Draw
from ..training.picture_batches import Shown
from ..training.shards import Dataset
from .emoji_pictures import FOLDER, TRAINING, Drawing
from .emoji_towers import LATENT, draw_batch, pixels_of
from .second_vae import CHANNELS

BATCH, STEPS, LR, VAE_LR = 64, 120, 3e-4, 1e-4
LEASH = Leash(l1=1.0, distance=0.1)
SPACE = LatentSpace("emoji-16", CHANNELS, 8, 1.0, 0.0, "the VAE of the emoji study")


class Views:
    """The study's views as `finetune` asks for them; see its `Source`."""

    def __init__(self, drawings: Sequence[Drawing], pictures: Tensor) -> None:
        self.drawings, self.pictures = drawings, pictures

    def batch(self, step: int) -> Shown:
        rows, views, captions = draw_batch(Draw.of(34, step), self.drawings, self.pictures.shape[1], BATCH)
        return Shown(pixels_of(self.pictures[rows, views]).movedim(1, -1), [[caption] for caption in captions])

    def some(self, count: int) -> Iterator[Shown]:
        for row in torch.linspace(0, len(self.drawings) - 1, count).long().split(64):
            captions = [[self.drawings[number].name.replace("-", " ")] for number in row.tolist()]
            yield Shown(pixels_of(self.pictures[row, 0]).movedim(1, -1), captions)


class Frozen(TrainableVAE):
    """A VAE of which nothing is trained."""

    def halves(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return [], []


@torch.enable_grad()
def train_on(name: str, vae: nn.Module, model: LatentCLIP, views: Views, frozen: bool) -> tuple[LatentCLIP, nn.Module, float]:
    """The Latent-CLIP and the VAE after the extra steps, made or resumed, with the processor seconds."""
    folder = FOLDER / name
    options = Options(
        folder / "latent_clip_finished.safetensors", folder / "vae.safetensors", folder / "logs", contrastive=1.0,
        leash=Leash(l1=0, kl=0, distance=0) if frozen else LEASH, train_text=True, train_num_samples=BATCH * STEPS,
        batch_size=BATCH, lr=LR, vae_lr=VAE_LR, wd=0.2, warmup=20, ema=0.98, save_every=20,
    )  # fmt: skip
    spent = folder / "seconds"
    if not spent.exists():
        began = time.process_time()
        dataset = Dataset(space_as_dict(SPACE), {"name": "emoji", "sha256": ""}, {"names": ["centre"], "side": 64}, source=", ".join(TRAINING))  # fmt: skip
        trainable = (Frozen if frozen else TrainableVAE)(copy.deepcopy(vae))
        finetune(options, trainable, Start("emoji Latent-CLIP", _unfrozen(model), LATENT, dataset), views)
        spent.write_text(str(time.process_time() - began))
    return _tower(options.output), _vae(options.output_vae), float(spent.read_text())


def _unfrozen(model: LatentCLIP) -> LatentCLIP:
    """A copy whose weights may change."""
    fresh = LatentCLIP(LATENT)
    fresh.load_state_dict(model.state_dict())
    return fresh


def _tower(path: Path) -> LatentCLIP:
    return load_latent_clip(LATENT, read_checkpoint(path).state_dict)


def _vae(path: Path) -> nn.Module:
    vae = build_vae(CHANNELS)
    vae.load_state_dict(load_file(path))
    return vae.requires_grad_(False)
