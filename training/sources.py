"""Where pictures and captions come from: folders, and tars of WebDataset, here or at any address that fsspec knows.

A source is a list of rows before any picture is read, so that a run can leave out what an earlier one has done.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .pictures import SUFFIXES, Skipped, read_upright

if TYPE_CHECKING:
    from PIL.Image import Image

TEXTS = ("caption", "captions", "text", "txt", "prompt")  # columns that are taken for captions
NAMES = ("file_name", "file", "image", "path", "url", "filename")  # columns that name a picture


class SourceError(ValueError):
    """A source that cannot be read; the message says why and what to do."""


@dataclass(frozen=True)
class Row:
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
        """
        with _open(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size) if self.size else file.read()


def picture_of(row: Row) -> Image | str:
    """The picture, upright, or why it is left out."""
    try:
        return read_upright(row.read())
    except OSError:
        return "cannot be opened"
    except Skipped as reason:
        return str(reason)


def rows_of(source: str, captions: str | None = None) -> list[Row]:
    """Every picture of a source, in the order of its ids.

    Args:
        source: a folder, or a .tar, or a pattern of tars such as shards/*.tar; any fsspec address.
        captions: a .jsonl or .parquet with a column that names the picture and one of its captions; default: the .txt beside
            each picture, or metadata.jsonl / metadata.parquet in the folder.

    Raises:
        SourceError: nothing is there, or the captions cannot be read.
    """
    if source.endswith(".tar"):
        tars = _glob(source)
        if not tars:
            raise SourceError(f"{source}: no such tar.")
        rows = [row for tar in tars for row in _tar_rows(tar, _prefix(tar, tars))]
    else:
        rows = _folder_rows(source, captions)
    if not rows:
        raise SourceError(
            f"{source}: no pictures there ({', '.join(sorted(SUFFIXES))}). Name a folder of pictures or a .tar of them."
        )
    return sorted(rows, key=lambda row: row.id)


def _open(path: str):
    if "://" not in path:
        return Path(path).open("rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _glob(pattern: str) -> list[str]:
    if "://" in pattern:
        import fsspec

        return sorted(str(file.full_name) for file in fsspec.open_files(pattern, "rb"))
    path = Path(pattern)
    return sorted(str(found) for found in path.parent.glob(path.name))


def _prefix(tar: str, tars: list[str]) -> str:
    """What tells a tar from the others: its name, and its folder where names repeat."""
    names = [PurePosixPath(other).name for other in tars]
    return PurePosixPath(tar).name if len(set(names)) == len(names) else tar


def _folder_rows(source: str, captions: str | None) -> list[Row]:
    if "://" in source:
        import fsspec

        files, root = fsspec.core.url_to_fs(source)
        scheme = source.partition("://")[0]
        names = {
            str(PurePosixPath(path).relative_to(root)): f"{scheme}://{path.lstrip('/') if scheme != 'file' else path}"
            for path in files.find(root)
        }
    else:
        root = Path(source)
        if not root.is_dir():
            raise SourceError(f"{source}: no such folder.")
        names = {path.relative_to(root).as_posix(): str(path) for path in root.rglob("*") if path.is_file()}
    pictures = [
        name for name in names
        if PurePosixPath(name).suffix.lower() in SUFFIXES and not PurePosixPath(name).name.startswith(".")
    ]  # fmt: skip
    table = _captions(captions, names)
    return [Row(name, names[name], table.get(name) or _beside(name, names)) for name in pictures]


def _beside(name: str, names: dict[str, str]) -> list[str]:
    text = str(PurePosixPath(name).with_suffix(".txt"))
    if text not in names:
        return []
    with _open(names[text]) as file:
        return _lines(file.read())


def _lines(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode("utf-8-sig", "replace").splitlines() if line.strip()]


def _captions(path: str | None, names: dict[str, str]) -> dict[str, list[str]]:
    path = path or next((names[name] for name in ("metadata.jsonl", "metadata.parquet") if name in names), None)
    if path is None:
        return {}
    try:
        records = _parquet(path) if path.endswith(".parquet") else _jsonl(path)
        return dict(_named(record) for record in records)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path}: cannot be read as captions ({error}). Expected rows with one of {', '.join(NAMES)} and one of {', '.join(TEXTS)}."
        ) from error


def _jsonl(path: str) -> list[dict]:
    with _open(path) as file:
        return [json.loads(line) for line in file.read().decode("utf-8-sig").splitlines() if line.strip()]


def _parquet(path: str) -> list[dict]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(
            f"{path}: parquet needs the package pyarrow. Install it, or give the captions as .jsonl."
        ) from error
    with _open(path) as file:
        return parquet.read_table(file).to_pylist()


def _named(record: dict) -> tuple[str, list[str]]:
    name = next((record[key] for key in NAMES if record.get(key)), None)
    text: str | list = next((record[key] for key in TEXTS if record.get(key)), [])
    if name is None:
        raise KeyError(f"no picture is named in a row with {', '.join(record)}")
    return str(name), [str(line) for line in ([text] if isinstance(text, str) else text)]


def _tar_rows(path: str, prefix: str) -> Iterator[Row]:
    """Rows of a WebDataset tar; only its headers are read here, and the captions in it."""
    pictures: dict[str, tuple[str, int, int]] = {}
    texts: dict[str, list[str]] = {}
    try:
        with _open(path) as file, tarfile.open(fileobj=file) as tar:
            for info in tar:
                folder, name = PurePosixPath(info.name).parent, PurePosixPath(info.name).name
                stem, _, extension = name.partition(".")
                key, extension = str(folder / stem), extension.lower()
                if not info.isfile() or name.startswith("."):
                    continue
                if f".{extension}" in SUFFIXES:
                    pictures[key] = (info.name, info.offset_data, info.size)
                elif extension == "txt":
                    texts[key] = _lines(tar.extractfile(info).read())
                elif extension == "json" and key not in texts:
                    texts[key] = _caption_of_json(tar.extractfile(info).read())
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"{path}: cannot be read as a tar ({error}). Download it again or leave it out.") from error
    for key, (name, offset, size) in pictures.items():
        if size:
            yield Row(f"{prefix}/{name}", path, texts.get(key, []), offset, size)


def _caption_of_json(content: bytes) -> list[str]:
    try:
        record = json.loads(content)
    except ValueError:
        return []
    text = next((record[key] for key in TEXTS if isinstance(record, dict) and record.get(key)), None)
    return [text] if isinstance(text, str) else []
