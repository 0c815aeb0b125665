"""Generation of a benchmark's pictures: the same prompts and seeds through several workflows, on any number of servers.

See run_folder.py for the content of a run's folder.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import EvaluationError
from .dispatch import Outcome, dispatch
from .history import ServerGoneError, TaskFailedError, one_line
from .names import unfit
from .plan import PictureTask, RunPlan
from .records import only_run, sha256_of
from .run_folder import begin, keep_pictures, pictures_of
from .servers import Made, Server
from .workflow import Workflow

MOST_PIXELS = 1 << 27
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Report:
    """Result of `generate`: pictures made now and before, tasks that were given up, and servers that failed with the reason."""

    made: int
    there: int
    failed: list[Outcome[PictureTask]]
    troubles: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.made} pictures made, {self.there} were there."]
        lines += [f"  {server} did not work to the end: {reason}" for server, reason in self.troubles.items()]
        if self.failed:
            pictures = sum(outcome.task.count for outcome in self.failed)
            lines.append(f"{pictures} pictures could not be made; the same command tries them again:")
            reasons: dict[tuple[str, str], list[PictureTask]] = {}
            for outcome in self.failed:
                reasons.setdefault((outcome.task.arm, outcome.error), []).append(outcome.task)
            lines += [
                f"  {arm}, {sum(task.count for task in tasks)} of them, such as prompt {tasks[0].prompt}, seed {tasks[0].seed}: {error}"
                for (arm, error), tasks in reasons.items()
            ]
        return "\n".join(lines)


def generate(
    plan: RunPlan, folder: Path, servers: Sequence[Server], log: Callable[[str], None] = lambda line: None
) -> Report:
    """Make the pictures of a plan that are missing.

    Args:
        log: called with a line at every percent of the work, and for each server that is left out.

    Raises:
        EvaluationError: another process uses the folder, the folder is of another run or holds other files where this run writes, or
            no server is left.
    """
    versions, troubles = _versions(servers, log)
    able = [server for server in servers if str(server) in versions]
    with only_run(folder):
        known = begin(plan, folder, versions)
        for arm in plan.arms:
            plan.benchmark.prepare(folder / arm.name, plan.prompts, plan.images)
        there = {(r["arm"], r["prompt"], r["number"]) for r in pictures_of(folder) if (folder / r["file"]).is_file()}
        tasks = [
            task
            for task in plan.tasks()
            if not all((task.arm, task.prompt, number) in there for number in task.numbers)
        ]
        total, failed, made, maker = len(tasks), [], 0, _Maker(plan, known)
        maker.check_places(folder, tasks)
        for done, outcome in enumerate(dispatch(tasks, able, maker, troubles=troubles), 1):
            if outcome.made is None:
                failed.append(outcome)
            else:
                maker.keep(folder, outcome.task, outcome.made, outcome.server)
                made += outcome.task.count
            if done * 100 // total != (done - 1) * 100 // total:
                log(f"{done} of {total}" + (f", {len(failed)} failed" if failed else ""))
        return Report(
            made, sum(task.count for task in plan.tasks()) - sum(task.count for task in tasks), failed, troubles
        )


def _versions(servers: Sequence[Server], log: Callable[[str], None]) -> tuple[dict[str, dict], dict[str, str]]:
    """Return the versions of the servers that answer, and the errors of the others.

    Raises:
        EvaluationError: no server answers.
    """
    found: dict[str, dict] = {}
    errors: dict[str, EvaluationError] = {}
    for server in servers:
        try:
            found[str(server)] = server.versions()
        except EvaluationError as error:
            errors[str(server)] = error
    if errors and not found:
        raise (
            next(iter(errors.values()))
            if len(errors) == 1
            else ServerGoneError("\n".join(["No server answers:", *(f"  {e}" for e in errors.values())]))
        )
    for reason in errors.values():
        log(f"left out: {reason}")
    return found, {server: str(error) for server, error in errors.items()}


def model_hashes(workflows: Sequence[Workflow], models: Path | None) -> dict[str, str]:
    """Return the sha256 of every file in ComfyUI's models folder that a workflow names."""
    if models is None:
        return {}
    if not models.is_dir():
        raise EvaluationError(f"{models}: no such folder, expected the models folder of ComfyUI.")
    names = {
        value for workflow in workflows for node in workflow.graph.values() for value in node["inputs"].values()
        if isinstance(value, str) and re.fullmatch(r"[^\n]{1,200}\.\w{2,12}", value)
    }  # fmt: skip
    folders = sorted(path for path in models.iterdir() if path.is_dir())
    return {
        f"{folder.name}/{name}": sha256_of(folder / name) for name in sorted(names) for folder in folders if not unfit(Path(name).name)
        and (folder / name).is_file()
    }  # fmt: skip


