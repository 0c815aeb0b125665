"""The folder of checkpoints and logs of one training, and the files that it makes: nobody else's are written over.

training.json in the folder says that a training of this program works there, and holds the sha256 of every file that it has made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..models.checkpoint import sha256_of
from ..models.files import ExistsError, check_new, leftovers, only_writer, write_whole
from .shard_header import ShardError, read_object

RECORD = "training.json"
STAGES = ("patches", "all", "noise", "joint")
ENDS = (".safetensors", ".previous.safetensors", ".jsonl")  # of the files of a stage
PLOT = "training.png"
_PARTS = re.compile(r"[^/]*\.(safetensors|json|jsonl|png)")


@dataclass
class RunFolder:
    """A folder that this process alone writes into, and what was made from it.

    Attributes:
        force: whether outputs of others are written over. made: sha256 of the files that this training has made.
    """

    path: Path
    force: bool = False
    made: list[str] = field(default_factory=list)

    def check(self, output: Path) -> None:
        """Refuse an output that is there and was not made by this training.

        Raises:
            ExistsError: says which.
        """
        try:
            check_new(output, self.force)
        except ExistsError:
            if not output.is_file() or not self.made or sha256_of(output) not in self.made:
                raise

    def keep(self, output: Path, part: Path) -> None:
        """Note what `output` will be; for `models.files.replacing`, before the file takes its name."""
        self.check(output)
        self.made.append(sha256_of(part))
        self._write()

    def _write(self) -> None:
        write_whole(self.path / RECORD, json.dumps({"format": "latent-clip training", "made": self.made}))


@contextmanager
def run_folder(path: Path, outputs: Sequence[Path], force: bool = False) -> Iterator[RunFolder]:
    """Keep other processes off the folder of a training, and make sure that it and the outputs are ours to write.

    Raises:
        ExistsError: an output or a file in the folder belongs to others. InUseError: another process works there.
    """
    made = _made(path)
    folder = RunFolder(path, force, made or [])
    for output in outputs:
        folder.check(output)
    if made is None:
        _check_free(path)
    with only_writer(path):
        if made is None:
            folder._write()
        for _, part in leftovers(path, _PARTS):
            part.unlink(missing_ok=True)
        for output in outputs:
            if output.parent.is_dir():
                for _, part in leftovers(output.parent, re.compile(re.escape(output.name))):
                    part.unlink(missing_ok=True)
        yield folder


def _made(path: Path) -> list[str] | None:
    """Hashes of what a training of this folder has made; None where none has begun there.

    Raises:
        ExistsError: training.json belongs to another program.
    """
    record = path / RECORD
    if not record.exists():
        return None
    try:
        content = read_object(record)
    except (OSError, ShardError) as error:
        raise _of_others(record) from error
    made = content.get("made")
    if content.get("format") != "latent-clip training" or not isinstance(made, list):
        raise _of_others(record)
    return [str(one) for one in made]


def _check_free(path: Path) -> None:
    """Refuse a folder in which a file of others has a name that a training uses; that of a training of version 0.2 is ours.

    Raises:
        ExistsError: says which file.
    """
    if any(_is_checkpoint(path / f"{stage}.safetensors") for stage in STAGES):
        return
    names = [PLOT, *(stage + end for stage in STAGES for end in ENDS)]
    for taken in (path / name for name in names):
        if taken.exists() or taken.is_symlink():
            raise _of_others(taken)


def _of_others(path: Path) -> ExistsError:
    return ExistsError(f"{path}: is not of a training of this program, and would be written over. Choose another folder with --logs.")


def _is_checkpoint(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return "step" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False
