"""JSON that people write by hand, read so that nothing in it is passed over or taken for something else."""

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_BYTES = 4_000_000
MOST_DEPTH = 100
MOST_DIGITS = 1000

# the longer marks first: that of UTF-32 begins like that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_NAMES: dict[type, str] = {str: "a text", list: "a list", dict: "an object", int: "a number", float: "a number"}


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as Windows editors save it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `MAX_BYTES`, no such text, or no JSON: a key twice and NaN are refused too.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 1_000_000} MB")
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"its text is not {encoding.upper()}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it holds zero bytes, as UTF-16 without a byte order mark does; save it as UTF-8")
    if not text.strip():
        raise ValueError("it is empty")
    return parse_json(text)


def parse_json(text: str) -> Any:
    """The content of a text.

    Raises:
        ValueError: it is no JSON; a key twice, NaN, and lists or objects more than `MOST_DEPTH` deep are refused too.
    """
    try:
        content = json.loads(text, object_pairs_hook=_no_key_twice, parse_int=_whole, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(content)
    return content


def _check_depth(content: object) -> None:
    """Refuse content nested more than `MOST_DEPTH` deep: near Python's limit it could not be printed."""
    level = [content]
    for _ in range(MOST_DEPTH):
        level = [item for outer in level if isinstance(outer, list | dict) for item in _items(outer)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _items(outer: list | dict) -> Iterable[object]:
    return outer.values() if isinstance(outer, dict) else outer


def checked(value: Any, name: str, *kinds: type) -> Any:
    """`value` if it is of one of these JSON types; true and false are no numbers.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join(dict.fromkeys(_NAMES[kind] for kind in kinds))
        raise ValueError(f"Got {short(value)} as {name}, expected {expected}.")
    return value


def only_known(data: Iterable[str], where: str, fields: tuple[str, ...]) -> None:
    """A field that nobody reads is often a misspelt one, and its file not the one that was meant.

    Raises:
        ValueError: `data` has a field that is not one of `fields`.
    """
    if unknown := [key for key in data if key not in fields]:
        raise ValueError(f"Got the unknown field {unknown[0]!r} in {where}, expected only {', '.join(fields)}.")


def short(value: object) -> str:
    """A value as its file has it, for messages."""
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict:
    found: dict = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has {key!r} twice in one object, of which only one would count")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it has the number {name}, expected a finite one")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)
