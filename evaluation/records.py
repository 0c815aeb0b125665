"""Results as JSON lines, appended as they come: a run that is stopped at any moment goes on from what is in the file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import EvaluationError


def read_records(path: Path) -> list[dict]:
    """The lines of a file; [] where there is none. A half-written last line is left out.

    Raises:
        EvaluationError: another line is no JSON object, so that a result would be missing unseen.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # a line counts once it has its end
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise EvaluationError(
                f"{path}: line {number} is {line[:60]!r}, expected a JSON object. Remove that line; what it held is made again."
            )
        found.append(record)
    return found


def append_records(path: Path, records: Iterable[dict]) -> None:
    """Add whole lines, and be sure that they are on the disk. A half-written last line of an earlier run goes."""
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end and not _ends_a_line(file, end):
            content = path.read_bytes()
            file.truncate(content.rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file that is there either whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{hashlib.sha256(path.name.encode()).hexdigest()[:16]}.{os.getpid()}.part")  # names may be long
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other runs off a folder. The system lets go of the lock when the process ends, however it ends.

    Raises:
        EvaluationError: another run is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
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


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _ends_a_line(file, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"
