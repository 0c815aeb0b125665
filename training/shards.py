"""The files between `embed` and `train`: WebDataset tars with safetensors in them, and an index beside each.

A sample is a few members of a tar that share a key:

    KEY.latent.safetensors      latent (V, C, h, w) float16, the raw latents of V views (crops, flips); or mean and std of the
                                VAE's posterior, from which training draws
    KEY.teacher.safetensors     features (V, D) float16 of unit length; and of the first samples also patches (T, W), what the
                                teacher's patch convolution made of the first view, for the start of a new one
    KEY.predictions.safetensors x0 (L, C, h, w) float16, what a diffusion model predicts from the first view with noise on it, and
                                levels (L,), the shares of noise
    KEY.txt                     captions, one a line; missing where there is none
    KEY.json                    id, the size of the picture in pixels, and per view its box in the picture and whether it is flipped

NAME.index.json beside NAME.tar lists the ids in it and what was left out, with the reasons. It takes its name last: a record counts as
done when an index has it. `dataset.json` says what is the same for all: latent space, VAE, teacher, views (`shard_folder`).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..models.checkpoint import read_tensor_bytes
from ..models.files import replacing, sync, write_whole
from .sample_check import check_tensors
from .shard_folder import INDEX, Done, finished, index_bytes, indexes, retire
from .shard_header import HEADER, Dataset, ShardError, read_dataset

LARGEST_SAMPLE = 1 << 30  # bytes of the members of one sample; 16 views of a 2048-pixel picture in 16 channels have 34 MB
__all__ = [
    "HEADER", "INDEX", "Dataset", "Done", "Sample", "ShardError", "decode_sample", "drop_repeats", "finished", "key_of", "members",
    "raw_tar_samples", "read_dataset", "read_samples", "stack_views", "write_shard",
]  # fmt: skip


@dataclass
class Sample:
    """One picture as a tower sees it.

    Attributes:
        id: which picture of the source this is; unique in a data set.
        latent: `latent`, or `mean` and `std`: (V, C, h, w).
        captions: any number. about: see the module. teacher, predictions: tensors by name, or empty.
    """

    id: str
    latent: dict[str, Tensor]
    captions: list[str] = field(default_factory=list)
    about: dict = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)
    predictions: dict[str, Tensor] = field(default_factory=dict)


def key_of(identity: str) -> str:
    """The name that a sample's members share: WebDataset splits names at the first dot, and ids are paths."""
    return hashlib.sha256(identity.encode()).hexdigest()[:20]


def members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    """(extension, bytes) of a sample's members."""
    yield "latent.safetensors", save({name: tensor.half().contiguous() for name, tensor in sample.latent.items()})
    if sample.teacher:
        yield "teacher.safetensors", save({name: tensor.half().contiguous() for name, tensor in sample.teacher.items()})
    if sample.predictions:
        half = {name: t.half() if name == "x0" else t for name, t in sample.predictions.items()}
        yield "predictions.safetensors", save({name: tensor.contiguous() for name, tensor in half.items()})
    if sample.captions:
        yield "txt", "\n".join(" ".join(caption.split()) for caption in sample.captions).encode()
    yield "json", json.dumps({"id": sample.id, **sample.about}).encode()


def write_shard(folder: Path, samples: Iterable[Sample], skipped: Iterable[tuple[str, str]] = ()) -> Path | None:
    """Write one tar and its index, or an index alone where every record was left out.

    The name comes from the ids in it, so a batch that is written again replaces itself.

    Args:
        skipped: (id, reason) of records that were left out.

    Returns:
        The tar; None where there is no sample.
    """
    samples, skipped = list(samples), list(skipped)
    ids = [sample.id for sample in samples]
    if not ids and not skipped:
        return None
    name = hashlib.sha256("\n".join([*ids, "|", *(record for record, _ in skipped)]).encode()).hexdigest()[:16]
    path, index = folder / f"{name}.tar", folder / f"{name}{INDEX}"
    folder.mkdir(parents=True, exist_ok=True)
    if not ids:
        write_whole(index, index_bytes(None, 0, ids, skipped, 0))
        return None
    patches = sum("patches" in sample.teacher for sample in samples)
    with replacing(index) as unfinished, replacing(path) as half:  # the tar takes its name first
        _write_tar(half, samples)
        unfinished.write_bytes(index_bytes(path.name, half.stat().st_size, ids, skipped, patches))
        sync(unfinished)  # so that `shard_folder.clean` can finish this
    return path


