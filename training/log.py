"""The log of a run: JSON lines, lines to read, TensorBoard, and a plot."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .loop import Printed, Recipe


class RunLog:
    """JSON lines in the folder of a run, lines to read, and TensorBoard where it is installed; on one process only."""

    def __init__(self, folder: Path, recipe: Recipe, writes: bool) -> None:
        self.path, self.writes = folder / f"{recipe.name}.jsonl", writes
        self.printed = Printed(recipe)
        self.board = _tensorboard(folder) if writes else None

    def __call__(self, numbers: dict[str, float]) -> None:
        if not self.writes:
            return
        try:
            append_line(self.path, json.dumps(numbers))
        except OSError as error:
            raise OSError(
                f"{self.path}: the log cannot be written ({error.strerror}). Free some space, and start again: it goes on from the last checkpoint."
            ) from error
        self.printed(numbers)
        for key, value in numbers.items():
            if self.board and key != "step":
                self.board.add_scalar(f"{self.path.stem}/{key}", value, int(numbers["step"]))

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self.board:
            self.board.close()


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; a line that an earlier run left half written, as on a full disk, is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + line.encode() + b"\n")


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log, of each step what was written last: a killed run writes its last steps twice, and a line half."""
    merged: dict[float, dict[str, float]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # half written
            continue
        if isinstance(line, dict) and "step" in line:
            merged[line["step"]] = merged.get(line["step"], {}) | line
    return [merged[step] for step in sorted(merged)]


def plot(folder: Path, names: list[str]) -> None:
    """Loss and figures over the steps, as training.png; nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis, offset = figure.add_subplot(), 0.0
    for name in names:
        log = read_log(folder / f"{name}.jsonl")
        for key in sorted({key for line in log for key in line} - {"step", "lr"}):
            points = [(offset + line["step"], line[key]) for line in log if key in line]
            axis.plot(*zip(*points), label=f"{name}: {key}")
        offset += log[-1]["step"]
    axis.set(xlabel="step")
    axis.legend(fontsize="small")
    try:
        figure.savefig(folder / "training.png", dpi=100)
    except OSError as error:
        raise OSError(f"{folder / 'training.png'}: cannot be written ({error.strerror}). The trained file is whole.") from error
