"""Readers of prompt lists and result tables: text files with one entry per line, and CSV or TSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from . import EvaluationError


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file in UTF-8, without empty lines at the end.

    Raises:
        EvaluationError: the file cannot be read, or has no lines.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}). Name a text file in UTF-8.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise EvaluationError(f"{path}: is empty, expected one prompt a line.")
    return lines


def read_table(path: Path, columns: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
    """Read a CSV or TSV that has at least these columns; one dict per record.

    Raises:
        EvaluationError: the file cannot be read, lacks a column, or has no records.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            records = list(reader)
            has = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}). Name a table in UTF-8.") from error
    if lacking := [name for name in columns if name not in has]:
        raise EvaluationError(f"{path}: has the columns {', '.join(has) or 'none'}; lacks {', '.join(lacking)}.")
    if not records or any(record[name] is None for record in records for name in columns):
        raise EvaluationError(f"{path}: has no rows, or one that ends early, expected {', '.join(columns)} in each. Get it again.")
    return records
