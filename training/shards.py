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

NAME.index.json beside NAME.tar lists the ids in it and what was left out, with the reasons. It is written last, so that a tar
without it is a torn one: it is written again, and a row counts as done when an index has it. `dataset.json` says what is the same
for all: latent space, VAE, teacher, views.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..models.checkpoint import read_tensor_bytes
from .sample_check import check_tensors

FORMAT = 1
HEADER = "dataset.json"
INDEX = ".index.json"


class ShardError(ValueError):
    """A shard or data set that cannot be used; the message says what it is and what to do."""


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


@dataclass(frozen=True)
class Dataset:
    """What all shards of a folder have in common: the content of `dataset.json`.

    Attributes:
        space: of the latents, as `models.latent_spaces.LatentSpace.as_dict` writes it.
        vae: the VAE's file name and sha256, and the signature of its encoder (`models.vae_signature`). teacher: file name, sha256 and open_clip config of the teacher, or None.
        views: names such as "centre", "random", "flip", and the side in pixels.
        licence: of the pictures, as whoever made the data set says it.
        predictions: which diffusion model made them, at how many levels, with what guidance.
    """

    space: dict
    vae: dict
    views: dict
    teacher: dict | None = None
    source: str = ""
    licence: str = ""
    moments: bool = False
    predictions: dict | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / HEADER, json.dumps(asdict(self), indent=2).encode())


def read_dataset(folder: Path) -> Dataset:
    """The header of a folder of shards.

    Raises:
        ShardError: there is none, or it is of another format.
    """
    try:
        content = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        dataset = Dataset(**content)
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(
            f"{folder}: no data set of shards ({HEADER}: {error}). Make one with: latent-clip embed"
        ) from error
    if dataset.format != FORMAT:
        raise ShardError(
            f"{folder}: shards of format {dataset.format}, expected {FORMAT}. Use the version of this pack that made them."
        )
    return dataset


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
    """Write one tar and its index. Its name comes from the ids in it, so a batch that is written again replaces itself.

    Args:
        skipped: (id, reason) of rows that were left out.

    Returns:
        The tar; None where nothing was to be written.
    """
    samples, skipped = list(samples), list(skipped)
    ids = [sample.id for sample in samples]
    if not ids and not skipped:
        return None
    name = hashlib.sha256("\n".join([*ids, "|", *(row for row, _ in skipped)]).encode()).hexdigest()[:16]
    path, half = folder / f"{name}.tar", folder / f"{name}.tar.part"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(half, "w") as tar:
        for sample in samples:
            for extension, content in members(sample):
                info = tarfile.TarInfo(f"{key_of(sample.id)}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    half.replace(path)
    patches = sum("patches" in sample.teacher for sample in samples)
    index = {"tar": path.name, "bytes": path.stat().st_size, "ids": ids, "skipped": skipped, "patches": patches}
    _write(folder / f"{name}{INDEX}", json.dumps(index).encode())
    return path


def _write(path: Path, content: bytes) -> None:
    half = path.with_name(f"{path.name}.part")
    half.write_bytes(content)
    half.replace(path)


@dataclass(frozen=True)
class Done:
    """What a folder of shards holds by its indexes; `patched`: the tars in which the teacher's patches are."""

    tars: list[Path]
    ids: set[str]
    skipped: dict[str, str]
    patched: list[Path]


def finished(folder: Path) -> Done:
    """Read every index; remove what a stopped run left half written.

    Raises:
        ShardError: an index names a tar that is gone or of another size.
    """
    tars, patched, ids, skipped = [], [], set(), {}
    for index in sorted(folder.glob(f"*{INDEX}")):
        content = json.loads(index.read_text(encoding="utf-8"))
        tar = folder / content["tar"]
        if not tar.is_file() or tar.stat().st_size != content["bytes"]:
            raise ShardError(
                f"{tar}: missing or cut off, expected {content['bytes']} bytes. Remove {index.name} to have its rows made again."
            )
        tars.append(tar)
        patched += [tar] * bool(content["patches"])
        ids.update(content["ids"])
        skipped.update(dict(content["skipped"]))
    for torn in [*folder.glob("*.part"), *(tar for tar in folder.glob("*.tar") if tar not in set(tars))]:
        torn.unlink()
    return Done(tars, ids, skipped, patched)


def drop_repeats(folder: Path) -> int:
    """Write shards again without the rows that an earlier one has; returns how many rows that were.

    Two runs at once, or the workers of one that was killed, can embed the same picture.
    """
    seen: set[str] = set()
    dropped = 0
    for index in sorted(folder.glob(f"*{INDEX}")):
        content = json.loads(index.read_text(encoding="utf-8"))
        repeated = [row for row in content["ids"] if row in seen]
        seen.update(content["ids"])
        if repeated:
            tar, dropped = folder / content["tar"], dropped + len(repeated)
            kept = [sample for raw in raw_tar_samples(tar) if (sample := decode_sample(raw)).id not in set(repeated)]
            index.unlink()
            tar.unlink()
            write_shard(folder, kept, [(row, reason) for row, reason in content["skipped"]])
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
    """Members by extension of every sample of a tar, in its order; a sample's members stand together."""
    with tarfile.open(path) as tar:
        key: str | None = None
        current: dict[str, bytes] = {}
        for info in tar:
            if not info.isfile():
                continue
            stem, _, extension = Path(info.name).name.partition(".")
            stem = str(Path(info.name).with_name(stem))
            if stem != key and current:
                yield current
                current = {}
            key, current = stem, current | {"__key__": stem.encode()}
            current[extension] = tar.extractfile(info).read()
        if current:
            yield current


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
