"""Cost of making a Latent-CLIP: ./dev bench training

Measured: pictures read, cut and encoded per core, samples read from shards per core, the share of a training step that is not the model, one
process beside two, Ray beside the plain loop. Counted, not measured: the floating-point operations of the real sizes, on tensors
without values. Processor seconds where one process works alone, so that a busy machine changes little.
"""

from __future__ import annotations

import tempfile
import time
from itertools import count
from pathlib import Path

import torch

from .timing import alternate, device_name
from .training_many import on_ray, pictures, processes

PICTURES = 60
LATENT = (4, 64, 64)
VAE_SIDE = 256  # pixels; at 512 one picture takes a core half a minute


def run() -> dict:
    """Measure, and return what `bench/results/training.json` holds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "device": device_name(),
            "processes": processes(),  # first, while this one has no threads that a fork would leave behind
            "embed": _embed(folder),
            "vae": _vae(),
            "reader": _reader(folder),
            "ray": on_ray(folder),
            "operations": operations(),
        }


def _embed(folder: Path) -> dict:
    """Pictures of 1024×768 JPEG per processor second: read and cut to 512, and written."""
    from ..training.embed import Settings, prepare
    from ..training.shards import Sample, write_shard
    from ..training.sources import records_of

    rows, settings = records_of(str(pictures(folder / "jpg", PICTURES, (1024, 768)))), Settings(side=512)
    samples = [Sample(row.id, {"latent": torch.randn(1, *LATENT)}, ["a caption of some words"]) for row in rows]
    seconds = alternate(
        {
            "read and cut": lambda: [prepare(row, settings) for row in rows],
            "write": lambda: write_shard(folder / "written", samples),
        },
        rounds=3, clock=time.process_time,
    )  # fmt: skip
    return {f"{name}, pictures a second and core": round(PICTURES / value, 1) for name, value in seconds.items()}


def _vae() -> dict:
    """An encoder of SDXL's size with random weights: pictures per processor second, apart from reading and writing."""
    encoder = _sdxl_vae("cpu").encoder.requires_grad_(False)
    picture = torch.rand(1, 3, VAE_SIDE, VAE_SIDE)
    with torch.no_grad():
        for p in encoder.parameters():
            p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(1.0)
        seconds = alternate({"encode": lambda: encoder(picture)}, rounds=1, clock=time.process_time)["encode"]
    return {f"SDXL's encoder, pictures of {VAE_SIDE} pixels a second and core": round(1 / seconds, 3)}


def _reader(folder: Path) -> dict:
    """Samples of 512-pixel SDXL latents per processor second, and the shares of a step of a small tower that are not the model.

    With a worker, which reads while the step computes, in wall seconds: the rate that it can keep up, and how long a step waits for it.
    """
    from ..models.latent_clip import LatentCLIP
    from ..training.loop import Group, Recipe, _optimizer, _step
    from ..training.objectives import Objectives, TrainTask
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
    tars = sorted(shards.glob("*.tar"))
    reader, task = Reader(tars, Reading(batch, 64, context=77, shuffle=200)), TrainTask(LatentCLIP(config), Objectives(contrastive=1.0))
    parameters, step, recipe = list(task.parameters()), count(), Recipe("bench", 1000, 1e-3)
    average, held = [p.detach().clone() for p in parameters], reader.batch(next(step))
    optimizer, _ = _optimizer(recipe, [Group(parameters)])

    def model() -> None:
        sum(task(held).values()).backward()

    def whole() -> None:
        _step(sum(task(reader.batch(next(step))).values()), parameters, optimizer, recipe.clip, None)
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.005)

    seconds = alternate(
        {"read": lambda: reader.batch(next(step)), "model": model, "whole": whole}, rounds=8, clock=time.process_time
    )
    return {
        "samples read a second and core": round(batch / seconds["read"], 1),
        "share of a step that is reading, without workers": round(seconds["read"] / seconds["whole"], 3),
        "share of a step that is not the model: reading, clipping, AdamW, average": round(1 - seconds["model"] / seconds["whole"], 3),
        "tower of the step": f"{sum(p.numel() for p in parameters) / 1e6:.1f} M parameters, batch {batch}, one thread",
        **_with_a_worker(Reader(tars, Reading(batch, 64, context=77, shuffle=200, workers=1)), model, batch),
    }


def _with_a_worker(reader, model, batch: int, steps: int = 20) -> dict:
    reader.batch(0)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        reader.batch(step)
    alone = time.perf_counter() - began
    waited, began = 0.0, time.perf_counter()
    for step in range(steps + 1, 2 * steps + 1):
        asked = time.perf_counter()
        reader.batch(step)
        waited += time.perf_counter() - asked
        model()
    trained = time.perf_counter() - began
    return {
        "samples a second from one worker, nothing else to do": round(steps * batch / alone, 1),
        "samples a second that the training takes from it": round(steps * batch / trained, 1),
        "share of a step that waits for that worker": round(waited / trained, 4),
    }


def _sdxl_vae(device: str):
    """The host's autoencoder with the configuration of SDXL's, its weights unset."""
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True  # an attention that counts without values
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sdxl = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.device(device):
        return AutoencoderKL(embed_dim=4, ddconfig=sdxl)


def operations() -> dict:
    """Floating-point operations (two per multiply-add) for one picture of 512 pixels, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    from ..models.config import published_configs
    from ..models.latent_clip import LatentCLIP

    found = {}
    with torch.device("meta"), torch.no_grad():
        vae = _sdxl_vae("meta")
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
