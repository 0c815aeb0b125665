"""What workers of Ray import: an encoder in place of a VAE, which can be told to die, and a driver to be killed."""

import os
import signal
import time
from pathlib import Path

import torch

from latent_clip.models.latent_spaces import LatentSpace
from latent_clip.models.own_spaces import space_as_dict
from latent_clip.training.embed import Settings, Tools
from latent_clip.training.ray_embed import embed_on_ray
from latent_clip.training.shards import Dataset

SETTINGS = Settings(side=32, batch=4, shard=8)
DATASET = Dataset(
    space_as_dict(LatentSpace("pooled", 3, 8, 1.0, 0.0, "of a test")), {"name": "pool", "sha256": "0"}, {"side": 32}
)


def pooled(pixels):
    """Each cell is the mean colour of 8×8 pixels."""
    return {"latent": torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)}


def make(dies: str = "", slow: float = 0.0):
    """An encoder whose first process dies, once a shard is written, where `dies` names a file that is to note its number."""
    if dies and not Path(dies).exists():
        Path(dies).write_text(str(os.getpid()))

    def encoder(pixels):
        time.sleep(slow)
        first = bool(dies) and Path(dies).read_text() == str(os.getpid())
        if first and list(Path(dies).parent.glob("out/*.tar")):
            os.kill(os.getpid(), signal.SIGKILL)
        return pooled(pixels)

    return Tools(encoder)


def drive(rows, out):
    """Embed slowly."""
    embed_on_ray(rows, out, DATASET, SETTINGS, (make, ("", 0.3)), cpus=3)
