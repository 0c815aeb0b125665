"""Train a Latent-CLIP from shards of latents, on one device; for several see docs/make-your-own.md.

    latent-clip train --train-data shards --start teacher.safetensors --distil 1 --output mine.safetensors

A run that was stopped, however, goes on from its last checkpoint when it is started again. Shards are only read. What is written is the
output, and checkpoints and logs in a folder that one training has for itself (--logs); files of others are left as they are.
"""

import argparse

ERRORS = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line, from training/options.py."""
    options = _options()
    if options is None:
        parser.epilog = "This needs the package webdataset."
        return
    options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> str:
    """Train; return the report."""
    options = _options()
    if options is None:
        raise ValueError("Training reads shards with webdataset, which is not installed. Install that package")
    from ..training.run import train

    lines: list[str] = []
    train(options.options_of(arguments), lines.append)
    return "\n".join(lines)


def _options():
    try:
        from ..training import options
    except ImportError as error:
        if error.name not in ("webdataset", "open_clip_train"):
            raise
        return None
    return options