def _write_tar(path: Path, samples: Iterable[Sample]) -> None:
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for extension, content in members(sample):
                info = tarfile.TarInfo(f"{key_of(sample.id)}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def drop_repeats(folder: Path) -> int:
    """Write shards again without the records that an earlier one has; returns how many records that were. Only for the holder of the lock.

    The workers of a run that was killed can embed the same picture as the run after it. A new shard is there before the old one goes.
    """
    homes: dict[str, Path] = {}  # record → the index that has it first
    dropped = 0
    for index in list(indexes(folder)):
        repeated = {record for record in index.ids if homes.get(record, index.path) != index.path}
        home: Path | None = index.path
        if repeated and index.tar is not None:
            kept = [sample for raw in raw_tar_samples(index.tar) if (sample := decode_sample(raw)).id not in repeated]
            new = write_shard(folder, kept, index.skipped.items())
            home = new and new.with_name(f"{new.stem}{INDEX}")
            retire(index)
            dropped += len(repeated)
        if home is not None:
            homes |= {record: home for record in index.ids if record not in repeated}
    return dropped


def decode_sample(members: dict[str, bytes]) -> Sample:
    """A `Sample` from the members of a tar by extension, ours or the authors' (`latent.pt`, tensors only).

    Raises:
        ShardError: something in it is missing, damaged, or does not fit the rest (`sample_check`).
    """
    try:
        sample = _decode({name.lower(): content for name, content in members.items()})
        check_tensors(sample.latent, sample.teacher, sample.predictions)
    except MemoryError:
        raise
    except Exception as error:  # whatever a library raises over one odd sample means the same
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ShardError(f"Got an unusable sample: {reason}. Make its shard again with: latent-clip embed") from error
    return sample


def _decode(members: dict[str, bytes]) -> Sample:
    if "latent.safetensors" in members:
        latent = load(members["latent.safetensors"])
    elif "latent.pt" in members:
        tensor = read_tensor_bytes(members["latent.pt"], "latent.pt")
        latent = {"latent": tensor if tensor.ndim == 4 else tensor[None]}
    else:
        raise ValueError(f"it holds {sorted(members)}, expected latent.safetensors or latent.pt")
    teacher = load(members["teacher.safetensors"]) if "teacher.safetensors" in members else {}
    predictions = load(members["predictions.safetensors"]) if "predictions.safetensors" in members else {}
    about = json.loads(members.get("json", b"{}"))
    if not isinstance(about, dict):
        raise ValueError(f"its json is a {type(about).__name__}, expected an object")
    captions = [line for line in members.get("txt", b"").decode("utf-8", "replace").splitlines() if line.strip()]
    identity = about.get("id", members.get("__key__", b"").decode("utf-8", "replace"))
    return Sample(str(identity), latent, captions, about, teacher, predictions)


def raw_tar_samples(path: Path) -> Iterator[dict[str, bytes]]:
    """Members by extension of every sample of a tar, in its order; a sample's members stand together.

    Raises:
        ShardError: it is damaged, compressed or no tar, or a sample is larger than `LARGEST_SAMPLE`.
    """
    key: str | None = None
    current: dict[str, bytes] = {}
    with path.open("rb") as file, _tar_of(file, path) as tar:
        end = file.seek(0, io.SEEK_END)
        for info in _infos(tar, path):
            name = PurePosixPath(info.name)
            stem, _, extension = name.name.partition(".")
            stem = str(name.parent / stem)
            if stem != key and current:
                yield current
                current = {}
            key, current = stem, current | {"__key__": stem.encode("utf-8", "replace")}
            _check_size(info, end, sum(map(len, current.values())), path)
            file.seek(info.offset_data)
            current[extension] = file.read(info.size)
        if current:
            yield current


def _tar_of(file: BinaryIO, path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except Exception as error:
        raise _unreadable(path, error) from error


def _infos(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Headers of files; whatever the library raises over an odd one means the same."""
    while True:
        try:
            info = tar.next()
        except Exception as error:
            raise _unreadable(path, error) from error
        if info is None:
            return
        tar.members.clear()  # type: ignore[attr-defined]  # the library would keep all of them
        if info.isfile() and PurePosixPath(info.name).name:
            yield info


def _unreadable(path: Path, error: Exception) -> ShardError:
    remedy = "expected one that is whole and not compressed. Make it again, or leave it out."
    return ShardError(f"{path}: cannot be read as a tar ({error}), {remedy}", type(error).__name__)


def _check_size(info: tarfile.TarInfo, end: int, before: int, path: Path) -> None:
    """A header may claim any size; what is read is what the file has.

    Raises:
        ShardError: it claims more, or the member has holes, whose size is not that of its data.
    """
    name = f"{path}: its member {info.name[:80]!r}"
    if info.sparse is not None:
        raise ShardError(f"{name} is stored with holes, expected plain data. Make the tar again.", "a member with holes")
    if info.size > end - info.offset_data:
        there = max(end - info.offset_data, 0)
        raise ShardError(
            f"{name} claims {info.size} bytes, of which {there} are there. Make the tar again.", "a tar that is cut off"
        )
    if before + info.size > LARGEST_SAMPLE:
        most = LARGEST_SAMPLE >> 20
        raise ShardError(f"{name} makes a sample of more than {most} MB, expected less. Make the tar again.", "a sample that is too large")


def read_samples(folder: Path) -> Iterator[Sample]:
    """Every sample of the finished shards of a folder, in the order of their names."""
    for tar in finished(folder).tars:
        for raw in raw_tar_samples(tar):
            yield decode_sample(raw)


def stack_views(samples: Iterable[Sample]) -> Tensor:
    """The first view of each sample as float32: (N, C, h, w); a posterior's mean."""
    return torch.stack([next(iter(_point(sample).values()))[0].float() for sample in samples])


def _point(sample: Sample) -> dict[str, Tensor]:
    return {"mean": sample.latent["mean"]} if "mean" in sample.latent else sample.latent
