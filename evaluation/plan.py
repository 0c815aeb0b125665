"""Plan of a run: prompts, arms, and the tasks that result from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import EvaluationError
from .benchmarks import Benchmark, Prompt
from .names import is_device, unfit
from .workflow import LARGEST_SEED, Workflow, read_workflow

SEEDS_APART = 1000  # between two prompts; pictures of one prompt have consecutive seeds
RUN, PICTURES, SCORES = "run.json", "pictures.jsonl", "scores.jsonl"


@dataclass(frozen=True)
class Arm:
    """A way to make the pictures: a name for folders and tables, a workflow, and fixed values of its slots."""

    name: str
    workflow: Workflow
    settings: tuple[tuple[str, object], ...] = ()


def read_arm(words: str, slots: Sequence[str] = (), batch: int = 1) -> Arm:
    """Read the arm of a command line's NAME=WORKFLOW.json.

    Args:
        slots: "[ARM:]NAME=NODE.INPUT" of all arms. batch: above 1, the workflow's slot `batch` is read too.

    Raises:
        EvaluationError: `words` has no =, or the file is no workflow in API form.
    """
    name, found, path = words.partition("=")
    if not found:
        raise EvaluationError(f"Got --arm {words}, expected NAME=WORKFLOW.json.")
    own = [s.partition(":")[2] if s.startswith(f"{name}:") else s for s in slots if s.startswith(f"{name}:") or ":" not in s]
    return Arm(name, read_workflow(Path(path), own, ["batch"] if batch > 1 else []))


def sweep(arm: Arm, words: str) -> list[Arm]:
    """Make an arm for each value of a command line's SLOT=V,V,V."""
    slot, found, values = words.partition("=")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        found = ""
    if not found:
        raise EvaluationError(f"Got --sweep {words}, expected SLOT=NUMBER,NUMBER, such as cfg=1,2,4,8.")
    return [Arm(f"{arm.name}_{slot}={value:g}", arm.workflow.with_values({slot: value}), ((slot, value),)) for value in numbers]


@dataclass(frozen=True)
class PictureTask:
    """One entry of a server's queue: `count` pictures of a prompt in an arm, from one seed."""

    arm: str
    prompt: int
    first: int
    count: int
    seed: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class RunPlan:
    """Prompts, arms and seeds of a run.

    Attributes:
        images: pictures per prompt. batch: pictures from one seed, for workflows with a slot `batch`; the last batch may be smaller.
        seed: seed of prompt 0, picture 0, if the benchmark fixes none.
        models: file name → sha256 of the model files that the workflows name, as far as known.
    """

    benchmark: Benchmark
    prompts: Sequence[Prompt]
    arms: Sequence[Arm]
    images: int
    seed: int = 0
    batch: int = 1
    source: str = ""
    models: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise EvaluationError(
                f"Got {self.images} pictures in batches of {self.batch}, expected at least 1 of each."
            )
        names = [arm.name for arm in self.arms]
        folders = Counter(name.casefold() for name in names)
        if twice := [name for name in names if folders[name.casefold()] > 1]:
            raise EvaluationError(f"The arm {twice[0]!r} is given twice. Give every workflow a name of its own.")
        if odd := [name for name in names if not is_arm(name)]:
            raise EvaluationError(
                f"Got the arm {odd[0]!r}, expected a name of letters, digits and . , = + - _ that begins with a letter or digit: it names a folder."
            )
        if self.batch > 1:
            for arm in self.arms:
                if "batch" not in arm.workflow.slots:
                    raise EvaluationError(
                        f"{arm.name}: no slot 'batch', and batches of {self.batch} are asked for. Title the node that holds the "
                        "batch size batch, or leave --batch out."
                    )
        self._check_seeds()
        self._check_places()

    def _check_seeds(self) -> None:
        for prompt in self.prompts:
            if not 0 <= self.seed_of(prompt) <= LARGEST_SEED - self.images:
                raise EvaluationError(
                    f"Got the seed {self.seed_of(prompt)} for prompt {prompt.index}, expected 0 to {LARGEST_SEED}."
                )

    def _check_places(self) -> None:
        seen: dict[Path, int] = {}
        for prompt, number in self.pictures():
            place = self.benchmark.picture(prompt, number, self.images)
            if seen.setdefault(place, prompt.index) != prompt.index:
                raise EvaluationError(
                    f"Prompts {seen[place]} and {prompt.index} would both be {place}. Rename one of their pictures or prompts."
                )

    def pictures(self) -> Iterator[tuple[Prompt, int]]:
        """Yield every prompt with the number of each of its pictures."""
        return ((prompt, number) for prompt in self.prompts for number in range(self.images))

    def file_of(self, arm: str, prompt: Prompt, number: int) -> Path:
        """Path of a picture in the run's folder."""
        return Path(arm) / self.benchmark.picture(prompt, number, self.images)

    def tasks(self) -> list[PictureTask]:
        """All tasks, prompt by prompt over all arms, so that a stopped run has the same prompts of each arm."""
        return [
            PictureTask(arm.name, prompt.index, first, min(self.batch, self.images - first), self.seed_of(prompt) + first)
            for prompt in self.prompts
            for first in range(0, self.images, self.batch)
            for arm in self.arms
        ]

    def seed_of(self, prompt: Prompt) -> int:
        return self.seed + prompt.index * SEEDS_APART if prompt.seed is None else prompt.seed

    def as_dict(self) -> dict:
        """Content of run.json: the fields that must not change when a run continues, and the arms."""
        return {
            "benchmark": self.benchmark.name, "source": self.source, "images": self.images, "seed": self.seed, "batch": self.batch,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "arms": {
                arm.name: {
                    "workflow_hash": arm.workflow.hash, "settings": dict(arm.settings), "slots": arm.workflow.slots,
                    "workflow": arm.workflow.graph,
                }
                for arm in self.arms
            },
            "models": dict(self.models or {}),
        }  # fmt: skip


def is_arm(name: str) -> bool:
    """Return True if an arm can have this name: a folder's name on every system, other than those of the run's own files."""
    fits = re.fullmatch(r"\w[\w.,=+-]*", name) and not unfit(name, windows=True) and not is_device(name)
    return bool(fits) and name.casefold() not in (RUN, PICTURES, SCORES)
