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

SETTINGS = Settings(side=32, batch=4, shard=8, patch_grid=4, patch_samples=4)
DATASET = Dataset(
    space_as_dict(LatentSpace("pooled", 3, 8, 1.0, 0.0, "of a test")), {"name": "pool", "sha256": "0"}, {"side": 32}
)


def pooled(pixels):
    """Each cell is the mean colour of 8×8 pixels."""
    return {"latent": torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)}


class Teacher:
    """Features and patches that are plain sums of the pixels."""

    def features(self, pixels):
        return torch.nn.functional.normalize(pixels.mean((1, 2)) + 0.1, dim=-1)

    def patches(self, pixels, grid):
        return pixels.movedim(-1, 1).flatten(2).movedim(1, 2)[:, : grid * grid]


def predict(raw_latents, captions, seed):
    """Two levels: half of the latent, and nothing."""
    x0 = torch.stack([raw_latents / 2, raw_latents * 0], 1)
    return {"x0": x0, "levels": torch.tensor([0.5, 1.0]).expand(len(x0), 2)}


TOOLS = Tools(pooled, Teacher(), predict)


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

    return Tools(encoder, TOOLS.teacher, TOOLS.predictor)


def waiting(note: str, seconds: float):
    """An encoder that waits, as for a GPU, and notes after each wait when it began, when it ended, and the processor seconds of its process."""

    def encoder(pixels):
        began = time.time()
        time.sleep(seconds)
        latents = pooled(pixels)
        with Path(note).open("a") as file:
            file.write(f"{began} {time.time()} {time.process_time()}\n")
        return latents

    return Tools(encoder)


def drive(rows, out):
    """Embed slowly."""
    embed_on_ray(rows, out, DATASET, SETTINGS, (make, ("", 0.3)), cpus=3)
