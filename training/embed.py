"""Pictures → shards: read, cut, encode, ask the teacher, write; a plain loop of these, which resumes by record.

Ray runs the same pieces on many workers (`ray_embed.py`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..models.files import only_writer
from ..models.vae_signature import without_signature
from .pictures import cut, views_of
from .shard_folder import clean, finished, indexes
from .shard_header import HEADER, Dataset, ShardError, read_dataset
from .shards import Sample, drop_repeats, key_of, write_shard
from .sources import CLOSED, ImageRecord, SourceError, picture_of

MOST_CLOSED = 100  # pictures in a row that cannot be opened; more, and the disk or the network is at fault


class ViewEncoder(Protocol):
    """A VAE: pixels (N, side, side, 3) in 0..1 → `latent`, or `mean` and `std`, each (N, C, h, w)."""

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]: ...


class PictureTeacher(Protocol):
    """A trained pixel CLIP.

    `features`: pixels (N, side, side, 3) in 0..1 → unit features (N, D). `patches`: → (N, T, W), the output of its patch
    convolution for a grid×grid cut, for the start of a new convolution.
    """

    def features(self, pixels: Tensor) -> Tensor: ...

    def patches(self, pixels: Tensor, grid: int) -> Tensor: ...


class LatentPredictor(Protocol):
    """A diffusion model: raw latents (N, C, h, w), a caption each and a seed → `x0` (N, L, C, h, w) and `levels` (N, L)."""

    def __call__(self, raw_latents: Tensor, captions: list[str], seed: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Tools:
    """VAE, teacher and diffusion model that pictures are encoded with."""

    encoder: ViewEncoder
    teacher: PictureTeacher | None = None
    predictor: LatentPredictor | None = None


@dataclass(frozen=True)
class Settings:
    """Settings by which pictures become samples.

    Attributes:
        side: pixels of a view. views: see `pictures.views_of`.
        batch: pictures that are encoded at once. shard: samples of a tar.
        patch_grid: patches along a side that the new tower will have; 0: no patches are stored.
        patch_samples: of how many pictures they are stored.
    """

    side: int
    views: tuple[str, ...] = ("centre",)
    batch: int = 8
    shard: int = 1000
    patch_grid: int = 0
    patch_samples: int = 512


@dataclass
class Prepared:
    """A picture that was read: its views (V, side, side, 3), and its metadata."""

    record: ImageRecord
    pixels: Tensor
    about: dict


def prepare(record: ImageRecord, settings: Settings) -> Prepared | str:
    """Read and cut one picture, or log why it is left out."""
    picture = picture_of(record)
    if isinstance(picture, str):
        return picture
    views = views_of(picture.size, settings.views, record.id)
    about = {"size": list(picture.size), "views": [view.as_dict() for view in views]}
    return Prepared(record, torch.stack([cut(picture, view, settings.side) for view in views]), about)


@torch.no_grad()
def embed_batch(batch: Sequence[Prepared], tools: Tools, settings: Settings, patches: bool = False) -> list[Sample]:
    """Encode the views of several pictures at once.

    Args:
        patches: whether the teacher's patches are stored too.
    """
    encoder, teacher = tools.encoder, tools.teacher
    count, pixels = len(settings.views), torch.cat([item.pixels for item in batch])
    latents = {name: tensor.float().cpu() for name, tensor in encoder(pixels).items()}
    features = teacher.features(pixels).float().cpu() if teacher else None
    grids = teacher.patches(pixels[::count], settings.patch_grid).float().cpu() if teacher and patches else None
    predicted = _predict(batch, latents, tools.predictor, count) if tools.predictor else {}
    samples = []
    for number, item in enumerate(batch):
        own = slice(number * count, (number + 1) * count)
        taught = {} if features is None else {"features": features[own]}
        if grids is not None:
            taught["patches"] = grids[number]
        seen = {name: t[own] for name, t in latents.items()}
        guessed = {name: t[number] for name, t in predicted.items()}
        samples.append(Sample(item.record.id, seen, list(item.record.captions), item.about, taught, guessed))
    return samples


def without_odd(samples: list[Sample]) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Samples that can be trained on, and (id, reason) of those of which a VAE, a teacher or a diffusion model made NaN or infinity.

    In float16, as they are stored.
    """
    odd = []
    for sample in samples:
        parts = {"VAE": sample.latent, "teacher": sample.teacher, "diffusion model": sample.predictions}
        if maker := next((m for m, part in parts.items() if not all(t.half().isfinite().all() for t in part.values())), None):
            odd.append((sample.id, f"the {maker} made numbers that are not finite"))
    names = {name for name, _ in odd}
    return [sample for sample in samples if sample.id not in names], odd


def _predict(
    batch: Sequence[Prepared], latents: dict[str, Tensor], predictor: LatentPredictor, count: int
) -> dict[str, Tensor]:
    """Predictions of the first view of each picture; the noise depends on which pictures they are."""
    first = next(iter(latents.values()))[::count]
    captions = [item.record.captions[0] if item.record.captions else "" for item in batch]
    return predictor(first, captions, int(key_of(batch[0].record.id)[:8], 16))


