"""What the measuring scripts share: their options, their tables, and the measured section of a document."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from .train import use_cpu

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


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(lines)


def publish(results: object, text: str, file: Path, document: Path) -> None:
    """Write results as JSON, and their text between the marks of a document."""
    file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measured(document: Path) -> str:
    """The text between the marks."""
    return document.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
