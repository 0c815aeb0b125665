"""Cost of many processes beside one, for bench.training: Ray beside the plain loop, two trainers beside one."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

WAIT, PER_BATCH = 0.2, 20  # seconds of an encoder that waits as for a GPU, pictures of its batch
STILL = 1.0  # seconds from batch to batch, from which on it is no batch's time but a process that starts
TRAINED, BATCH = 12, 32  # steps of each process, samples of each of its steps


def pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEGs of soft noise in a folder, which is returned."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)
    return folder


# ------------------------------------------------------------------------------------------------------------- Ray


def on_ray(folder: Path) -> dict | str:
    """Time from batch to batch of one encoder that waits, so that cores are not what is compared, by the plain loop and on Ray, A B A B.

    The cost of Ray's start is listed apart: seconds to the first batch, and those that the encoder stands still when a further process starts.
    With small pictures, whose reading costs next to nothing, in wall seconds. With pictures of 512 pixels in processor seconds of the
    process that encodes, beside the encoder: what bigger batches cost on their way.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        return "Ray is not installed"
    os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers give way to whatever else the machine does, and that is measured
    source = pictures(folder / "many", 1000, (64, 64))
    turns = [_run(folder, source, turn % 2 == 1, f"turn{turn}", 1000, 64) for turn in range(4)]
    plain, ray_ = (turns[start::2] for start in (0, 1))
    big = {name: _run(folder, source, name == "on Ray", f"big {name}", 300, 512) for name in ("plain loop", "on Ray")}
    batch = {name: statistics.mean(turn["batch"] for turn in runs) for name, runs in (("plain loop", plain), ("on Ray", ray_))}
    return {
        "encoder": f"waits {WAIT} s for each {PER_BATCH} pictures; 1,000 pictures of 64 pixels, two runs of each in turn",
        **{f"{name}, ms from batch to batch": round(1000 * value, 1) for name, value in batch.items()},
        "each run, ms": {name: [round(1000 * run["batch"], 1) for run in runs] for name, runs in (("plain loop", plain), ("on Ray", ray_))},
        "Ray over the plain loop": round(batch["on Ray"] / batch["plain loop"] - 1, 3),
        "Ray over the encoder's own wait": round(batch["on Ray"] / WAIT - 1, 3),
        "on Ray, seconds to the first batch": [round(run["start"], 1) for run in ray_],
        "on Ray, seconds that the encoder stood still after it": [round(run["still"], 1) for run in ray_],
        "on Ray, seconds after the last batch": [round(run["end"], 1) for run in ray_],
        **{f"{name}, pictures of 512 pixels: processor ms of a batch where it is encoded": round(1000 * run["processor"], 1)
           for name, run in big.items()},
    }  # fmt: skip


def _run(folder: Path, source: Path, ray: bool, name: str, count: int, side: int) -> dict:
    from ..tests.shard_pieces import DATASET, waiting
    from ..training.embed import Settings, embed
    from ..training.ray_embed import embed_on_ray
    from ..training.sources import records_of

    rows, note = records_of(str(source))[:count], folder / f"{name}.txt"
    settings, target = Settings(side=side, batch=PER_BATCH, shard=100), folder / name
    began = time.time()
    if ray:
        embed_on_ray(rows, target, DATASET, settings, (waiting, (str(note), WAIT)), cpus=2)
    else:
        embed(rows, target, DATASET, settings, waiting(str(note), WAIT))
    ended = time.time()
    calls = [tuple(map(float, line.split())) for line in note.read_text().splitlines()]
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(calls)]
    return {
        "batch": statistics.mean(gap for gap in gaps if gap < STILL), "still": sum(gap for gap in gaps if gap >= STILL),
        "start": calls[0][0] - began, "end": ended - calls[-1][1], "processor": (calls[-1][2] - calls[1][2]) / (len(calls) - 2),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- one beside two


def processes() -> dict:
    """Processor milliseconds of a sample in training, in one process alone and in each of two that meet over gloo."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for world in (1, 2):
            folder = Path(name) / str(world)
            folder.mkdir()
            context = multiprocessing.get_context("fork")
            every = [context.Process(target=_train, args=(rank, world, folder)) for rank in range(world)]
            for process in every:
                process.start()
            for process in every:
                process.join()
                if process.exitcode:
                    raise RuntimeError(f"a process of the training ended with {process.exitcode}")
            found[world] = [float(path.read_text()) for path in sorted(folder.glob("rank*"))]
    one, two = found[1][0], statistics.mean(found[2])
    return {
        "one process, processor ms a sample": round(1000 * one, 1),
        "each of two, processor ms a sample": round(1000 * two, 1),
        "what meeting costs": round(two / one - 1, 3),
        "each has": f"batch {BATCH} of its own, 10.0 M parameters, {TRAINED} steps, one thread",
    }





def _train(rank: int, world: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from ..models.latent_clip import LatentCLIP
    from ..training.objectives import Batch, Objectives, TrainTask

    torch.set_num_threads(1)
    config = {
        "embed_dim": 128, "vision_cfg": {"image_size": 512, "layers": 4, "width": 256, "patch_size": 8, "latent_factor": 8, "latent_n_channels": 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
    }  # fmt: skip
    torch.manual_seed(0)
    task = TrainTask(LatentCLIP(config), Objectives(contrastive=1.0), rank, world)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    run = task if world == 1 else DistributedDataParallel(task, static_graph=True)
    optimizer = torch.optim.AdamW(task.parameters(), 1e-3)
    batch, times = Batch(torch.randn(BATCH, 4, 64, 64), torch.randint(1, 999, (BATCH, 77))), []
    for _ in range(TRAINED):
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        sum(run(batch).values()).backward()
        optimizer.step()
        times.append(time.process_time() - began)
    (folder / f"rank{rank}").write_text(str(statistics.median(times[2:]) / BATCH))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