class _Maker:
    """Work of a task: fill the slots, run the workflow and check its pictures (in a server's thread), then keep them."""

    def __init__(self, plan: RunPlan, known: Mapping[str, set[str]]):
        self.plan, self.known = plan, {file: set(hashes) for file, hashes in known.items()}
        self.hashes = {arm.name: arm.workflow.hash for arm in plan.arms}
        self.arms = {arm.name: arm.workflow for arm in plan.arms}
        self.prompts = {prompt.index: prompt for prompt in plan.prompts}

    def __call__(self, server: Server, task: PictureTask) -> Made:
        workflow, prompt = self.arms[task.arm], self.prompts[task.prompt]
        values: dict[str, object] = {"prompt": prompt.text, "seed": task.seed}
        if "batch" in workflow.slots:
            values["batch"] = task.count
        if "picture" in prompt.about:
            path = Path(prompt.about["picture"])
            try:
                content = path.read_bytes()
            except OSError as error:
                raise TaskFailedError(
                    f"{path}: cannot be read ({error.strerror}), expected the picture that the workflow starts from."
                ) from error
            values["picture"] = server.upload(f"{hashlib.sha256(content).hexdigest()[:16]}{path.suffix}", content)
        output = next(
            (key for key, node in workflow.graph.items() if (node.get("_meta") or {}).get("title") == "output"), None
        )
        made = server.run(workflow.filled(values), output, task.count)
        return replace(made, pictures=[_as_png(content) for content in made.pictures])

    def check_places(self, folder: Path, tasks: Sequence[PictureTask]) -> None:
        """Raise EvaluationError if a file that this run did not make lies at the path of a picture."""
        for task in tasks:
            for number in task.numbers:
                self._check_place(folder, self.plan.file_of(task.arm, self.prompts[task.prompt], number))

    def _check_place(self, folder: Path, file: Path) -> None:
        path = folder / file
        if path.exists() and not (path.is_file() and sha256_of(path) in self.known.get(file.as_posix(), ())):
            raise EvaluationError(
                f"{path}: is not a picture that this run made, and one of its pictures goes there. Move it away."
            )

    def keep(self, folder: Path, task: PictureTask, made: Made, server: str) -> None:
        """Write the pictures and their records. Files that this run did not make are not overwritten."""
        rewards: Sequence[float | None] = made.rewards or [None] * task.count
        seconds = None if made.seconds is None else round(made.seconds / task.count, 4)
        files = [self.plan.file_of(task.arm, self.prompts[task.prompt], number) for number in task.numbers]
        hashes = [hashlib.sha256(content).hexdigest() for content in made.pictures]
        for file in files:
            self._check_place(folder, file)
        records = [
            {
                "arm": task.arm, "prompt": task.prompt, "number": number, "seed": task.seed, "row": number - task.first,
                "file": file.as_posix(), "sha256": digest, "seconds": seconds,
                "server": server, "workflow": self.hashes[task.arm], "reward": reward,
            }
            for number, file, digest, reward in zip(task.numbers, files, hashes, rewards)
        ]  # fmt: skip
        keep_pictures(folder, dict(zip(files, made.pictures)), records)
        for file, digest in zip(files, hashes):
            self.known.setdefault(file.as_posix(), set()).add(digest)


def _as_png(content: bytes) -> bytes:
    """Convert a picture to PNG, which the benchmarks expect.

    Raises:
        TaskFailedError: the content is no picture; a server with a full disk leaves such files.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width} × {image.height} pixels, expected at most {MOST_PIXELS / 1e6:.0f} million"
                )
            image.load()
            if content.startswith(PNG):
                return content
            image.convert("RGB").save(target := io.BytesIO(), "PNG")
            return target.getvalue()
    except Exception as error:  # each of Pillow's readers has exceptions of its own
        raise TaskFailedError(f"Got {len(content)} bytes that are no picture ({one_line(error, 200)}).") from error
