"""The command line of `latent-clip train`; flags have open_clip's names where it has them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from ..models.config import check_config, published_configs
from .run import PRECISIONS, Options, leave, train

ERRORS = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag; `options_of` reads them."""
    default = Options(Path(), Path(), Path())
    add = parser.add_argument
    add("--train-data", type=Path, required=True, help="folder of shards, as latent-clip embed makes it")
    add("--val-data", type=Path, help="folder of shards of other pictures, for figures on the card and while training")
    add("--output", type=Path, required=True, help="the .safetensors file to write; one that is there is left alone, unless this training has made it")
    add("--logs", type=Path, help="folder of checkpoints and logs, of one training at a time; default: beside the output, under its name")
    add("--model", help=f"a new tower: a .json config, or one of {', '.join(published_configs())}; not with --start")
    add("--start", default="", help="file of a pixel CLIP or Latent-CLIP whose blocks and text tower are taken over")
    add("--patch-size", type=int, default=default.patch_size, help="latent cells of a patch, with --start")
    add("--contrastive", type=float, default=0.0, help="weight of the loss between latents and captions")
    add("--siglip", action="store_true", help="SigLIP's loss instead of CLIP's")
    add("--distil", type=float, default=0.0, help="weight of 1 - cosine to the teacher's features; needs no captions")
    add(
        "--affinity",
        type=float,
        default=0.0,
        help="weight of the divergence from the teacher's similarities to the captions",
    )
    add("--train-num-samples", type=int, default=default.train_num_samples, help="how many samples are seen in all")
    add(
        "--patch-samples",
        type=int,
        default=0,
        help="before that: samples for the patch convolution and positions alone",
    )
    add("--batch-size", type=int, default=default.batch_size, help="samples of each process and chunk; a step sees this × --accum-freq × processes")
    add("--accum-freq", type=int, default=default.accum_freq, help="chunks of a step: a batch this many times larger in nearly the same memory, for about a third more time")
    add("--lr", type=float, default=default.lr)
    add("--wd", type=float, default=default.wd)
    add("--beta1", type=float, default=default.beta1)
    add("--beta2", type=float, default=default.beta2)
    add("--warmup", type=int, default=default.warmup, help="steps")
    add("--grad-clip-norm", type=float, default=default.grad_clip_norm)
    add(
        "--layer-decay",
        type=float,
        default=default.layer_decay,
        help="of the learning rate, per layer from the top down",
    )
    add("--ema", type=float, default=default.ema, help="decay of the averaged weights, which are what is written")
    add("--precision", choices=PRECISIONS, default=default.precision)
    add("--grad-checkpointing", action="store_true", help="less memory, about a third more time")
    add("--no-local-loss", action="store_true", help="every process computes the loss of the whole batch")
    add("--no-gather-with-grad", action="store_true")
    add("--train-text", action="store_true", help="with --start and --contrastive: train the text tower too")
    add(
        "--noise-bands",
        type=int,
        default=0,
        help="make the tower one that may be told a noise level; 16 is a good number",
    )
    add(
        "--noise-hidden",
        type=int,
        default=0,
        help="units of a branch beside every block that only a told level opens; 0: none",
    )
    add("--noise-only", action="store_true", help="train only what a told level uses; finished images are read as by the start")
    add("--noised", type=float, default=0.0, help="share of the samples that are read as predicted at a noise level")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=default.workers, help="processes that read shards")
    add("--shuffle", type=int, default=default.shuffle, help="samples that are mixed")
    add(
        "--save-every", type=int, default=default.save_every, help="steps between checkpoints, from which a run goes on"
    )
    add("--probe-every", type=int, default=0, help="steps between figures on --val-data; 0: only at the end")
    add("--force", action="store_true", help="write over an --output that is there and is not of this training")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def options_of(arguments: argparse.Namespace) -> Options:
    """The `Options` of a parsed command line.

    Raises:
        ValueError: two flags do not go together, or a file is not what it is to be.
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
    return Options(**given)


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


def main(argv: list[str] | None = None) -> int:
    """Parse and train."""
    parser = argparse.ArgumentParser("latent_clip.training", description=__doc__)
    add_arguments(parser)
    try:
        train(options_of(parser.parse_args(argv)))
    except ERRORS as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        leave()
    return 0
