"""Pictures of a benchmark: the same prompts and seeds through several workflows, on any number of servers, in the official folders.

A run's folder holds `run.json` (what was asked for), `pictures.jsonl` (a line for each picture that is there), and a folder for
each arm with its pictures where the benchmark's own scorer looks for them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import EvaluationError
from .benchmarks import Benchmark, Prompt
from .hand_out import Outcome, hand_out
from .records import append_records, only_run, read_records, sha256_of, write_file
from .servers import Made, Server, TaskFailedError
from .workflow import Workflow

RUN, PICTURES = "run.json", "pictures.jsonl"
SEEDS_APART = 1000  # between prompts; pictures of one prompt have consecutive seeds
PNG = b"\x89PNG\r\n\x1a\n"


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
            raise EvaluationError(f"Got {self.images} pictures in batches of {self.batch}, expected at least 1 of each.")
        names = [arm.name for arm in self.arms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise EvaluationError(f"The arm {min(twice)!r} is given twice. Give every workflow a name of its own.")
        if odd := [name for name in names if not re.fullmatch(r"[\w.,=+-]+", name)]:
            raise EvaluationError(f"Got the arm {odd[0]!r}, expected a name of letters, digits and . , = + - _: it names a folder.")
        if self.batch > 1:
            for arm in self.arms:
                if "batch" not in arm.workflow.slots:
                    raise EvaluationError(
                        f"{arm.name}: no slot 'batch', and batches of {self.batch} are asked for. Title the node that holds the "
                        "batch size batch, or leave --batch out."
                    )

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


@dataclass(frozen=True)
class Report:
    """What a run came to: pictures made now and there before, and what was given up with the reason."""

    made: int
    there: int
    failed: list[Outcome[Task]]

    def __str__(self) -> str:
        lines = [f"{self.made} pictures made, {self.there} were there."]
        if self.failed:
            pictures = sum(outcome.task.count for outcome in self.failed)
            lines.append(f"{pictures} pictures could not be made; the same command tries them again:")
            reasons: dict[tuple[str, str], list[Task]] = {}
            for outcome in self.failed:
                reasons.setdefault((outcome.task.arm, outcome.error), []).append(outcome.task)
            lines += [
                f"  {arm}, {sum(task.count for task in tasks)} of them, such as prompt {tasks[0].prompt}, seed {tasks[0].seed}: {error}"
                for (arm, error), tasks in reasons.items()
            ]
        return "\n".join(lines)


def generate(plan: Plan, folder: Path, servers: Sequence[Server], say: Callable[[str], None] = lambda line: None) -> Report:
    """Make what is not there yet.

    Args:
        say: told one line for every hundredth of the work.

    Raises:
        EvaluationError: another run is in the folder, the folder is of another run, or no server is left.
    """
    versions = {str(server): server.versions() for server in servers}
    with only_run(folder):
        _begin(plan, folder, versions)
        for arm in plan.arms:
            plan.benchmark.prepare(folder / arm.name, plan.prompts, plan.images)
        there = {(r["arm"], r["prompt"], r["number"]) for r in pictures_of(folder) if (folder / r["file"]).is_file()}
        tasks = [
            task for task in plan.tasks() if not all((task.arm, task.prompt, number) in there for number in task.numbers)
        ]
        total, failed, made, maker = len(tasks), [], 0, _Maker(plan)
        for done, outcome in enumerate(hand_out(tasks, servers, maker), 1):
            if outcome.made is None:
                failed.append(outcome)
            else:
                maker.keep(folder, outcome.task, outcome.made, outcome.server)
                made += outcome.task.count
            if done * 100 // total != (done - 1) * 100 // total:
                say(f"{done} of {total}" + (f", {len(failed)} failed" if failed else ""))
        return Report(made, sum(task.count for task in plan.tasks()) - sum(task.count for task in tasks), failed)


def pictures_of(folder: Path) -> list[dict]:
    """A record for each picture of a run, the last one where a picture was made again."""
    return list({(r["arm"], r["prompt"], r["number"]): r for r in read_records(folder / PICTURES)}.values())


def read_run(folder: Path) -> dict:
    """The content of run.json.

    Raises:
        EvaluationError: there is none.
    """
    try:
        return json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{folder}: no run ({RUN}: {error}). Make one with: latent-clip evaluate generate") from error


def prompts_of(run: dict) -> list[Prompt]:
    """The prompts of a run."""
    return [Prompt(**prompt) for prompt in run["prompts"]]


def model_hashes(workflows: Sequence[Workflow], models: Path | None) -> dict[str, str]:
    """sha256 of every file of ComfyUI's models folder that a workflow names."""
    if models is None:
        return {}
    if not models.is_dir():
        raise EvaluationError(f"{models}: no such folder, expected the models folder of ComfyUI.")
    words = {
        value for workflow in workflows for node in workflow.graph.values() for value in node["inputs"].values()
        if isinstance(value, str) and re.fullmatch(r"[^\n]{1,200}\.\w{2,12}", value)
    }  # fmt: skip
    found = {}
    for word in sorted(words):
        for path in sorted(models.glob("*/")):
            if (file := path / word).is_file():
                found[f"{path.name}/{word}"] = sha256_of(file)
    return found


