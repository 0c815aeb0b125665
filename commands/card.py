"""Write the model card of a Latent-CLIP that `latent-clip train` made.

latent-clip card mine.safetensors --output README.md
"""

import argparse
from pathlib import Path

ERRORS = (ValueError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("model", type=Path, help="the .safetensors file")
    parser.add_argument("--output", type=Path, help="the .md file to write; default: print it")


def run(options: argparse.Namespace) -> str:
    """The card, or where it was written."""
    from ..training.release import model_card

    card = model_card(options.model)
    if options.output is None:
        return card
    options.output.write_text(card, encoding="utf-8")
    return f"{options.output}: {len(card.splitlines())} lines"
