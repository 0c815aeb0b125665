"""Files that are there whole or not at all, one writer for a folder, and the names by which a command knows its own leftovers.

A file is written under a name of its own, which says whose it is: `.NAME.HOST.PID.RANDOM.part`. It is on the disk before it takes
its name. What a killed process has left is known by that name, and removed by the next one that holds the folder's lock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

LOGGER = logging.getLogger(__name__)
LOCK = ".latent-clip.lock"
LOCKED_BYTE = 1 << 30  # Windows does not let others read a byte that is locked; this one lies behind what the file says
OLD = 24 * 3600.0  # seconds after which an unfinished file of another machine is a leftover
_PART = re.compile(r"\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")


class InUseError(ValueError):
    """A folder that another process writes into; the message says which one."""


class ExistsError(ValueError):
    """A file that would be written over; the message says which one, and what to do."""


def check_new(path: Path, force: bool) -> None:
    """Refuse to write over a file, before any work is done.

    Raises:
        ExistsError: it is there, and `force` is false, or it is a folder.
    """
    if path.is_dir():
        raise ExistsError(f"{path}: is a folder, expected the name of a file to write.")
    if path.exists() and not force:
        raise ExistsError(f"{path}: is there already, and is left as it is. Choose another name, or replace it with --force.")


@contextmanager
def replacing(path: Path, check: Callable[[Path], None] = lambda part: None) -> Iterator[Path]:
    """Give the name of an unfinished file; what was written there takes the name `path` at the end, or nothing happens.

    Args:
        check: called with the unfinished file before it takes its name; where it raises, `path` stays as it was.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    part = part_of(path)
    try:
        yield part
        sync(part)
        check(part)
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)) or "cannot be written" in str(error):
            raise
        raise OSError(f"{path}: cannot be written ({error.strerror}). Free some space, and start again.") from error
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """A new name beside `path`, which says which process writes it."""
    name = path.name if len(path.name) <= 60 else hashlib.sha256(path.name.encode()).hexdigest()[:16]
    return path.with_name(f".{name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.part")


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file that is there either whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Be sure that a file, or the names in a folder, are on the disk; of folders where the system can."""
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if folder:  # Windows
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not folder:  # some network disks sync files only
            raise
    finally:
        os.close(descriptor)


def leftovers(folder: Path, names: re.Pattern[str]) -> list[tuple[str, Path]]:
    """Unfinished files in a folder whose process is gone: the name that each was to have, and its path.

    Only for the holder of the folder's lock.

    Args:
        names: that whole names must match.
    """
    found = ((match, path) for path in folder.iterdir() if (match := _PART.fullmatch(path.name)))
    return sorted(
        (match["name"], path) for match, path in found
        if names.fullmatch(match["name"]) and path.is_file() and not path.is_symlink() and _is_left(match, path)
    )  # fmt: skip


def _is_left(match: re.Match[str], path: Path) -> bool:
    if match["host"] == _host() and os.name != "nt":
        return not _lives(int(match["pid"]))
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > OLD
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # of another user
    return True


def _host() -> str:
    return re.sub(r"[^\w-]", "_", platform.node())[:40] or "unknown"


# --------------------------------------------------------------------------------------------------------------- the lock


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other writers off a folder. The system lets go of the lock when the process ends, however it ends.

    Raises:
        InUseError: another process has it; says which one, on which machine, and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor, owner = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), os.getpid()
    _HELD.add(descriptor)
    try:
        _take(descriptor, path)
        yield
    finally:
        if os.getpid() == owner:  # a forked child has closed its copy
            _HELD.discard(descriptor)
            os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    holder = os.pread(descriptor, 1000, 0) if hasattr(os, "pread") else os.read(descriptor, 1000)
    who = _who(holder)
    if holder and not holder.startswith(_START):
        raise InUseError(f"{path}: is no lock of this program, and is left as it is. Choose another folder.")
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            LOGGER.warning("%s: this disk has no locks (%s). Do not start a second run in the same folder.", path.parent, error.strerror)
        else:
            raise InUseError(
                f"{path.parent}: {who or 'another process'} writes into this folder. Wait until it has ended, or choose another folder."
            ) from error
    content = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(content).encode())


def _who(content: bytes) -> str | None:
    """The holder as a lock names it; None where the file is no lock."""
    try:
        holder = json.loads(content)
        return f"process {int(holder['pid'])} on {holder['host']}, since {holder['since']},"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD: set[int] = set()
_START = b'{"pid": '  # of a lock that was written by this program


def _let_go() -> None:
    """Forget the lock in a forked child: it is the parent's, and ends with it."""
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
