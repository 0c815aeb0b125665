"""A run's folder: `run.json` (the plan), `pictures.jsonl` and `scores.jsonl` (a line for each picture and score), and a folder for each
arm with its pictures in the paths that the benchmark's own scorer expects.

Its content is untrusted when it is read, and files that the run did not make are neither overwritten nor removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..models.strict_json import read_json, short
from . import EvaluationError
from .benchmarks import Prompt
from .names import unfit
from .plan import PICTURES, RUN, SCORES, RunPlan
from .records import PICTURE_FIELDS, append_records, read_records, remove_parts, sha256_of, write_file

# field of run.json → its JSON type
FIELDS: Mapping[str, type] = {
    "benchmark": str, "source": str, "images": int, "seed": int, "batch": int, "prompts": list, "arms": dict, "models": dict,
}  # fmt: skip
# files that benchmarks keep beside pictures
BESIDE = ("metadata.jsonl", "classnames.txt", "zeroshot_classification_templates.txt")
WRITING = ".writing.json"  # file → sha256 of pictures that are written before their records


def keep_pictures(folder: Path, contents: Mapping[Path, bytes], records: Sequence[dict]) -> None:
    """Write pictures, then their records. After a kill in between, `.writing.json` identifies the pictures without records."""
    hashes = {file.as_posix(): hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    write_file(folder / WRITING, json.dumps(hashes), sync=False)
    for file, content in contents.items():
        write_file(folder / file, content, parts=folder)
    append_records(folder / PICTURES, records)
    (folder / WRITING).unlink()


def _remove_unfinished(folder: Path, known: Mapping[str, set[str]]) -> None:
    """Remove pictures that a killed run wrote without a record, by the hashes in `.writing.json`. They are made again."""
    path = folder / WRITING
    if not path.exists():
        return
    try:
        noted = read_json(path)
    except (OSError, ValueError):
        noted = None
    if not (
        isinstance(noted, dict) and all(isinstance(digest, str) and is_inside(file) for file, digest in noted.items())
    ):
        raise EvaluationError(f"{path}: is not the note of an evaluation, and is left as it is. Take another folder.")
    for file, digest in noted.items():
        if digest not in known.get(file, ()) and (folder / file).is_file() and sha256_of(folder / file) == digest:
            (folder / file).unlink()
    path.unlink()


def is_inside(file: str) -> bool:
    """Return True if this is a relative path that stays in its folder."""
    path = PurePosixPath(file)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def pictures_of(folder: Path) -> list[dict]:
    """Return one record per picture of a run, the last one if a picture was made again."""
    return list({(r["arm"], r["prompt"], r["number"]): r for r in _picture_records(folder)}.values())


def _picture_records(folder: Path) -> list[dict]:
    records = read_records(folder / PICTURES, PICTURE_FIELDS)
    for number, record in enumerate(records, 1):
        if not is_inside(record["file"]):
            raise EvaluationError(
                f"{folder / PICTURES}: line {number} has the file {short(record['file'])}, expected one in the run's folder."
            )
    return records


def read_run(folder: Path) -> dict:
    """Read run.json.

    Raises:
        EvaluationError: the file is missing or is not the plan of a run.
    """
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{folder}: no run ({RUN}: {error}). Make one with: latent-clip evaluate generate"
        ) from error
    except RecursionError as error:
        raise EvaluationError(
            f"{folder / RUN}: is nested too deeply, expected the plan of a run. Take the folder of a run."
        ) from error
    if odd := _odd(run):
        raise EvaluationError(
            f"{folder / RUN}: {odd}, expected the plan of a run. Take the folder of a run, or make one with: latent-clip evaluate generate"
        )
    return run


def prompts_of(run: dict) -> list[Prompt]:
    """Return the prompts of a run."""
    return [Prompt(**prompt) for prompt in run["prompts"]]


def _odd(run: object) -> str:
    """Return the reason why this is no content of run.json; "" if it is."""
    if not isinstance(run, dict):
        return f"is {short(run)}"
    for name, kind in FIELDS.items():
        if name not in run:
            return f"has no {name}"
        if not isinstance(run[name], kind) or isinstance(run[name], bool):
            return f"has the {name} {short(run[name])}"
    if run["images"] < 1 or run["batch"] < 1 or not run["prompts"] or not run["arms"]:
        return "has no pictures, prompts or arms"
    if odd := [prompt for prompt in run["prompts"] if not _is_prompt(prompt)]:
        return f"has the prompt {short(odd[0])}"
    if len({prompt["index"] for prompt in run["prompts"]}) < len(run["prompts"]):
        return "has two prompts of one index"
    arms = [name for name, arm in run["arms"].items() if unfit(name, windows=True) or not _is_arm(arm)]
    return f"has the arm {short(arms[0])} with {short(run['arms'][arms[0]])}" if arms else ""


def _is_prompt(prompt: object) -> bool:
    kinds = {"index": int, "text": str, "task": str, "seed": (int, type(None)), "about": dict}
    return (
        isinstance(prompt, dict) and {"index", "text"} <= prompt.keys() <= kinds.keys()
        and all(isinstance(value, kinds[name]) and not isinstance(value, bool) for name, value in prompt.items())  # type: ignore[arg-type]
    )  # fmt: skip


def _is_arm(arm: object) -> bool:
    return (
        isinstance(arm, dict)
        and isinstance(arm.get("workflow_hash"), str)
        and isinstance(arm.get("settings"), dict)
        and _is_number(arm["settings"].get("cfg", 0))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def begin(plan: RunPlan, folder: Path, versions: dict) -> dict[str, set[str]]:
    """Write run.json, or extend the existing one by arms, servers or more prompts. Only for the holder of the lock.

    Returns:
        file → hashes of the pictures that this run wrote there.

    Raises:
        EvaluationError: the folder is of a run with other prompts, seeds or workflows, or holds other files where this run writes.
    """
    new = json.loads(json.dumps(plan.as_dict()))
    known: dict[str, set[str]] = defaultdict(set)
    if (folder / RUN).exists():
        old = read_run(folder)
        new = _together(old, new, folder, plan.source)
        versions = {**(old["servers"] if isinstance(old.get("servers"), dict) else {}), **versions}
        for record in _picture_records(folder):
            known[record["file"]].add(record["sha256"])
    else:
        old = {"arms": {}}
        if odd := next((name for name in (PICTURES, SCORES) if (folder / name).exists()), None):
            raise EvaluationError(
                f"{folder / odd}: is there without a {RUN}, so that it is not of a run. Take another folder."
            )
    for arm in plan.arms:
        path = folder / arm.name
        if arm.name not in old["arms"] and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise EvaluationError(
                f"{path}: is there already and not of this run, and the arm's pictures go there. Move it away, or rename the arm."
            )
    _remove_unfinished(folder, known)
    _clean(plan, folder)
    write_file(folder / RUN, json.dumps({**new, "servers": versions, "pack": pack_version()}, indent=1))
    return known


def _together(old: dict, new: dict, folder: Path, source: str) -> dict:
    """Merge the plan of a run with the plan that continues it."""
    for key in ("benchmark", "images", "seed", "batch"):
        if old[key] != new[key]:
            raise EvaluationError(f"{folder}: made with {key} {old[key]!r}, now {new[key]!r}. Take another folder.")
    few, many = sorted((old["prompts"], new["prompts"]), key=len)
    if many[: len(few)] != few:
        raise EvaluationError(f"{folder}: made with other prompts than {source}. Take another folder.")
    for name in old["arms"].keys() & new["arms"].keys():
        was, now = (run["arms"][name]["workflow_hash"] for run in (old, new))
        if was != now:
            raise EvaluationError(
                f"{folder}: the arm {name!r} was made with workflow {was}, now {now}. Give the new workflow another name."
            )
    return {
        **new,
        "prompts": many,
        "arms": {**old["arms"], **new["arms"]},
        "models": {**old["models"], **new["models"]},
    }


def _clean(plan: RunPlan, folder: Path) -> None:
    """Remove partial files of killed runs: in the folder itself, and beside the pictures, where versions before 0.3 put them."""
    names: dict[Path, set[str]] = defaultdict(set, {folder: {RUN, WRITING, *BESIDE}})
    for arm in plan.arms:
        for prompt, number in plan.pictures():
            path = folder / plan.file_of(arm.name, prompt, number)
            for place in (folder, path.parent):
                names[place].add(path.name)
            names[path.parent.parent].update(BESIDE)
    for place, there in names.items():
        remove_parts(place, there)


def pack_version() -> str:
    """Return this pack's version from pyproject.toml, else of the installed package."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file() and (found := re.search(r'^version = "(.+)"', project.read_text(encoding="utf-8"), re.M)):
        return found[1]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latent-clip")
    except PackageNotFoundError:
        return "unknown"
