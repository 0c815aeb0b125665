"""Captions as people keep them: texts beside pictures, and tables that name pictures. A text that cannot be read is counted by reason."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

TEXTS = (("caption", "captions"), ("text", "texts", "txt"), ("prompt", "prompts"), ("title", "alt"))  # the first group with a text counts
NAMES = (
    "file_name", "filename", "filepath", "file_path", "file", "image", "image_path", "img_path", "path", "name", "key", "url",
)  # fmt: skip
BESIDE = (".txt", ".caption", ".json")
TABLES = (".jsonl", ".csv", ".tsv", ".parquet", ".json")
LONGEST_TEXT = 2**20  # bytes of one text file, or of one line of a table
LARGEST_TABLE = 2**28  # bytes of a .json table, which is read whole
MOST_PARTS = 20_000_000  # lists, objects and commas of a .json table: each takes some 60 bytes, of which three may stand in the file
LARGEST_GROUP = 2**29  # bytes of a row group of a .parquet, unpacked
MOST_ROWS = 10_000_000  # of a .parquet, which can repeat a row as often as it likes in a few bytes
MOST_CAPTIONS = 1000  # of one row of a .parquet


class SourceError(ValueError):
    """A source that cannot be read; the message says why and what to do."""


class CaptionFault(ValueError):
    """The reason why a text or an entry gives no caption, in words that are the same for all of a kind."""


def captions_in(content: bytes, suffix: str) -> list[str]:
    """Captions of a file beside a picture: each line of a .txt or .caption, or those that a .json names.

    Raises:
        CaptionFault: too long, not UTF-8, or damaged JSON.
    """
    if len(content) > LONGEST_TEXT:
        raise CaptionFault(f"longer than {LONGEST_TEXT} bytes")
    text = _decode(content)
    if suffix == ".json":
        return captions_of(_json(text))
    return [line.strip() for line in text.splitlines() if line.strip()]


def captions_of(record: object) -> list[str]:
    """Captions in a record of any kind; what is no text (a number, NaN, null) is none."""
    if isinstance(record, str):
        return [record.strip()] if record.strip() else []
    if isinstance(record, list):
        return [text for item in record if isinstance(item, (str, dict)) for text in captions_of(item)]
    if isinstance(record, dict):
        fields = {str(key).lower(): value for key, value in reversed(record.items())}
        for group in TEXTS:
            if found := [text for name in group if isinstance(fields.get(name), (str, list)) for text in captions_of(fields[name])]:
                return list(dict.fromkeys(found))
    return []


def pair(pictures: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """The text files of each picture, by their names.

    a.b.jpg belongs to a.b.txt and to a.b.jpg.txt. WebDataset ends a key at the first dot, so where no picture has the very name, a.txt goes to
    a.b.jpg and a.b.txt to a.jpg.
    """
    by_last: dict[str, list[str]] = {}
    by_first: dict[str, list[str]] = {}
    known = set(pictures)
    for picture in pictures:
        by_last.setdefault(_stem(picture), []).append(picture)
        by_first.setdefault(_key(picture), []).append(picture)
    found: dict[str, list[str]] = {}
    for text in sorted(texts, key=lambda name: BESIDE.index(PurePosixPath(name).suffix.lower())):
        stem = _stem(text)
        owners = [stem] if stem in known else by_last.get(stem) or by_first.get(stem) or by_last.get(_key(text), [])
        for picture in owners:
            found.setdefault(picture, []).append(text)
    return found


def read_table(path: str, open_file: Callable[[str], BinaryIO]) -> Iterator[tuple[str, list[str]] | CaptionFault]:
    """Entries of a table: (name of a picture, captions), or why an entry is none.

    Raises:
        SourceError: the whole table cannot be read.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".json": _json_table}
    if not (reader := readers.get(PurePosixPath(path).suffix.lower())):
        raise SourceError(f"{path}: captions of an unknown kind, expected {', '.join(TABLES)}. Convert it to one of these.")
    try:
        with open_file(path) as file:
            for record in reader(file, path):
                yield record if isinstance(record, CaptionFault) else _entry(record)
    except SourceError:
        raise
    except Exception as error:  # pyarrow, csv and fsspec raise their own kinds
        raise SourceError(f"{path}: cannot be read as captions ({error}). {_expected()}") from error


def _expected() -> str:
    texts = ", ".join(name for group in TEXTS for name in group)
    return f"Expected entries with one of {', '.join(NAMES)} for the picture and one of {texts} for its caption, in UTF-8."


def _entry(record: object) -> tuple[str, list[str]] | CaptionFault:
    fields = {str(key).lower(): value for key, value in record.items()} if isinstance(record, dict) else {}
    name = next((fields[key] for key in NAMES if isinstance(fields.get(key), (str, int)) and fields[key] != ""), None)
    if name is None:
        return CaptionFault("names no picture")
    captions = captions_of(record)
    if any(len(text) > LONGEST_TEXT for text in captions):
        return CaptionFault(f"longer than {LONGEST_TEXT} bytes")
    return str(name), captions


def _jsonl(file: BinaryIO, path: str) -> Iterator[object]:
    for line in _lines(file):
        if isinstance(line, CaptionFault):
            yield line
            continue
        try:
            text = _decode(line).strip()
            if text:
                yield _json(text)
        except CaptionFault as fault:
            yield fault