class Progress:
    """Rate and time left, a line at most every `every` seconds."""

    def __init__(self, total: int, log: Callable[[str], None], every: float = 10.0) -> None:
        self.total, self.log, self.every = total, log, every
        self.began = self.last = time.monotonic()
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            rate = self.done / max(now - self.began, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            self.log(f"{self.done}/{self.total} pictures, {rate:.1f} a second, {_span(left)} left")
            self.last = now


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def embed(
    records: Sequence[ImageRecord], target: Path, dataset: Dataset, settings: Settings, tools: Tools,
    log: Callable[[str], None] = lambda text: None,
) -> Counter[str]:  # fmt: skip
    """Embed the records that no finished shard has, in this process.

    Returns:
        Counts: pictures written ("written"), were there before ("there"), and were left out, by reason.

    Raises:
        ShardError: the folder holds the tars of the pictures, or shards made in another way. InUseError: another process writes there.
    """
    check_target(records, target)
    with only_writer(target):
        return _embed(records, target, dataset, settings, tools, log)


def _embed(
    records: Sequence[ImageRecord], target: Path, dataset: Dataset, settings: Settings, tools: Tools, log: Callable[[str], None]
) -> Counter[str]:
    left, counts = begin(records, target, dataset)
    log(f"{len(left)} of {len(records)} pictures to embed")
    progress, stored, closed = Progress(len(left), log), counts["there"], 0
    samples: list[Sample] = []
    skipped: list[tuple[str, str]] = []
    for batch, reasons in _batches(left, settings):
        wanted = bool(settings.patch_grid) and stored < settings.patch_samples
        made, odd = without_odd(embed_batch(batch, tools, settings, wanted) if batch else [])
        samples, reasons = samples + made, reasons + odd
        skipped += [(record, reason) for record, reason in reasons if reason != CLOSED]  # which the next run tries again
        stored += len(made)
        counts.update(["written"] * len(made) + [reason for _, reason in reasons])
        closed = 0 if batch else closed + sum(reason == CLOSED for _, reason in reasons)
        if closed > MOST_CLOSED:
            raise SourceError(
                f"{closed} pictures in a row cannot be opened, the last of them {reasons[-1][0]}. Expected that the source stays there while it is "
                "read. Make it readable and start again: what is finished is kept."
            )
        progress.add(len(made) + len(reasons))
        if len(samples) >= settings.shard:
            write_shard(target, samples, skipped)
            samples, skipped = [], []
    write_shard(target, samples, skipped)
    return counts


def check_target(records: Sequence[ImageRecord], target: Path) -> None:
    """Refuse a folder that is not one for shards, before anything is written.

    Raises:
        ShardError: the tars of the pictures lie in it, or a dataset.json of another program, or shards without their dataset.json.
    """
    place = target.resolve()
    tars = {local for record in records if record.size and (local := _local(record.path)) is not None}
    if any(tar.resolve().parent == place for tar in tars):
        raise ShardError(f"{target}: the tars of the pictures lie in this folder. Name another folder for the shards.")
    if (target / HEADER).exists():
        read_dataset(target)
    elif target.is_dir() and any(indexes(target)):
        raise ShardError(f"{target}: holds shards, but no {HEADER} that says what they are. Name another folder.")


def _local(path: str) -> Path | None:
    """The path on this machine; None for an address elsewhere."""
    return Path(path.removeprefix("file://")) if "://" not in path or path.startswith("file://") else None


def begin(records: Sequence[ImageRecord], target: Path, dataset: Dataset) -> tuple[list[ImageRecord], Counter[str]]:
    """Open a new or an earlier run: the records that are left, and the counts so far. Only for the holder of the folder's lock.

    Raises:
        ShardError: the folder holds shards made in another way.
    """
    dataset = Dataset(**json.loads(json.dumps(asdict(dataset))))  # as it reads back: lists, no tuples
    there = read_dataset(target) if (target / HEADER).exists() else None
    if there != dataset:
        _check_same(there or dataset, dataset, target)
        dataset.write(target)
    if there:
        clean(target)
    drop_repeats(target)
    done = finished(target)
    counts = Counter(there=len(done.ids))
    counts.update(done.skipped.values())
    return [record for record in records if record.id not in done.ids and record.id not in done.skipped], counts


def _check_same(there: Dataset, dataset: Dataset, target: Path) -> None:
    changed = [name for name in vars(dataset) if getattr(there, name) != getattr(dataset, name)]
    if "vae" in changed and without_signature(there.vae) == without_signature(dataset.vae):
        changed.remove("vae")  # the same file, loaded in another precision or by a version that made no signature
    if changed:
        raise ShardError(
            f"{target}: its shards were made with another {', '.join(changed)}. Choose another folder, or the same options."
        )


def _batches(records: Sequence[ImageRecord], settings: Settings) -> Iterator[tuple[list[Prepared], list[tuple[str, str]]]]:
    for start in range(0, len(records), settings.batch):
        tried = [(record, prepare(record, settings)) for record in records[start : start + settings.batch]]
        yield (
            [item for _, item in tried if isinstance(item, Prepared)],
            [(record.id, reason) for record, reason in tried if isinstance(reason, str)],
        )
