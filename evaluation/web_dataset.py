"""Items of WebDataset tars in CLIP_benchmark's layout: a picture and a .cls file with its label under one name."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..models.pictures import LARGEST_FILE, SUFFIXES
from . import EvaluationError


@dataclass(frozen=True)
class Item:
    """A labelled picture before it is decoded; `fault`: reason why it cannot be, or ""."""

    name: str
    content: bytes = b""
    label: int = 0
    fault: str = ""


def items_of_tars(shards: Iterable[Path]) -> Iterator[Item]:
    """Yield the labelled pictures of tars, in order.

    Raises:
        EvaluationError: a tar is damaged.
    """
    for shard in shards:
        yield from _from_tar(shard)


def _from_tar(shard: Path) -> Iterator[Item]:
    """Yield the items of a tar. Members that share a name up to its first dot are adjacent, as in WebDataset."""
    key, parts = "", dict[PurePosixPath, bytes | str]()
    for path, content in _members(shard):
        own = str(path.with_name(path.name.partition(".")[0] or "."))
        if own != key and parts:
            yield from _samples(shard, key, parts)
            parts = {}
        key = own
        parts[path] = content
    if parts:
        yield from _samples(shard, key, parts)


def _members(shard: Path) -> Iterator[tuple[PurePosixPath, bytes | str]]:
    """Yield names and contents; for a member that is not read, the reason in place of its content."""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                if path.suffix.lower() not in SUFFIXES | {".cls"}:
                    yield path, b""
                elif member.issparse() or member.size > (LARGEST_FILE if path.suffix.lower() != ".cls" else 100):
                    yield path, "sparse in its tar" if member.issparse() else "too large a file"
                else:
                    yield path, tar.extractfile(member).read()
    except Exception as error:  # also zlib.error, struct.error, EOFError of compressed and damaged ones
        raise EvaluationError(f"{shard}: broken off or no tar ({error}). Download it again.") from error


def _samples(shard: Path, key: str, parts: dict[PurePosixPath, bytes | str]) -> Iterator[Item]:
    """Pair pictures with labels of the same name up to the last dot; without such a pair, the first picture with the first label."""
    pictures = {path: content for path, content in parts.items() if path.suffix.lower() in SUFFIXES}
    labels = {path.with_suffix(""): content for path, content in parts.items() if path.suffix.lower() == ".cls"}
    pairs = [(content, labels[path.with_suffix("")]) for path, content in pictures.items() if path.with_suffix("") in labels]
    if len(pairs) > 1 and len(labels) == 1:
        pairs = pairs[:1]  # one picture in two formats
    for content, label in pairs or [(next(iter(pictures.values()), ""), next(iter(labels.values()), ""))]:
        yield _sample(f"{shard}:{key}", content, label, ", ".join("".join(path.suffixes) for path in parts))


def _sample(name: str, picture: bytes | str, label: bytes | str, kinds: str) -> Item:
    try:
        number = int(label if isinstance(label, str) else label.decode())
    except ValueError:
        return Item(name, fault=f"has {kinds}, expected a picture and a number in .cls")
    if isinstance(picture, str):
        return Item(name, fault=picture or f"has {kinds}, expected a picture and a number in .cls")
    return Item(name, picture, number)
