"""Sources of pictures and captions: folders, and tars of WebDataset, here or at any address that fsspec knows.

A source is a list of records before any picture is read, so that a run can leave out what an earlier one has done.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..models.pictures import LARGEST_FILE, SUFFIXES, Skipped, read_upright
from .captions import BESIDE, LONGEST_TEXT, CaptionFault, SourceError, captions_in, pair, read_table
from .folders import clean, files_of, is_img2dataset, kind_of, tables_of
from .matching import PictureNames, examples, match
from .tars import Content, broken_tars, names_tars, read_tar, reasons, tars_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CLOSED", "ImageRecord", "Source", "SourceError", "picture_of", "read_source", "records_of"]
CLOSED = "cannot be opened"  # the reason of a picture or text whose bytes cannot be had
NOT_READ = {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".ico", ".dng", ".cr2", ".nef", ".arw", ".mp4", ".mov", ".tar"}


@dataclass(frozen=True)
class ImageRecord:
    """One picture before it is read.

    Attributes:
        id: relative path, or tar and member: unique in its source, the same in every run.
        path: of the file or of the tar. offset, size: of its bytes in the tar; size 0: the whole file.
    """

    id: str
    path: str
    captions: list[str] = field(default_factory=list)
    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            OSError: gone or unreadable.
            Skipped: larger than a picture may be.
        """
        if "://" not in self.path and not self.size and Path(self.path).stat().st_size > LARGEST_FILE:
            raise Skipped("too large a file")
        with _open(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size) if self.size else file.read() if "://" not in self.path else file.read(LARGEST_FILE + 1)


@dataclass(frozen=True)
class Source:
    """Pictures of a source, and notes about them for the report.

    Attributes:
        records: pictures in the order of their ids. left_out: pictures without a record, by reason. notes: lines for the report.
    """

    records: list[ImageRecord]
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def picture_of(record: ImageRecord) -> Image | str:
    """Return the picture, upright, or the reason why it is left out."""
    try:
        return read_upright(record.read())
    except Skipped as reason:
        return str(reason)
    except Exception:  # OSError here, and anything at an address of fsspec
        return CLOSED


def records_of(source: str, captions: str | None = None) -> list[ImageRecord]:
    """Return the records of `read_source`."""
    return read_source(source, captions).records


def read_source(source: str, captions: str | None = None, require_captions: bool = False) -> Source:
    """Every picture of a source with all its captions.

    Args:
        source: a folder, or a .tar, a pattern of tars such as shards/*.tar or {000..041}.tar, or several with ::; any fsspec address.
        captions: a .jsonl, .csv, .tsv, .parquet or .json that names pictures; its captions come in place of any others. Default: .txt, .caption and
            .json beside each picture, metadata.jsonl, .csv or .parquet in any folder, and the .parquet of img2dataset, all together.
        require_captions: leave out pictures without a caption.

    Raises:
        SourceError: nothing is there, most of it is broken, or the captions cannot be read.
    """
    records, found, tables = _tar_records(source) if names_tars(source) else _folder_records(source)
    if not records:
        tars = f" Its tars are read as {source.rstrip('/')}/*.tar." if any(".tar" in note for note in found.notes) else ""
        raise SourceError(
            f"{source}: no pictures there ({', '.join(sorted(SUFFIXES))}). Name a folder of pictures or a .tar of them.{tars}"
        )
    records, lines = _with_tables(records, source, tables, captions)
    found.notes.extend(lines)
    have = sum(bool(record.captions) for record in records)
    found.notes.insert(0, f"captions: {have} of {len(records)} pictures have one, {sum(len(record.captions) for record in records)} captions in all")
    if require_captions:
        found.left_out.update({"no caption": len(records) - have} if have < len(records) else {})
        records = [record for record in records if record.captions]
        if not records:
            raise SourceError(f"{source}: no picture has a caption, expected some. Leave --require-captions out, or name a table with --captions.")
    return Source(sorted(records, key=lambda record: record.id), found.left_out, found.notes)


