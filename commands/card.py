"""Write the model card of a Latent-CLIP that `latent-clip train` made.

latent-clip card mine.safetensors --output README.md

A file that is there already is left as it is, unless --force is given.
"""

import argparse
from pathlib import Path

from ..models.files import check_new, write_whole

ERRORS = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("model", type=Path, help="the .safetensors file")
    parser.add_argument("--output", type=Path, help="the .md file to write; default: print it")
    parser.add_argument("--force", action="store_true", help="replace the .md file if it is there")


def run(options: argparse.Namespace) -> str:
    """Return the card, or the path that it was written to."""
    from ..training.release import model_card

    if options.output is not None:
        check_new(options.output, options.force)
    card = model_card(options.model)
    if options.output is None:
        return card
    write_whole(options.output, card)
    return f"{options.output}: {len(card.splitlines())} lines"
