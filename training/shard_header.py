"""The header of a folder of shards, dataset.json, and JSON objects of such a folder, which may come from anywhere."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..models.files import write_whole
from ..models.own_spaces import space_of_dict
from ..models.strict_json import short

FORMAT = 1
HEADER = "dataset.json"
LARGEST_JSON = 64 << 20  # bytes: a header has some kB, an index about 100 bytes for each sample


class ShardError(ValueError):
    """A shard or data set that cannot be used; the message says what it is and what to do.

    Attributes:
        reason: a few words without the file's name, under which faults of a kind are counted; "": the message's first sentence.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Dataset:
    """Header of a folder of shards: the content of `dataset.json`.

    Attributes:
        space: of the latents, as `models.own_spaces.space_as_dict` writes it.
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
        write_whole(folder / HEADER, json.dumps(asdict(self), indent=2))


def read_dataset(folder: Path) -> Dataset:
    """The header of a folder of shards.

    Raises:
        ShardError: there is none, it is of another format, or a part of it is not what it is to be.
    """
    path = folder / HEADER
    try:
        content = read_object(path)
    except OSError as error:
        raise ShardError(f"{folder}: no data set of shards ({HEADER}: {error}). Make one with: latent-clip embed") from error
    if (found := content.get("format")) != FORMAT or isinstance(found, bool):
        raise ShardError(
            f"{path}: shards of format {short(found)}, expected {FORMAT}. Use the version of this pack that made them, if it is a header of shards."
        )
    try:
        dataset = Dataset(**content)
        _check_header(dataset)
    except (ValueError, TypeError, OverflowError) as error:
        raise ShardError(f"{path}: no header of shards ({error}). Make the folder again with: latent-clip embed") from error
    return dataset


_KINDS = {"dict": (dict,), "dict | None": (dict, type(None)), "str": (str,), "bool": (bool,), "int": (int,)}


def _check_header(dataset: Dataset) -> None:
    """Raises: ValueError: a part is of another type, or what is read of it is not there."""
    for field in fields(dataset):
        value = getattr(dataset, field.name)
        if not isinstance(value, _KINDS[str(field.type)]):
            raise ValueError(f"got {short(value)} as {field.name}, expected {field.type}")
    space_of_dict(dataset.space)
    side, names = dataset.views.get("side"), dataset.views.get("names", [])
    if not isinstance(side, int) or isinstance(side, bool) or not 0 < side < 100_000:
        raise ValueError(f"got {short(side)} as the side of its views, expected a number of pixels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"got {short(names)} as the names of its views, expected a list of texts")
    for part, record in (("vae", dataset.vae), ("teacher", dataset.teacher)):
        if record is not None and not all(isinstance(record.get(key, ""), str) for key in ("name", "sha256", "licence")):
            raise ValueError(f"got {short(record)} as {part}, expected texts as its name, sha256 and licence")
    if dataset.teacher is not None and "name" not in dataset.teacher:
        raise ValueError("got a teacher without a name")
    _check_signature(dataset.vae.get("signature"))


def _check_signature(signature: object) -> None:
    if signature is None:
        return
    lists = signature.values() if isinstance(signature, dict) else [None]
    if not all(isinstance(values, list) and values and all(map(_is_number, values)) for values in lists):
        raise ValueError("got a signature of the VAE that is not lists of finite numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6 and math.isfinite(value)


def read_object(path: Path) -> dict:
    """A JSON object from a file in UTF-8.

    Raises:
        OSError: it cannot be read. ShardError: it is too large, or no such object.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON + 1)
    try:
        if len(content) > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MB")
        found = json.loads(content.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError(f"got {short(found)}")
    except RecursionError as error:
        raise ShardError(f"{path}: nested too deeply, expected a JSON object that latent-clip embed wrote. Take it out of the folder.") from error
    except ValueError as error:
        raise ShardError(f"{path}: {error}, expected a JSON object that latent-clip embed wrote. Take it out of the folder.") from error
    return found
