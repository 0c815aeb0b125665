"""`torchrun --nproc-per-node N -m latent_clip.training …`: `latent-clip train` for several processes."""

import sys

from .options import main

if __name__ == "__main__":
    sys.exit(main())
