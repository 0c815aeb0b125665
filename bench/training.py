"""What making a Latent-CLIP costs: ./dev bench training

Measured: pictures read and cut per core, samples read from shards per core, the share of a training step that is not the model, Ray
beside the plain loop. Counted, not measured: the floating-point operations of the real sizes, on tensors without values.
Processor seconds where one process works alone, so that a busy machine changes little.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from .timing import alternate, device_name

PICTURES = 60
LATENT = (4, 64, 64)


def run() -> dict:
    """Measure, and return what `bench/results/training.json` holds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "device": device_name(),
            "embed": _embed(folder),
            "reader": _reader(folder),
            "ray": _ray(folder),
            "operations": operations(),
        }


def _pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)
    return folder


def _embed(folder: Path) -> dict:
    """Pictures of 1024×768 JPEG per processor second: read and cut to 512, and written."""
    from ..training.embed import Settings, prepare
    from ..training.shards import Sample, write_shard
    from ..training.sources import rows_of

    rows, settings = rows_of(str(_pictures(folder / "jpg", PICTURES, (1024, 768)))), Settings(side=512)
    samples = [Sample(row.id, {"latent": torch.randn(1, *LATENT)}, ["a caption of some words"]) for row in rows]
    seconds = alternate(
        {
            "read and cut": lambda: [prepare(row, settings) for row in rows],
            "write": lambda: write_shard(folder / "written", samples),
        },
        rounds=3, clock=time.process_time,
    )  # fmt: skip
    return {f"{name}, pictures a second and core": round(PICTURES / value, 1) for name, value in seconds.items()}


def _reader(folder: Path) -> dict:
    """Samples of 512-pixel SDXL latents per processor second, and the share of a step of a small tower that is not the model."""
    from ..models.latent_clip import LatentCLIP
    from ..training.objectives import Objectives, Task
    from ..training.reader import Reader, Reading
    from ..training.shards import Sample, write_shard

    shards, batch = folder / "shards", 32
    for start in range(0, 400, 100):
        latents = torch.randn(100, 1, *LATENT)
        write_shard(
            shards, [Sample(f"{start}/{n}", {"latent": latents[n]}, ["a red cat on a mat"]) for n in range(100)]
        )
    config = {
        "embed_dim": 128, "vision_cfg": {"image_size": 512, "layers": 4, "width": 256, "patch_size": 8, "latent_factor": 8, "latent_n_channels": 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
    }  # fmt: skip
    reader = Reader(sorted(shards.glob("*.tar")), Reading(batch, 64, context=77, shuffle=200))
    task, step = Task(LatentCLIP(config), Objectives(contrastive=1.0)), iter(range(10_000))
    reader.batch(next(step))

    def train() -> None:
        sum(task(reader.batch(next(step))).values()).backward()

    seconds = alternate({"read": lambda: reader.batch(next(step)), "train": train}, rounds=8, clock=time.process_time)
    parameters = sum(p.numel() for p in task.parameters())
    return {
        "samples read a second and core": round(batch / seconds["read"], 1),
        "share of a step that is reading, without workers": round(seconds["read"] / seconds["train"], 3),
        "tower of the step": f"{parameters / 1e6:.1f} M parameters, batch {batch}, one thread",
    }


def _ray(folder: Path) -> dict | str:
    """Wall seconds of few and of many pictures with an encoder that takes real time: what a run costs at all, and what a picture costs."""
    try:
        import ray  # noqa: F401
    except ImportError:
        return "Ray is not installed"
    from ..tests.shard_pieces import DATASET, make
    from ..training.embed import Settings, embed
    from ..training.ray_embed import embed_on_ray
    from ..training.sources import rows_of

    rows, settings = rows_of(str(_pictures(folder / "many", 600, (640, 480)))), Settings(side=256, batch=20, shard=100)
    found: dict[str, float] = {}
    for count in (100, 600):
        began = time.perf_counter()
        embed(rows[:count], folder / f"plain{count}", DATASET, settings, make("", 0.5))
        found[f"plain loop, {count} pictures, seconds"] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()
        embed_on_ray(rows[:count], folder / f"ray{count}", DATASET, settings, (make, ("", 0.5)), cpus=2)
        found[f"on Ray, {count} pictures, seconds, its start and end with them"] = round(time.perf_counter() - began, 1)
    values = list(found.values())
    found["a further picture on Ray, times the plain loop"] = round(
        (values[3] - values[1]) / (values[2] - values[0]), 2
    )
    return found


def operations() -> dict:
    """Floating-point operations (two per multiply-add) for one picture of 512 pixels, counted by torch."""
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True  # an attention that counts without values
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    from ..models.config import published_configs
    from ..models.latent_clip import LatentCLIP

    found = {}
    sdxl = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKL(embed_dim=4, ddconfig=sdxl)
        with FlopCounterMode(display=False) as counter:
            vae.encoder(torch.empty(1, 3, 512, 512))
        found["SDXL VAE encoder, TFLOP"] = round(counter.get_total_flops() / 1e12, 3)
    for name, config in published_configs().items():
        with torch.device("meta"):
            model = LatentCLIP(config)
            latents, tokens = torch.empty(1, *LATENT), torch.zeros(1, 77, dtype=torch.long)
            with FlopCounterMode(display=False) as counter:
                (model.encode_image(latents).sum() + model.encode_text(tokens).sum()).backward()
        found[f"{name}, forward and backward of a pair, TFLOP"] = round(counter.get_total_flops() / 1e12, 4)
        found[f"{name}, parameters in millions"] = round(sum(p.numel() for p in model.parameters()) / 1e6, 1)
    return found
