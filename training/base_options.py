"""Options that `latent-clip train` and `latent-clip finetune-vae` share; flags have open_clip's names where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from open_clip_train.scheduler import cosine_lr

from .loop import Recipe


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """Options of a training.

    Attributes:
        output: file of the Latent-CLIP. logs: folder of checkpoints and logs, of one training at a time.
        contrastive, siglip, distil: see `objectives.Objectives`. train_text: whether the text tower is trained, with captions.
        lr: of the top of the image tower. layer_decay: of the learning rate from there down. wd: weight decay.
        ema: decay of the averaged weights. save_every: steps between checkpoints.
        force: write over outputs that this training has not made.
    """

    output: Path
    logs: Path
    contrastive: float = 0.0
    siglip: bool = False
    distil: float = 0.0
    train_text: bool = False
    train_num_samples: int
    batch_size: int
    lr: float
    wd: float
    beta1: float = 0.9
    beta2: float = 0.98
    warmup: int = 100
    grad_clip_norm: float = 1.0
    layer_decay: float = 1.0
    ema: float = 0.999
    precision: str = "amp_bf16"
    grad_checkpointing: bool = False
    seed: int = 0
    save_every: int = 500
    device: str = "cpu"
    force: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"Got --batch-size {self.batch_size}, expected 1 or more.")

    @property
    def samples_per_step(self) -> int:
        """Samples of one step in one process."""
        return self.batch_size

    def steps_of(self, world_size: int = 1) -> int:
        """Return the number of steps.

        Raises:
            ValueError: not even one.
        """
        batch = self.samples_per_step * world_size
        if self.train_num_samples < batch:
            raise ValueError(f"Got {self.train_num_samples} samples for batches of {batch}, expected at least one batch.")
        return self.train_num_samples // batch

    def recipe(self, name: str, steps: int) -> CosineRecipe:
        """Return the recipe of one stage."""
        return CosineRecipe(
            name, steps, self.lr, self.seed, min(self.warmup, steps // 2), self.wd, self.ema, (self.beta1, self.beta2),
            self.grad_clip_norm, save_every=self.save_every,
        )  # fmt: skip


class CosineRecipe(Recipe):
    """A recipe with open_clip's own schedule: linear warm-up, then a cosine to zero."""

    def lr_at(self, step: int) -> float:
        return cosine_lr(SimpleNamespace(param_groups=[]), self.lr, self.warmup, self.steps)(step)


def add_common_arguments(parser: argparse.ArgumentParser, default: BaseOptions, precisions: Iterable[str]) -> None:
    """Add the flags of `BaseOptions`, and --workers. Not --device, which a command that starts ComfyUI leaves to it."""
    add = parser.add_argument
    add("--output", type=Path, required=True, help="the .safetensors file of the Latent-CLIP; an existing file is left alone, unless this training made it")
    add("--logs", type=Path, help="folder of checkpoints and logs, of one training at a time; default: beside the output, under its name")
    add("--contrastive", type=float, default=0.0, help="weight of the loss between latents and captions")
    add("--siglip", action="store_true", help="SigLIP's loss instead of CLIP's")
    add("--distil", type=float, default=0.0, help="weight of 1 - cosine to the teacher's features; needs no captions")
    add("--train-text", action="store_true", help="with --contrastive: train the text tower too")
    add("--train-num-samples", type=int, default=default.train_num_samples, help=f"samples seen in all; default {default.train_num_samples}")
    add("--batch-size", type=int, default=default.batch_size, help=f"samples of a step; default {default.batch_size}")
    add("--lr", type=float, default=default.lr, help=f"learning rate of the Latent-CLIP; default {default.lr:g}")
    add("--wd", type=float, default=default.wd, help=f"weight decay of the Latent-CLIP; default {default.wd:g}")
    add("--beta1", type=float, default=default.beta1, help=f"AdamW's average of gradients; default {default.beta1:g}")
    add("--beta2", type=float, default=default.beta2, help=f"AdamW's average of squared gradients; default {default.beta2:g}")
    add("--warmup", type=int, default=default.warmup, help=f"steps of linear warm-up; default {default.warmup}")
    add("--grad-clip-norm", type=float, default=default.grad_clip_norm, help=f"longest gradient; a longer one is scaled down; default {default.grad_clip_norm:g}")
    add("--layer-decay", type=float, default=default.layer_decay, help="of the learning rate, per layer of the image tower from the top down; default 1: none")
    add("--ema", type=float, default=default.ema, help="decay of the averaged weights, which are what is written")
    add("--precision", choices=tuple(precisions), default=default.precision)
    add("--grad-checkpointing", action="store_true", help="less memory, about a third more time")
    add("--seed", type=int, default=default.seed)
    add("--workers", type=int, default=2, help="processes that read data")
    add("--save-every", type=int, default=default.save_every, help="steps between checkpoints, from which a run goes on")
    add("--force", action="store_true", help="write over outputs that exist and are not of this training")
