"""Files of a folder, here or at an address of fsspec, and the tables of captions among them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..models.pictures import SUFFIXES
from .captions import SourceError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class Listing:
    """A folder: name → path of its files; names of `gone` pictures (links that lead nowhere), and folders that are `closed`."""

    files: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def files_of(source: str) -> Listing:
    """Every file below a folder.

    Raises:
        SourceError: it is not there.
    """
    return _remote(source) if "://" in source else _local(source)


def kind_of(name: str) -> str:
    """The suffix in small letters; none of a hidden file."""
    path = PurePosixPath(name)
    return "" if path.name.startswith(".") else path.suffix.lower()


def _remote(source: str) -> Listing:
    import fsspec

    files, root = fsspec.core.url_to_fs(source)
    scheme = source.partition("://")[0]
    return Listing({
        str(PurePosixPath(path).relative_to(root)): f"{scheme}://{path.lstrip('/') if scheme != 'file' else path}"
        for path in files.find(root)
    })  # fmt: skip


def _local(source: str) -> Listing:
    """Also in folders that are links; each folder once."""
    root, found, seen = Path(source), Listing(), set[tuple[int, int]]()
    if not root.is_dir():
        raise SourceError(f"{source}: no such folder.")
    for folder, below, files in os.walk(root, onerror=lambda error: found.closed.append(str(error.filename)), followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below.sort()
        for file in sorted(files):
            path = Path(folder, file)
            name = path.relative_to(root).as_posix()
            if path.is_file():
                found.files[name] = str(path)
            elif kind_of(name) in SUFFIXES:
                found.gone.append(name)
    return found


def tables_of(files: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Tables that belong to a folder by their names, with the ids that they are about."""
    for name in sorted(files):
        folder, slash, last = name.rpartition("/")
        if last in METADATA:
            yield files[name], f"{clean(folder)}{slash}"
        elif is_img2dataset(last):
            yield files[name], f"{clean(folder)}{slash}{last.partition('.')[0]}/"


def is_img2dataset(path: str) -> bool:
    """Return true for a table that img2dataset writes beside each tar or folder: 00041.parquet."""
    return re.fullmatch(r"\d+\.parquet", PurePosixPath(path.replace("\\", "/")).name) is not None


def clean(name: str) -> str:
    """A name without bytes that are no UTF-8, which neither JSON nor a terminal takes."""
    return name.encode("utf-8", "backslashreplace").decode()
