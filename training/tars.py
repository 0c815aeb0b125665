"""WebDataset tars as sources: their names (patterns, braces, lists), and what is in one; only headers and texts are read here.

Sizes in a tar are claims: a member is read only when it is no longer than its kind may be, and a sparse one never.
"""

from __future__ import annotations

import glob
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ..models.pictures import LARGEST_FILE, SUFFIXES
from .captions import BESIDE, LONGEST_TEXT, CaptionFault, SourceError, captions_in, pair

UNPACK = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".tbz2": "bunzip2", ".xz": "unxz", ".txz": "unxz", ".zst": "unzstd", ".tzst": "unzstd", ".lz4": "unlz4"}
MAGIC = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\x00": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
MOST_TARS = 1_000_000  # that one brace pattern may name


class CompressedError(SourceError):
    """A compressed tar, in which a picture has no place of its own."""


@dataclass
class Content:
    """A tar.

    Attributes:
        pictures: name → (offset, bytes). captions: of pictures that have some.
        left_out, unread: pictures and texts that are passed over, by reason; lists of their names.
        broken: why it could not be read to its end; "" where it could.
    """

    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, list[str]] = field(default_factory=dict)
    broken: str = ""


def names_tars(source: str) -> bool:
    """Return true for a source that is a tar, a pattern of tars, or a list of them with ::."""
    return PurePosixPath(source).suffix.lower() in (".tar", *UNPACK) and not Path(source).is_dir()


def tars_of(source: str) -> list[str]:
    """The tars that a source names, in order, each once.

    Raises:
        SourceError: there are none, or some are compressed.
    """
    parts = source.split("::")  # of webdataset; fsspec chains addresses with the same sign
    parts = parts if all(names_tars(part) for part in parts) else [source]
    patterns = [pattern for part in parts for pattern in _without_braces(part)]
    found = list(dict.fromkeys(tar for pattern in patterns for tar in _glob(pattern)))
    if not found:
        raise SourceError(f"{source}: no such tar.")
    if packed := [tar for tar in found if PurePosixPath(tar).suffix.lower() in UNPACK]:
        raise _compressed(packed[0], UNPACK[PurePosixPath(packed[0]).suffix.lower()], len(packed))
    return found


def _compressed(tar: str, unpack: str, count: int = 1) -> CompressedError:
    name = PurePosixPath(tar).name
    stem = re.sub(r"(\.tar)?\.[^.]+$", "", name)
    others = f" (and {count - 1} more)" if count > 1 else ""
    return CompressedError(
        f"{tar}{others}: is compressed, expected a plain .tar, in which each picture can be read from its place. Unpack it: "
        f"{unpack} -c {name} > {stem}{'-plain' if name.endswith('.tar') else ''}.tar"
    )


def _without_braces(pattern: str) -> list[str]:
    if "{" not in pattern or Path(pattern).exists():
        return [pattern]
    try:
        from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]
    except ImportError as error:
        raise SourceError(f"{pattern}: braces need the package braceexpand. Install it, or write * for them.") from error
    ranges = [abs(int(last) - int(first)) for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    found: list[str] = []
    try:
        if max(ranges, default=0) < MOST_TARS:  # braceexpand counts a range to its end before it gives the first name
            found = list(islice(braceexpand(pattern), MOST_TARS + 1))
    except (UnbalancedBracesError, ValueError) as error:
        raise SourceError(f"{pattern}: {error}. Expected a pattern such as {{00000..00041}}.tar.") from error
    if not 0 < len(found) <= MOST_TARS:
        raise SourceError(f"{pattern}: names more than {MOST_TARS} tars. Write * for the braces, which names those that are there.")
    return found


def _glob(pattern: str) -> list[str]:
    if "://" in pattern:
        import fsspec

        return sorted(str(file.full_name) for file in fsspec.open_files(pattern, "rb"))
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [pattern]  # named one by one: where it is missing, that is said
    return sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())  # noqa: PTH207  Path.glob has no pattern of folders


def read_tar(path: str, open_file: Callable[[str], BinaryIO]) -> Content:
    """Pictures of a tar and their captions, as far as it can be read.

    Raises:
        CompressedError: it is compressed under the name .tar.
    """
    content, texts = Content(), dict[str, list[str]]()
    try:
        with open_file(path) as file:
            start = file.read(6)
            if unpack := next((unpack for magic, unpack in MAGIC.items() if start.startswith(magic)), None):
                raise _compressed(path, unpack)
            file.seek(0)
            _read(file, content, texts)
    except SourceError:
        raise
    except FileNotFoundError:
        content.broken = "no such file"
    except Exception as error:  # tarfile raises TarError, but also ValueError, struct.error, RecursionError and MemoryError
        content.broken = (" ".join(str(error).split()) or type(error).__name__)[:200]
    _hand_out(content, texts)
    return content


class _Bounded:
    """A file for tarfile, which believes a header that says how long the next header is."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= 2 * LONGEST_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _read(file: BinaryIO, content: Content, texts: dict[str, list[str]]) -> None:
    end, seen = file.seek(0, 2), set[str]()
    file.seek(0)
    with tarfile.open(fileobj=cast(BinaryIO, _Bounded(file)), mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps every header
            suffix, name = PurePosixPath(info.name).suffix.lower(), info.name
            if not info.isfile() or PurePosixPath(name).name.startswith(".") or suffix not in (*SUFFIXES, *BESIDE):
                continue
            kind = content.left_out if suffix in SUFFIXES else content.unread
            most = LARGEST_FILE if suffix in SUFFIXES else LONGEST_TEXT
            if reason := _fault(info, most, end, name in seen):
                kind.setdefault(reason, []).append(name)
            elif suffix in SUFFIXES:
                content.pictures[name] = (info.offset_data, info.size)
            else:
                try:
                    texts[name] = captions_in(tar.extractfile(info).read(), suffix)
                except CaptionFault as fault:
                    kind.setdefault(str(fault), []).append(name)
            seen.add(name)


def _fault(info: tarfile.TarInfo, most: int, end: int, seen: bool) -> str:
    if seen:
        return "named twice in its tar"
    if info.issparse():
        return "sparse in its tar"
    if info.size > most:
        return "too large a file" if most == LARGEST_FILE else f"longer than {most} bytes"
    if info.offset_data + info.size > end:
        return "cut off at the end of its tar"
    return "" if info.size or most == LONGEST_TEXT else "no picture"


def _hand_out(content: Content, texts: dict[str, list[str]]) -> None:
    for picture, names in pair(list(content.pictures), list(texts)).items():
        if captions := list(dict.fromkeys(caption for name in names for caption in texts[name])):
            content.captions[picture] = captions


def broken_tars(found: dict[str, Content]) -> list[str]:
    """Lines for the report: each tar that could not be read to its end, and the number of its pictures that are used.

    Raises:
        SourceError: more than half of the tars are broken before their first picture.
    """
    lines = [
        f"{name}: broken ({content.broken}); {f'the {len(content.pictures)} pictures before are used' if content.pictures else 'passed over'}. "
        "Download it again."
        for name, content in found.items() if content.broken
    ]  # fmt: skip
    useless = [f"{name}: {content.broken}" for name, content in found.items() if content.broken and not content.pictures]
    if len(useless) * 2 > len(found):
        raise SourceError(f"{len(useless)} of {len(found)} tars cannot be read, expected at most half, such as {useless[0]}. Download them again.")
    return lines


def reasons(found: dict[str, Content]) -> Counter[str]:
    """Count the pictures of the tars that are left out, by reason."""
    return Counter(reason for content in found.values() for reason, names in content.left_out.items() for _ in names)