def _with_tables(records: list[ImageRecord], source: str, tables: list[tuple[str, str]], captions: str | None) -> tuple[list[ImageRecord], list[str]]:
    """Rows with the captions of tables, and lines about the tables.

    Args:
        tables: path and the id prefix of the pictures that it is about. captions: the table that the user names.
    """
    by_id, lines = {record.id: record for record in records}, list[str]()
    for path, scope in [(captions, "")] if captions else tables:
        names = {id[len(scope):]: id for id in by_id if id.startswith(scope)}
        lacking = any(not by_id[id].captions for id in names.values())
        if not names or (not captions and is_img2dataset(path) and not lacking):
            continue
        found = match(path, read_table(path, _open), PictureNames(list(names), f"{source.rpartition('::')[2]}/{scope}"))
        for name, texts in found.captions.items():
            record = by_id[names[name]]
            by_id[record.id] = replace(record, captions=list(dict.fromkeys(texts if captions and texts else [*record.captions, *texts])))
        label = f"{'' if captions or is_img2dataset(path) else scope}{PurePosixPath(path).name}"
        if found.unmatched:
            lines.append(f"{label}: {len(found.unmatched)} of {found.names} entries match no picture, such as {examples(found.unmatched)}")
        lines += [f"{label}: {count} entries passed over: {reason}" for reason, count in sorted(found.faults.items())]
        lines += [f"{label}: {count} entries match without the folder {front!r} in front of their names" for front, count in found.folders.most_common(3)]
    return list(by_id.values()), lines


def _open(path: str):
    if "://" not in path:
        return Path(path).open("rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _lines(faults: dict[str, list[str]], what: str) -> list[str]:
    return [f"{what} passed over, {reason}: {len(names)}, such as {examples(sorted(names))}" for reason, names in sorted(faults.items())]


def _tar_records(source: str) -> tuple[list[ImageRecord], Source, list[tuple[str, str]]]:
    tars = tars_of(source)
    contents: dict[str, Content] = {}
    records, tables = [], []
    for tar in tars:
        prefix, content = _prefix(tar, tars), read_tar(tar, _open)
        contents[prefix] = content
        records += [
            ImageRecord(clean(f"{prefix}/{name}"), tar, content.captions.get(name, []), offset, size)
            for name, (offset, size) in content.pictures.items()
        ]
        beside = re.sub(r"\.tar$", ".parquet", tar)
        if "://" not in tar and is_img2dataset(beside) and Path(beside).is_file():
            tables.append((beside, f"{prefix}/"))
    unread: dict[str, list[str]] = {}
    for prefix, content in contents.items():
        for reason, names in content.unread.items():
            unread.setdefault(reason, []).extend(f"{prefix}/{name}" for name in names)
    return records, Source([], reasons(contents), [*broken_tars(contents), *_lines(unread, "caption files")]), tables


def _prefix(tar: str, tars: list[str]) -> str:
    """A tar's name, and its folder where names repeat."""
    names = [PurePosixPath(other).name for other in tars]
    return PurePosixPath(tar).name if len(set(names)) == len(names) else tar


def _folder_records(source: str) -> tuple[list[ImageRecord], Source, list[tuple[str, str]]]:
    listing = files_of(source)
    files, found = listing.files, Source([], Counter({CLOSED: len(listing.gone)} if listing.gone else {}))
    pictures = [name for name in files if kind_of(name) in SUFFIXES]
    pairs = pair(pictures, [name for name in files if kind_of(name) in BESIDE])
    unread: dict[str, list[str]] = {}
    records = []
    for name in pictures:
        captions = [text for beside in pairs.get(name, []) for text in _beside(beside, files[beside], unread)]
        records.append(ImageRecord(clean(name), files[name], list(dict.fromkeys(captions))))
    others = Counter(kind_of(name) for name in files if kind_of(name) in NOT_READ)
    found.notes.extend(f"not read: {count} {kind} files" for kind, count in sorted(others.items()))
    found.notes.extend(f"folder passed over, it cannot be opened: {clean(folder)}" for folder in listing.closed)
    found.notes.extend(_lines(unread, "caption files"))
    return records, found, list(tables_of(files))


def _beside(name: str, path: str, unread: dict[str, list[str]]) -> list[str]:
    """Captions of one text file; a fault is noted."""
    try:
        with _open(path) as file:
            return captions_in(file.read(LONGEST_TEXT + 1), PurePosixPath(name).suffix.lower())
    except CaptionFault as fault:
        unread.setdefault(str(fault), []).append(clean(name))
    except Exception:  # OSError here, and anything at an address of fsspec
        unread.setdefault(CLOSED, []).append(clean(name))
    return []