def _lines(file: BinaryIO) -> Iterator[bytes | CaptionFault]:
    """Lines of a file, none longer than `LONGEST_TEXT`, however long the file says that they are."""
    while line := file.readline(LONGEST_TEXT + 1):
        if len(line) <= LONGEST_TEXT:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_TEXT)
        yield CaptionFault(f"longer than {LONGEST_TEXT} bytes")


def _csv(file: BinaryIO, path: str) -> Iterator[object]:
    def lines() -> Iterator[str]:
        for number, line in enumerate(_lines(file), 1):
            if isinstance(line, CaptionFault):
                raise SourceError(f"{path}: line {number} is {line}. Is it a table?")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(f"{path}: line {number} is not UTF-8. Save the table as UTF-8.") from error

    text = lines()
    header = next(text, "")
    delimiter = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
    columns = next(csv.reader([header], delimiter=delimiter), [])
    _check_columns(path, columns)
    for fields in csv.reader(text, delimiter=delimiter):
        if fields:
            yield dict(zip(columns, fields))


def _parquet(file: BinaryIO, path: str) -> Iterator[object]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(
            f"{path}: parquet needs the package pyarrow. Install it, or give the captions as .jsonl."
        ) from error
    table = parquet.ParquetFile(file)
    wanted = {*NAMES, *(name for group in TEXTS for name in group)}
    columns = [name for name in table.schema_arrow.names if name.lower() in wanted]
    _check_columns(path, table.schema_arrow.names)
    _check_unpacked(path, table.metadata, columns)
    table = parquet.ParquetFile(file, read_dictionary=_texts(table.metadata, columns))  # holds a text that is repeated once
    for batch in table.iter_batches(batch_size=1000, columns=columns):
        for row in range(len(batch)):
            try:
                yield {name: _value(batch.column(number)[row]) for number, name in enumerate(batch.schema.names)}
            except CaptionFault as fault:
                yield fault.with_traceback(None)  # which would keep the text


def _check_unpacked(path: str, metadata, columns: Sequence[str]) -> None:
    """Refuse a table that is large only when it is unpacked."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((sum(part.total_uncompressed_size for part in _parts(group, columns)) for group in groups), default=0)
    if largest > LARGEST_GROUP or metadata.num_rows > MOST_ROWS:
        raise SourceError(
            f"{path}: {metadata.num_rows} rows, {largest} bytes in one row group, expected at most {MOST_ROWS} and {LARGEST_GROUP}. "
            "Write it as several tables, or as .jsonl."
        )


def _texts(metadata, columns: Sequence[str]) -> list[str]:
    group = metadata.row_group(0) if metadata.num_row_groups else None
    return [part.path_in_schema for part in _parts(group, columns) if part.physical_type == "BYTE_ARRAY"] if group else []


def _parts(group, columns: Sequence[str]) -> Iterator:
    parts = (group.column(number) for number in range(group.num_columns))
    return (part for part in parts if part.path_in_schema.partition(".")[0] in columns)


def _value(scalar) -> object:
    """A cell in Python, none of its texts longer than `LONGEST_TEXT`; one at a time, because a table may name one long text a thousand times.

    Raises:
        CaptionFault: one is longer, or there are more than `MOST_CAPTIONS`.
    """
    values = getattr(scalar, "values", None)
    if values is None:
        value = scalar.as_py()
        if isinstance(value, str | bytes) and len(value) > LONGEST_TEXT:
            raise CaptionFault(f"longer than {LONGEST_TEXT} bytes")
        return value
    if len(values) > MOST_CAPTIONS:
        raise CaptionFault(f"more than {MOST_CAPTIONS} captions")
    return [_value(one) for one in values]


def _check_columns(path: str, columns: Sequence[str]) -> None:
    have = {column.lower() for column in columns}
    if not have & set(NAMES) or not have & {name for group in TEXTS for name in group}:
        raise SourceError(f"{path}: has the columns {', '.join(columns)[:200]}. {_expected()}")


def _json_table(file: BinaryIO, path: str) -> Iterator[object]:
    """A list of records, COCO's images with annotations, or an object from names to captions."""
    content = file.read(LARGEST_TABLE + 1)
    if len(content) > LARGEST_TABLE:
        raise SourceError(f"{path}: more than {LARGEST_TABLE} bytes. Write it as .jsonl, a record a line.")
    if sum(content.count(mark) for mark in (b"[", b"{", b",")) > MOST_PARTS:
        raise SourceError(f"{path}: more than {MOST_PARTS} lists, objects and values. Write the captions as .jsonl, a record a line.")
    table = _json(_decode(content))
    if isinstance(table, dict) and isinstance(table.get("images"), list) and isinstance(table.get("annotations"), list):
        names = {image["id"]: image["file_name"] for image in table["images"]}
        yield from ({"file_name": names.get(each["image_id"]), "caption": each.get("caption")} for each in table["annotations"])
    elif isinstance(table, dict):
        yield from ({"file_name": name, "captions": captions_of(value)} for name, value in table.items())
    else:
        yield from table if isinstance(table, list) else [table]


def _decode(content: bytes) -> str:
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionFault("not UTF-8") from error
    if "\0" in text:
        raise CaptionFault("no text, but bytes")
    return text


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptionFault("damaged JSON") from error


def _stem(name: str) -> str:
    return re.sub(r"\.[^./]*$", "", name)


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"
