"""Options, tables and the measured section of a document, shared by the studies."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..demo.train import use_cpu
from ..demo.training import CACHE
from ..evaluation.tables import table
from ..models.shapes_world import FOLDER

__all__ = ("BEGIN", "END", "Kept", "begin", "compact_json", "difference", "measured", "publish", "table")
COLUMNS = 140
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def begin(description: str, switches: dict[str, str] | None = None) -> argparse.Namespace:
    """Read the options (threads, scale, no_write, and `switches` with their help), and set up torch and the host by them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the full number of samples, for a quick look"
    )
    parser.add_argument("--no-write", action="store_true", help="only print")
    for name, text in (switches or {}).items():
        parser.add_argument(name, action="store_true", help=text)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_cpu()
    return options


def publish(results: object, text: str, file: Path, document: Path) -> None:
    """Write results as JSON, and their text between the marks of a document."""
    file.write_text(compact_json(results) + "\n", encoding="utf-8")
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def compact_json(value: object, depth: int = 0) -> str:
    """JSON with one record a line: whatever fits in `COLUMNS` stays on one line, numbers are filled into lines."""
    line, pad = json.dumps(value, ensure_ascii=False), " " * (depth + 1)
    if depth + len(line) <= COLUMNS or not isinstance(value, dict | list) or not value:
        return line
    if isinstance(value, dict):
        parts = [f"{pad}{json.dumps(key, ensure_ascii=False)}: {compact_json(item, depth + 1)}" for key, item in value.items()]
    elif any(isinstance(item, dict | list | str) for item in value):
        parts = [pad + compact_json(item, depth + 1) for item in value]
    else:
        numbers = ", ".join(map(json.dumps, value))
        parts = [textwrap.fill(numbers, COLUMNS, initial_indent=pad, subsequent_indent=pad, break_long_words=False)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(parts), " " * depth + closing])


def measured(document: Path) -> str:
    """The text between the marks."""
    return document.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def difference(a: list[bool] | list[float], b: list[bool] | list[float]) -> str:
    """Mean of a - b over pairs, with the bootstrap's 95 % interval."""
    pairs = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    draws = np.random.default_rng(0).choice(pairs, (2000, len(pairs))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{pairs.mean():+.3f} ({low:+.3f} to {high:+.3f})"


class Kept:
    """Results of finished parts of a study, in one JSON file for the shipped weights and this protocol: a stopped run goes on.

    Args:
        name: of the study. protocol: what is measured and how. files: whatever else the results depend on.
    """

    def __init__(self, name: str, protocol: tuple, *files: Path) -> None:
        parts = [path.read_bytes() for path in (*sorted(FOLDER.glob("*.safetensors")), *files)] + [
            repr(protocol).encode()
        ]
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]
        self.path = CACHE / name / f"{digest}.json"
        self.values = self._stored()
        self.began = time.perf_counter()

    def _stored(self) -> dict:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, name: str, compute: Callable):
        """The stored value, or a computed and stored one."""
        if name not in self.values:
            value = compute()
            self.values = self._stored() | self.values | {name: value}  # another process may do other parts meanwhile
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(f".{os.getpid()}.part")
            unfinished.write_text(json.dumps(self.values))
            unfinished.replace(self.path)
        print(f"{time.perf_counter() - self.began:6.0f} s  {name}", flush=True)
        return self.values[name]
