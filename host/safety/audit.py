"""Log of Safety Gate: one JSON line per checked batch, append-only, bounded, safe with several writers.

`safety.jsonl` has every batch, and its oldest file goes when there are too many. `blocked.jsonl` repeats the batches of which something
was blocked: none of its files goes before it is a year old, and where that leaves no room the write fails, so that nobody can push such
a record out by making more of them.
"""

import errno
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import folder_paths

MAX_BYTES = 10_000_000  # of one file
LOGGER = logging.getLogger(__name__)
KEPT = 50  # full files beside the current one, of each of the two logs
NEARLY_FULL = 0.8  # share of the files from which on the log says so
BLOCKED_DAYS = 365  # for which a record of a blocked image is kept at least
TEXT = 4_000  # bytes that are kept of a text
RECORD = 100_000  # bytes of one line; a longer one keeps less of everything
_in_process = threading.Lock()


def audit_file() -> Path:
    """Path of the log: latent_clip/safety.jsonl in ComfyUI's user folder."""
    return Path(folder_paths.get_user_directory()) / "latent_clip" / "safety.jsonl"


def write_record(record: dict, path: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
    """Append one record with the time in UTC; long texts are cut, and their SHA-256 is kept.

    Raises:
        OSError: the record cannot be written, or the log of blocked images is full.
    """
    path = path or audit_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _line({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **record})
    with _locked(path.with_suffix(".lock")):
        if any(record.get("reasons", ())):
            _append(path.with_name("blocked.jsonl"), line, max_bytes, BLOCKED_DAYS)
        _append(path, line, max_bytes, 0)


def _line(record: dict) -> bytes:
    """Write a record as one line of ASCII, of about `RECORD` bytes at most."""
    line = _json(_shortened(record))
    if len(line) > RECORD:
        reasons = record.get("reasons", ())
        counts = {"images": len(reasons), "blocked": sum(map(bool, reasons)), "shortened": _measure(_json(record).decode())}
        line = _json({**_shortened(record, text=200, entries=20), **counts})
    return line + b"\n"


def _json(value: object) -> bytes:
    return json.dumps(value).encode("ascii")


def _shortened(value, text: int = TEXT, entries: int | None = None):
    """Shorten a record: no text is longer than `text` bytes, and no list or object within it than `entries`.

    The rest of a text is known by its SHA-256.
    """
    if isinstance(value, dict):
        return {_shortened(str(key), text): _within(entry, text, entries) for key, entry in value.items()}
    return _within(value, text, entries)


def _within(value, text: int, entries: int | None):
    if isinstance(value, dict):
        return _shortened(dict([*value.items()][:entries]), text, entries)
    if isinstance(value, list | tuple):
        return [_within(entry, text, entries) for entry in value[:entries]]
    if isinstance(value, str) and len(data := value.encode("utf-8", "surrogatepass")) > text:
        return f"{data[:text].decode('utf-8', 'ignore')} … cut: {_measure(value)}"
    return value


def _measure(text: str) -> str:
    """Length and hash of a text, by which the full one can be recognised."""
    data = text.encode("utf-8", "surrogatepass")
    return f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"


def _append(path: Path, line: bytes, max_bytes: int, days: int) -> None:
    """Write a line whole or not at all; one that a crash has torn before it stays a line of its own."""
    size = path.stat().st_size if path.exists() else 0
    if size and size + len(line) > max_bytes:
        _rotate(path, days)
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        if size and not _ends_a_line(file, size):
            line = b"\n" + line
        try:
            os.lseek(file, size, os.SEEK_SET)
            while line:
                line = line[os.write(file, line) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _ends_a_line(file: int, size: int) -> bool:
    os.lseek(file, size - 1, os.SEEK_SET)
    return os.read(file, 1) == b"\n"


def _rotate(path: Path, days: int) -> None:
    """Rotate the log: safety.jsonl becomes safety.1.jsonl, 1 becomes 2, and so on; the oldest goes.

    Raises:
        OSError: there is no room, and the oldest is not that many days old.
    """
    oldest = path.with_suffix(f".{KEPT}.jsonl")
    if oldest.exists() and days and time.time() - oldest.stat().st_mtime < days * 86_400:
        raise OSError(
            errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC,
            f"{path.name} and its {KEPT} older files are full, and none is {days} days old; move them to another folder",
        )
    kept = sum(path.with_suffix(f".{number}.jsonl").exists() for number in range(1, KEPT + 1))
    if days and kept >= KEPT * NEARLY_FULL:
        LOGGER.warning(
            "Safety Gate: %d of at most %d files of %s are full. When all are, blocked images can no longer be written down, and every batch "
            "with one fails. Move the older files to another folder.", kept, KEPT, path.name,
        )  # fmt: skip
    for number in range(KEPT, 0, -1):
        older = path.with_suffix(f".{number}.jsonl")
        newer = path.with_suffix(f".{number - 1}.jsonl") if number > 1 else path
        if newer.exists():
            newer.replace(older)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock against other threads of this process and all other processes that write here."""
    with _in_process, path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if sys.platform == "win32":
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
