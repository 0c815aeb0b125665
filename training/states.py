"""The state of a training on disk: the newest checkpoint, and the one before it in case the newest is damaged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..models.files import replacing

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainState:
    """Tensors and metadata of a checkpoint; `step`: how many steps were made."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    step: int


class States:
    """Checkpoints of one stage: `path`, and beside it the one before, as NAME.previous.safetensors."""

    def __init__(self, path: Path) -> None:
        self.path, self.previous = path, path.with_name(f"{path.stem}.previous{path.suffix}")
        self._damaged = False

    def read(self) -> TrainState | None:
        """The newest state that can be read; None where there is none yet.

        Raises:
            ValueError: there is one, but none can be read.
        """
        problems = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except (SafetensorError, KeyError, ValueError) as error:
                problems.append(f"{path}: the checkpoint is damaged ({error})")
                continue
            if problems:
                self._damaged = True
                LOGGER.warning("%s. Going on from the one before it, of step %d.", problems[0], state.step)
            return state
        if problems:
            raise ValueError(f"{problems[0]}, and there is none before it. Remove it to begin this stage again.")
        return None

    def write(self, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        """Write a new state; the last one is kept as the one before, unless it was found damaged.

        Raises:
            OSError: it cannot be written; the last state is left as it was.
        """
        write_tensors(self.path, tensors, metadata, lambda part: self._keep_previous())
        self._damaged = False

    def _keep_previous(self) -> None:
        if self.path.exists() and not self._damaged:
            self.path.replace(self.previous)


def _read(path: Path) -> TrainState:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return TrainState(load_file(path), metadata, int(metadata["step"]))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], check: Callable[[Path], None] = lambda part: None
) -> None:
    """Write a safetensors file that is there either whole or not at all.

    Args:
        check: as that of `models.files.replacing`.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path, check) as part:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({error}). Free some space, and start again.") from error
