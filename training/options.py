"""Options of `latent-clip train`, and its command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ..models.config import check_config, published_configs
from .base_options import BaseOptions, add_common_arguments
from .objectives import Objectives

PRECISIONS = {"fp32": None, "amp_bf16": torch.bfloat16, "amp": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(BaseOptions):
    """Options of a training from shards.

    Attributes:
        model: config of a new tower, or None with a `start`, whose blocks and text tower it then has.
        start: file of a pixel CLIP or Latent-CLIP to start from; "" for nothing.
        patch_size: latent cells of a patch, with a `start`.
        patch_samples: samples of the first stage, which trains the patch convolution and the positions alone.
        batch_size: samples of a process and chunk. accum_freq: chunks of a step, see `objectives.TrainTask`.
        noise_bands, noise_hidden, noised: see `models.noise_level` and `reader.Reading`.
        noise_only: train only the weights that a noise level uses, and leave the others as the start has them.
    """

    train_data: Path
    val_data: Path | None = None
    model: dict | None = None
    start: str = ""
    patch_size: int = 8
    affinity: float = 0.0
    train_num_samples: int = 1_000_000
    patch_samples: int = 0
    batch_size: int = 64
    accum_freq: int = 1
    lr: float = 5e-4
    wd: float = 0.2
    local_loss: bool = True
    gather_with_grad: bool = True
    noise_bands: int = 0
    noise_hidden: int = 0
    noise_only: bool = False
    noised: float = 0.0
    workers: int = 2
    shuffle: int = 1000
    probe_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accum_freq < 1:
            raise ValueError(f"Got --accum-freq {self.accum_freq}, expected 1 or more.")

    @property
    def samples_per_step(self) -> int:
        """Samples of one step in one process."""
        return self.batch_size * self.accum_freq

    def objectives(self) -> Objectives:
        """Return the terms of the loss.

        Raises:
            ValueError: an affinity to captions whose tower is not the teacher's.
        """
        if self.affinity and (not self.start or self.train_text):
            raise ValueError(
                "Got --affinity without --start, or with --train-text, expected the teacher's own text tower: it compares with the teacher's "
                "similarities to the captions. Leave --train-text out, and name the teacher's file with --start."
            )
        return Objectives(self.contrastive, self.distil, self.siglip, self.affinity)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag; `options_of` reads them."""
    default = TrainOptions(train_data=Path(), output=Path(), logs=Path())
    add = parser.add_argument
    add("--train-data", type=Path, required=True, help="folder of shards, as latent-clip embed makes it")
    add("--val-data", type=Path, help="folder of shards of other pictures, for figures on the card and while training")
    add("--model", help=f"a new tower: a .json config, or one of {', '.join(published_configs())}; not with --start")
    add("--start", default="", help="file of a pixel CLIP or Latent-CLIP whose blocks and text tower are taken over")
    add("--patch-size", type=int, default=default.patch_size, help="latent cells of a patch, with --start")
    add_common_arguments(parser, default, PRECISIONS)
    add("--affinity", type=float, default=0.0, help="weight of the divergence from the teacher's similarities to the captions")
    add("--patch-samples", type=int, default=0, help="before all: samples for the patch convolution and positions alone")
    add(
        "--accum-freq", type=int, default=default.accum_freq,
        help="chunks of --batch-size samples that make one step of each process: larger batches in nearly the same memory, about a third more time",
    )  # fmt: skip
    add("--no-local-loss", action="store_true", help="every process computes the loss of the whole batch")
    add("--no-gather-with-grad", action="store_true", help="no gradient through the features of other processes")
    add("--noise-bands", type=int, default=0, help="make the tower noise-conditioned; 16 is a good number")
    add("--noise-hidden", type=int, default=0, help="units of a branch beside every block that only a given noise level opens; 0: none")
    add("--noise-only", action="store_true", help="train only what a given noise level uses; finished images are read as by the start")
    add("--noised", type=float, default=0.0, help="share of the samples that are read as predicted at a noise level")
    add("--shuffle", type=int, default=default.shuffle, help="samples that are mixed")
    add("--probe-every", type=int, default=0, help="steps between figures on --val-data; 0: only at the end")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def options_of(arguments: argparse.Namespace) -> TrainOptions:
    """Return the options of a parsed command line.

    Raises:
        ValueError: two flags do not go together, or a file is not as expected.
    """
    given = vars(arguments).copy()
    given.pop("command", None)
    if arguments.output.suffix != ".safetensors":
        raise ValueError(f"{arguments.output.name}: the output must end in .safetensors.")
    if arguments.model and arguments.start:
        raise ValueError("Got --model and --start, expected one: a start brings its own config.")
    if (arguments.distil or arguments.affinity) and not arguments.contrastive and not arguments.start:
        raise ValueError(
            "Got --distil or --affinity alone for a new tower, which has no text tower to go with it. Name the teacher's file with --start, or add --contrastive."
        )
    given["local_loss"] = not given.pop("no_local_loss")
    given["gather_with_grad"] = not given.pop("no_gather_with_grad")
    given["model"] = _model(arguments.model) if arguments.model else None
    given["logs"] = arguments.logs or arguments.output.with_suffix(".logs")
    return TrainOptions(**given)


def _model(name: str) -> dict:
    published = published_configs()
    if name in published:
        return published[name]
    try:
        config = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: no config that can be read ({error}). Known: {', '.join(published)}.") from error
    check_config(config)
    return config
