"""`torchrun --nproc-per-node N -m latent_clip.training …`: `latent-clip train` for several processes."""

from __future__ import annotations

import argparse
import sys

from . import options
from .distributed import destroy_distributed
from .run import train


def main(argv: list[str] | None = None) -> int:
    """Parse and train."""
    parser = argparse.ArgumentParser("latent_clip.training", description=__doc__)
    options.add_arguments(parser)
    try:
        train(options.options_of(parser.parse_args(argv)))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        destroy_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