class _Maker:
    """What is done with a task: in a server's thread fill the slots, run, and check what came; then keep it."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.hashes = {arm.name: arm.workflow.hash for arm in plan.arms}
        self.arms = {arm.name: arm.workflow for arm in plan.arms}
        self.prompts = {prompt.index: prompt for prompt in plan.prompts}

    def __call__(self, server: Server, task: Task) -> Made:
        workflow, prompt = self.arms[task.arm], self.prompts[task.prompt]
        values: dict[str, object] = {"prompt": prompt.text, "seed": task.seed}
        if "batch" in workflow.slots:
            values["batch"] = task.count
        if "picture" in prompt.about:
            path = Path(prompt.about["picture"])
            values["picture"] = server.upload(f"{sha256_of(path)[:16]}{path.suffix}", path.read_bytes())
        output = next((key for key, node in workflow.graph.items() if (node.get("_meta") or {}).get("title") == "output"), None)
        made = server.run(workflow.filled(values), output)
        if len(made.pictures) != task.count:
            raise TaskFailedError(
                f"{task.arm}: the workflow gave {len(made.pictures)} pictures, expected {task.count}. "
                + ("Let it save one picture, or give the batch size a slot." if task.count == 1 else "Does its batch slot set how many it saves?")
            )
        return replace(made, pictures=[_as_png(content) for content in made.pictures])

    def keep(self, folder: Path, task: Task, made: Made, server: str) -> None:
        """Write the pictures, then the lines that say they are there."""
        rewards: Sequence[float | None] = made.rewards or [None] * task.count
        records = []
        for number, content, reward in zip(task.numbers, made.pictures, rewards):
            file = Path(task.arm) / self.plan.benchmark.picture(self.prompts[task.prompt], number, self.plan.images)
            write_file(folder / file, content)
            records.append(
                {
                    "arm": task.arm, "prompt": task.prompt, "number": number, "seed": task.seed, "row": number - task.first,
                    "file": file.as_posix(), "sha256": hashlib.sha256(content).hexdigest(), "seconds": _finite(made.seconds / task.count),
                    "server": server, "workflow": self.hashes[task.arm], "reward": reward,
                }
            )  # fmt: skip
        append_records(folder / PICTURES, records)


def _as_png(content: bytes) -> bytes:
    """The same picture as the benchmarks expect it.

    Raises:
        TaskFailedError: it is none; a server that is out of disk leaves such files.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if content.startswith(PNG):
                return content
            image.convert("RGB").save(target := io.BytesIO(), "PNG")
            return target.getvalue()
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskFailedError(f"Got {len(content)} bytes that are no picture ({error}).") from error


def _finite(seconds: float) -> float | None:
    return round(seconds, 4) if seconds == seconds else None


def _begin(plan: Plan, folder: Path, versions: dict) -> None:
    """Write run.json, or add to the one that is there what may be added: arms, servers, more prompts.

    Raises:
        EvaluationError: the folder is of a run with other prompts, seeds or workflows.
    """
    new = json.loads(json.dumps(plan.as_dict()))
    if (folder / RUN).exists():
        old = read_run(folder)
        for key in ("benchmark", "images", "seed", "batch"):
            if old[key] != new[key]:
                raise EvaluationError(f"{folder}: made with {key} {old[key]!r}, now {new[key]!r}. Take another folder.")
        short, long = sorted((old["prompts"], new["prompts"]), key=len)
        if long[: len(short)] != short:
            raise EvaluationError(f"{folder}: made with other prompts than {plan.source}. Take another folder.")
        for name in old["arms"].keys() & new["arms"].keys():
            was, now = (run["arms"][name]["workflow_hash"] for run in (old, new))
            if was != now:
                raise EvaluationError(
                    f"{folder}: the arm {name!r} was made with workflow {was}, now {now}. Give the new workflow another name."
                )
        new["prompts"] = long
        new["arms"] = {**old["arms"], **new["arms"]}
        new["models"] = {**old["models"], **new["models"]}
        versions = {**old.get("servers", {}), **versions}
    write_file(folder / RUN, json.dumps({**new, "servers": versions, "pack": pack_version()}, indent=1))


def pack_version() -> str:
    """Of this pack, as pyproject.toml has it, else as it is installed."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file() and (found := re.search(r'^version = "(.+)"', project.read_text(encoding="utf-8"), re.M)):
        return found[1]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latent-clip")
    except PackageNotFoundError:
        return "unknown"
