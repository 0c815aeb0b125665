"""Plan of a run: prompts, arms, and the tasks that they come to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import EvaluationError
from .benchmarks import Benchmark, Prompt
from .names import is_device, unfit
from .workflow import LARGEST_SEED, Workflow

SEEDS_APART = 1000  # between prompts; pictures of one prompt have consecutive seeds
RUN, PICTURES, SCORES = "run.json", "pictures.jsonl", "scores.jsonl"


@dataclass(frozen=True)
class Arm:
    """One way to make the pictures: a name for folders and tables, a workflow, and what was set in its slots for good."""

    name: str
    workflow: Workflow
    settings: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Task:
    """One prompt of the queue: these pictures of this prompt in this arm, from one seed."""

    arm: str
    prompt: int
    first: int
    count: int
    seed: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Plan:
    """What a run is to make.

    Attributes:
        images: pictures per prompt. batch: of them from one seed, for workflows with a slot `batch`; a multiple may be left over.
        seed: of prompt 0, picture 0, where the benchmark gives none.
        models: file name → sha256 of the models that the workflows name, where they are known.
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
        """Every prompt with the number of each of its pictures."""
        return ((prompt, number) for prompt in self.prompts for number in range(self.images))

    def file_of(self, arm: str, prompt: Prompt, number: int) -> Path:
        """Place of a picture in the run's folder."""
        return Path(arm) / self.benchmark.picture(prompt, number, self.images)

    def tasks(self) -> list[Task]:
        """All of them, the arms in turn, so that a run that is stopped has the same prompts of each."""
        return [
            Task(arm.name, prompt.index, first, min(self.batch, self.images - first), self.seed_of(prompt) + first)
            for prompt in self.prompts
            for first in range(0, self.images, self.batch)
            for arm in self.arms
        ]

    def seed_of(self, prompt: Prompt) -> int:
        return self.seed + prompt.index * SEEDS_APART if prompt.seed is None else prompt.seed

    def as_dict(self) -> dict:
        """What must be the same for a run to go on, and the arms."""
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
    """Whether an arm can have this name: it names a folder beside the run's own files, on every system."""
    fits = re.fullmatch(r"\w[\w.,=+-]*", name) and not unfit(name, windows=True) and not is_device(name)
    return bool(fits) and name.casefold() not in (RUN, PICTURES, SCORES)
