"""`embed` on Ray Data: pictures are decoded on every core, encoded by actors, written in shards; on this machine or a cluster.

Ray starts lost workers again and repeats what they had in hand. A repeated batch has the same records and so the same file name, and
what a dead driver's workers finish after it is found by its ids: no record is lost, and none is there twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from ..models.files import only_writer
from .embed import Prepared, Progress, Settings, Tools, begin, check_target, embed_batch, prepare, without_odd
from .shard_folder import finished
from .shard_header import Dataset, ShardError
from .shards import Sample, drop_repeats, write_shard
from .sources import CLOSED, ImageRecord

Make = tuple[Callable[..., Tools], tuple]
Columns = dict[str, np.ndarray]
STARTS = 3  # Ray gives its own processes 30 s, which a busy machine may need more than once
PARTS = ("latent", "teacher", "predictions")  # of a sample, which travel as safetensors


def embed_on_ray(
    records: Sequence[ImageRecord], target: Path, dataset: Dataset, settings: Settings, make: Make, address: str = "local",
    encoders: int = 1, log: Callable[[str], None] = lambda text: None, cpus: int | None = None,
) -> Counter[str]:  # fmt: skip
    """Embed the records that no finished shard has.

    Args:
        make: a function that workers can import and its arguments; it returns the `embed.Tools` of a worker.
        address: of a cluster, on which `target` and the pictures must be at the same places; "local": this machine.
        encoders: actors that hold the VAE and the teacher. cpus: of this machine that Ray may use; default: all.

    Returns:
        As `embed.embed`.

    Raises:
        ShardError: Ray or this pack is not installed; and as `embed.embed`.
    """
    check_target(records, target)
    with only_writer(target):  # by this process for all its workers, whose unfinished files have names of their own
        left, counts = begin(records, target, dataset)
        if left:
            _run(left, target, settings, make, address, encoders, log, cpus)
            drop_repeats(target)
        done = finished(target)  # what is there counts, however often workers have tried
    closed = sum(record.id not in done.ids and record.id not in done.skipped for record in left)  # as `_write` leaves them, for the next run
    reasons = Counter(done.skipped.values()) + Counter({CLOSED: closed})
    return Counter({"there": counts["there"], "written": len(done.ids) - counts["there"], **reasons})


def _run(
    records: Sequence[ImageRecord], target: Path, settings: Settings, make: Make, address: str, encoders: int,
    log: Callable[[str], None], cpus: int | None,
) -> None:  # fmt: skip
    ray = _ray()
    _start(ray, address, cpus)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        progress = Progress(len(records), log)
        for batch in _pipeline(ray, records, target.resolve(), settings, make, encoders).iter_batches(batch_size=None):
            progress.add(int(batch["records"].sum()))
    finally:
        ray.shutdown()


def _start(ray, address: str, cpus: int | None) -> None:
    mine = address == "local"
    for turn in range(1, STARTS + 1):
        try:
            ray.init(
                address=None if mine else address, num_cpus=cpus if mine else None, include_dashboard=False if mine else None,
                log_to_driver=False, ignore_reinit_error=True,
            )  # fmt: skip
            return
        except Exception as error:  # Ray raises a bare one where its processes are slow to start
            if not mine or turn == STARTS or "timed out" not in str(error):
                raise
            ray.shutdown()


def _ray():
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ShardError("Ray is not installed. Install the package ray[data], or leave --ray out.") from error
    try:
        version("latent-clip")
    except PackageNotFoundError as error:
        raise ShardError(
            "Ray's workers import this pack as latent_clip, which is not installed. Install its folder with pip, as docs/make-your-own.md shows."
        ) from error
    return ray


def _pipeline(ray, records: Sequence[ImageRecord], target: Path, settings: Settings, make: Make, encoders: int):
    items = [{"number": number, "record": json.dumps(vars(record))} for number, record in enumerate(records)]
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    data = ray.data.from_items(items, override_num_blocks=max(1, min(len(items) // settings.batch, 1000)))
    data = data.map_batches(_decode, batch_size=settings.batch, fn_args=(settings,))
    # An encoder that asked for as much of a core as reading does, as it would without a GPU, would be given the reading too, in its own
    # process: Ray joins steps that ask for the same. It waits for its GPU; where there is none, it shares the cores with the readers.
    data = data.map_batches(
        _Encode, batch_size=settings.batch, fn_constructor_args=(make, settings), num_gpus=gpus, num_cpus=0,
        compute=ray.data.ActorPoolStrategy(size=encoders),
    )  # fmt: skip
    # Writing takes next to no time. Had it a core's share of its own, reading would never be ahead, and would wait while a writer starts.
    return data.map_batches(_write, batch_size=settings.shard, fn_args=(target,), num_cpus=0)


def _bytes_column(values: list[bytes]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _decode(batch: Columns, settings: Settings) -> Columns:
    """Rows as JSON → their views as 8-bit bytes, or the reason why not."""
    pixels, about, reasons = [], [], []
    for text in batch["record"]:
        item = prepare(ImageRecord(**json.loads(text)), settings)
        bad = isinstance(item, str)
        # Pillow resizes in 8 bits, so nothing is lost here
        pixels.append(b"" if bad else (item.pixels * 255).round().to(torch.uint8).numpy().tobytes())
        about.append("{}" if bad else json.dumps(item.about))
        reasons.append(item if bad else "")
    return {
        "number": batch["number"], "record": batch["record"], "pixels": _bytes_column(pixels), "about": np.array(about),
        "reason": np.array(reasons),
    }  # fmt: skip


class _Encode:
    """An actor with a VAE and a teacher."""

    def __init__(self, make: Make, settings: Settings) -> None:
        function, arguments = make
        self.tools = function(*arguments)
        self.settings = settings

    def __call__(self, batch: Columns) -> Columns:
        side, kept = self.settings.side, [n for n, reason in enumerate(batch["reason"]) if not reason]
        items = []
        for n in kept:
            pixels = np.frombuffer(batch["pixels"][n], dtype=np.uint8).reshape(-1, side, side, 3)
            about = json.loads(str(batch["about"][n]))
            items.append(
                Prepared(
                    ImageRecord(**json.loads(str(batch["record"][n]))), torch.from_numpy(pixels.astype(np.float32) / 255), about
                )
            )
        patches = bool(self.settings.patch_grid) and bool((batch["number"] < self.settings.patch_samples).any())
        samples = embed_batch(items, self.tools, self.settings, patches) if items else []
        columns = {name: batch[name] for name in ("record", "about", "reason")}
        for part in PARTS:
            contents = [b""] * len(batch["record"])
            for n, sample in zip(kept, samples):
                if tensors := getattr(sample, part):
                    contents[n] = save({name: tensor.contiguous() for name, tensor in tensors.items()})
            columns[part] = _bytes_column(contents)
        return columns


def _write(batch: Columns, target: Path) -> Columns:
    """One shard; and the number of records in it and left out."""
    samples, skipped = [], []
    for n, (text, about, reason) in enumerate(zip(batch["record"], batch["about"], batch["reason"])):
        record = ImageRecord(**json.loads(str(text)))
        if reason == CLOSED:
            continue
        if reason:
            skipped.append((record.id, str(reason)))
        else:
            parts = {part: load(content) if (content := batch[part][n]) else {} for part in PARTS}
            samples.append(Sample(record.id, captions=record.captions, about=json.loads(str(about)), **parts))
    samples, odd = without_odd(samples)
    write_shard(target, samples, skipped + odd)
    return {"records": np.array([len(batch["record"])])}
