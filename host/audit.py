"""The safety gate's log: one JSON line per judged batch, append-only, rotated by size, safe with several writers."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import folder_paths

MAX_BYTES = 10_000_000
KEPT = 5  # full files beside the current one
_in_process = threading.Lock()


def audit_file() -> Path:
    """ComfyUI's user folder/latent_clip/safety.jsonl."""
    return Path(folder_paths.get_user_directory()) / "latent_clip" / "safety.jsonl"


def write_record(record: dict, path: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
    """Append one record with the time in UTC.

    Raises:
        OSError: the file cannot be written.
    """
    path = path or audit_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **record}) + "\n"
    with _locked(path.with_suffix(".lock")):
        if path.exists() and path.stat().st_size + len(line) > max_bytes:
            _rotate(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)


def _rotate(path: Path) -> None:
    """safety.jsonl becomes safety.1.jsonl, 1 becomes 2, and so on; the oldest goes."""
    for number in range(KEPT, 0, -1):
        older = path.with_suffix(f".{number}.jsonl")
        newer = path.with_suffix(f".{number - 1}.jsonl") if number > 1 else path
        if newer.exists():
            newer.replace(older)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the threads of this process and among all processes that write here."""
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
