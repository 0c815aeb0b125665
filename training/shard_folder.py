"""A folder of shards: the index beside every tar; read by anybody, cleaned by its only writer.

Ours in such a folder are dataset.json, NAME.tar and NAME.index.json, where NAME is 16 hexadecimal digits, and unfinished files whose
names say which process writes them (`models.files`). Everything else belongs to others and is never opened, moved or removed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..models.files import leftovers, write_whole
from ..models.strict_json import short
from .shard_header import ShardError, read_object

INDEX = ".index.json"
TRIES = 3  # to read a folder that its writer changes
_NAME = re.compile(r"[0-9a-f]{16}")
_OURS = re.compile(r"[0-9a-f]{16}(\.tar|\.index\.json)|dataset\.json")


class _ChangingError(ShardError):
    """An index and its tar do not agree: one is missing or cut off, or they are being written at this moment."""


@dataclass(frozen=True)
class Index:
    """The content of NAME.index.json.

    Attributes:
        tar: NAME.tar beside it; None where every record was left out, or where the shard was replaced by another.
        size: of the tar in bytes. ids: of its samples in their order. skipped: id → reason of records that were left out.
        patches: in how many samples the teacher's patches are.
    """

    path: Path
    tar: Path | None
    size: int
    ids: tuple[str, ...]
    skipped: dict[str, str]
    patches: int

    def is_whole(self) -> bool:
        """Return true where the tar exists and has its size."""
        try:
            return self.tar is not None and self.tar.is_file() and self.tar.stat().st_size == self.size
        except FileNotFoundError:
            return False

    def is_retired(self) -> bool:
        """Return true where its samples are in another shard."""
        return self.tar is None and not self.skipped


def index_bytes(tar: str | None, size: int, ids: list[str], skipped: list[tuple[str, str]], patches: int) -> bytes:
    """An `Index` as its file has it."""
    return json.dumps({"tar": tar, "bytes": size, "ids": ids, "skipped": skipped, "patches": patches}).encode()


def read_index(path: Path, name: str = "") -> Index:
    """An index; it may name its own tar and no other file.

    Args:
        name: of the file where it is still unfinished.

    Raises:
        OSError: it cannot be read. ShardError: it is none.
    """
    content = read_object(path)
    name = (name or path.name).removesuffix(INDEX)
    tar, size, ids, skipped, patches = (content.get(key) for key in ("tar", "bytes", "ids", "skipped", "patches"))
    try:
        if not _NAME.fullmatch(name):
            raise ValueError("its name is not 16 hexadecimal digits")
        if tar != f"{name}.tar" and not (tar is None and "tar" in content and ids == []):
            raise ValueError(f"it names the tar {short(tar)}, expected {name}.tar")
        for key, value in (("bytes", size), ("patches", patches)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"it has {short(value)} as {key}, expected a whole number")
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise ValueError(f"it has {short(ids)} as ids, expected a list of texts")
        if not isinstance(skipped, list) or not all(_is_pair(one) for one in skipped):
            raise ValueError(f"it has {short(skipped)} as skipped, expected a list of pairs of texts")
    except ValueError as error:
        raise ShardError(
            f"{path}: no index of a shard: {error}. Take it out of the folder; latent-clip embed makes its records again."
        ) from error
    return Index(path, path.with_name(tar) if tar else None, int(size or 0), tuple(ids), dict(skipped), int(patches or 0))


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def indexes(folder: Path) -> Iterator[Index]:
    """Every index of a folder in the order of their names; those of other programs, such as sharded checkpoints, are passed over.

    Raises:
        ShardError: a file is neither.
    """
    for path in sorted(folder.glob(f"*{INDEX}")):
        if path.name.startswith(".") or path.is_dir() or (path.is_symlink() and not path.exists()):
            continue
        try:
            index = None if _is_of_others(path) else read_index(path)
        except FileNotFoundError as error:
            raise _ChangingError(f"{path}: was there, and is gone. Read the folder again.") from error
        if index is not None:
            yield index


def _is_of_others(path: Path) -> bool:
    """Return true for an object of another program: another name, and no key of an index."""
    if _NAME.fullmatch(path.name.removesuffix(INDEX)):
        return False
    content = read_object(path)
    return bool(content) and not {"tar", "bytes", "ids", "skipped", "patches"} & content.keys()


@dataclass(frozen=True)
class Done:
    """Finished shards of a folder by its indexes; `patched`: the tars in which the teacher's patches are."""

    tars: list[Path]
    ids: set[str]
    skipped: dict[str, str]
    patched: list[Path]


def finished(folder: Path) -> Done:
    """Read every index; nothing is changed, and another process may write into the folder meanwhile.

    Raises:
        ShardError: an index is damaged, or names a tar that is gone or of another size.
    """
    for _ in range(TRIES - 1):
        try:
            return _finished(folder)
        except _ChangingError:
            time.sleep(0.05)
    return _finished(folder, last=True)


def _finished(folder: Path, last: bool = False) -> Done:
    done = Done([], set(), {}, [])
    for index in indexes(folder):
        if index.is_retired() and not last:  # the shard that replaces it may not have been there yet when the names were read
            raise _ChangingError(f"{index.path}: is replaced by another shard at this moment. Read the folder again.")
        if index.ids and index.tar is not None:
            if not index.is_whole():
                raise _ChangingError(
                    f"{index.tar}: missing or cut off, expected {index.size} bytes. Remove {index.path.name} to have its records made again."
                )
            done.tars.append(index.tar)
            done.patched.extend([index.tar] * bool(index.patches))
        done.ids.update(index.ids)
        done.skipped.update(index.skipped)
    return done


# ------------------------------------------------------------------------------------------------------ the only writer


def retire(index: Index) -> None:
    """Take a shard away whose samples are in another one; `clean` ends what a killed process has begun of it."""
    write_whole(index.path, index_bytes(None, 0, [], [], 0))
    _remove_retired(index.path)


def _remove_retired(path: Path) -> None:
    path.with_name(f"{path.name.removesuffix(INDEX)}.tar").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Finish or remove what killed processes have left half written; only for the holder of the folder's lock.

    An index is written before its tar takes its name: where both are whole, only the last step is missing, and is made here.
    """
    for name, part in leftovers(folder, _OURS):
        if name.endswith(INDEX) and not (folder / name).exists() and _could_be_finished(part, name):
            part.replace(folder / name)
        else:
            part.unlink(missing_ok=True)
    for index in list(indexes(folder)):
        if index.is_retired():
            _remove_retired(index.path)


def _could_be_finished(part: Path, name: str) -> bool:
    try:
        index = read_index(part, name)
    except (OSError, ShardError):
        return False
    return index.is_whole() or index.tar is None
