"""What a node reads from disk, as a text. Where it has changed since the last run, the host runs the node again.

The host's cache goes by a node's inputs alone, and a file's name stays the same when its content changes.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from ..models.strict_json import MAX_BYTES


def weights_fingerprint(paths: Iterable[str | Path]) -> str:
    """Sizes, times (of the content and of the inode) and inodes of weights, and those of the `.json` that may lie beside each: nothing is read."""
    return "\n".join(_state(path) for weights in paths for path in (Path(weights), Path(weights).with_suffix(".json")))


def text_fingerprint(paths: Iterable[str | Path]) -> str:
    """Digests of small files."""
    return "\n".join(_digest(Path(path)) for path in paths)


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        return f"{path} {type(error).__name__}"
    # a file that was moved here may have kept its time, and one that was overwritten may have been given its old time back
    return f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ino} {found.st_ctime_ns}"


def _digest(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            return _state(path)
        return f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        return f"{path} {type(error).__name__}"
