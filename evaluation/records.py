"""Append-only JSON lines, atomic files and the lock of a run: a run can be stopped at any moment and continues from its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..models.strict_json import short
from . import EvaluationError

NUMBER = (int, float)
OPTIONAL = (int, float, type(None))
# Fields of every line: name → JSON types. A field that may be null may be missing.
Fields = Mapping[str, tuple[type, ...]]
PICTURE_FIELDS: Fields = {
    "arm": (str,), "prompt": (int,), "number": (int,), "seed": (int,), "file": (str,), "sha256": (str,),
    "seconds": OPTIONAL, "reward": OPTIONAL,
}  # fmt: skip
SCORE_FIELDS: Fields = {
    "arm": (str,), "prompt": (int,), "number": (int,), "sha256": (str, type(None)), "scorer": (str,), "value": NUMBER,
    "verdicts": (bool,), "lower_is_better": (bool,), "note": (str,),
}  # fmt: skip


def read_records(path: Path, fields: Fields | None = None) -> list[dict]:
    """Read the lines of a file; [] without a file. A half-written last line is left out.

    Args:
        fields: fields that every line must have.

    Raises:
        EvaluationError: any other line is no JSON object with these fields; ignoring it would lose a result.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # a line counts once its newline is written
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line, parse_constant=_no_constant if fields else None)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise EvaluationError(
                f"{path}: line {number} is {line[:60]!r}, expected a JSON object. Remove that line; what it held is made again."
            )
        record.update(
            {name: None for name, kinds in (fields or {}).items() if type(None) in kinds and name not in record}
        )
        if odd := next(
            (name for name, kinds in (fields or {}).items() if name not in record or not _is_of(record[name], kinds)),
            None,
        ):
            got = f"the {odd} {short(record[odd])}" if odd in record else f"no {odd}"
            raise EvaluationError(
                f"{path}: line {number} has {got}, expected a line of an evaluation with {', '.join(fields or ())}. "
                "Remove that line, or take another folder if the file is not of a run."
            )
        found.append(record)
    return found


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def append_records(path: Path, records: Iterable[dict]) -> None:
    """Append whole lines and sync them to disk. A half-written last line is removed first.

    Raises:
        EvaluationError: the file ends in something other than a half-written record.
    """
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end and not _ends_a_line(file, end):
            content = path.read_bytes()
            begin = content.rfind(b"\n") + 1
            if content[begin : begin + 1] not in (b"{", b"\0"):  # a power cut leaves zeros
                raise EvaluationError(
                    f"{path}: ends in {content[begin:][:60]!r}, which no evaluation wrote. Take another folder."
                )
            file.truncate(begin)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, content: bytes | str, parts: Path | None = None, sync: bool = True) -> None:
    """Write a file atomically.

    Args:
        parts: folder for the partial file, on the same file system; default: beside `path`.
        sync: sync to disk, against a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = (parts or path.parent) / f".{_hash(path.name)}.{os.getpid()}.part"  # names may be long
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_once(path: Path, content: str, parts: Path | None = None) -> None:
    """Write a file whose content never changes; leave an equal file as it is.

    Args:
        parts: see `write_file`.

    Raises:
        EvaluationError: the file exists with other content.
    """
    if not path.exists():
        write_file(path, content, parts)
    elif not path.is_file() or path.read_bytes() != content.encode():
        raise EvaluationError(
            f"{path}: is there already, with other content than this run writes. Move it away, or take another folder."
        )


def remove_parts(folder: Path, names: Iterable[str]) -> int:
    """Remove partial files of `write_file` that killed processes left in a folder; return their number. Nothing else is touched.

    Only for the holder of the run's lock: no other process writes there, so that every partial file is abandoned.

    Args:
        names: names of the files that a run writes there.
    """
    if not folder.is_dir():
        return 0
    parts = [path for path in folder.iterdir() if _PART.fullmatch(path.name)]
    if not parts:
        return 0
    ours = {_hash(name) for name in names}
    left = [path for path in parts if path.name[1:17] in ours and path.is_file() and not path.is_symlink()]
    for path in left:
        path.unlink()
    return len(left)


_PART = re.compile(r"\.[0-9a-f]{16}\.[0-9]+\.part")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Hash a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs. The system releases the lock when the process ends, also when it is killed.

    Raises:
        EvaluationError: another run holds the lock, or the file .lock is of another program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    if path.exists() and not (path.is_file() and _is_process(path)):
        raise EvaluationError(f"{path}: is no lock of an evaluation, and is left as it is. Take another folder.")
    with path.open("a+") as file:
        try:
            _lock(file.fileno())
        except OSError as error:
            file.seek(0)
            who = file.read().strip() or "unknown"
            raise EvaluationError(
                f"{folder}: another run (process {who}) is in this folder. Wait for it, or take another folder."
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def _is_process(path: Path) -> bool:
    """Return True if the file holds a process number or nothing, as a lock does."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[0-9]{0,20}", file.read(100)) is not None


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows locks one byte at the file's position: take one that nobody reads or writes
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _ends_a_line(file, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"
