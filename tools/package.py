"""Build the archive that the registry would, install it beside other packs in a fresh ComfyUI, and use it: ./dev package

The registry packs what git tracks and .comfyignore does not name. Every line printed is one thing that was checked on
that archive, not on the checkout; the exit code says whether all of them hold.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .comfy_server import PACK_ROOT, ComfyError, ComfyServer, Result, make_base
from .pip_check import changes, installed_for, parse_requirements, pinned_versions
from .real_packs import REAL_PACKS, put_beside
from .ui_to_api import ui_to_api

FOLDER = "latent-clip"  # the registry installs a pack under its project name
LARGEST = 20e6  # bytes of an archive
NEIGHBOURS = PACK_ROOT / "tests" / "host" / "neighbours"
OLD_TIMM = "0.9.16"  # the newest open_clip_torch wants timm 1.0.17 or newer
KEEPS_TIMM = {"open-clip-torch": "2.24.0"}  # installed before, it is kept, and so is every timm
Checks = Iterator[tuple[bool | None, str]]  # whether it holds, None for what is only to be known; and one line


def shipped_files(root: Path = PACK_ROOT) -> list[Path]:
    """Files of the archive, relative to the root. git reads .comfyignore as the registry's packer does: as a .gitignore."""

    def listed(*options: str) -> set[str]:
        command = ["git", "-c", "core.quotepath=off", "ls-files", "--cached", *options]
        return set(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines())

    return [Path(name) for name in sorted(listed() - listed("--ignored", "--exclude-from=.comfyignore"))]


def build_archive(target: Path) -> list[Path]:
    """Write the zip; returns what is in it."""
    files = shipped_files()
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(PACK_ROOT / path, path)
    return files


def node_ids(root: Path) -> set[str]:
    """The node_id of every schema in nodes/, read off the syntax trees."""
    return {
        keyword.value.value
        for path in (root / "nodes").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
    }


def unpack(archive: Path, base: Path) -> Path:
    """A fresh --base-directory with the archive installed and the neighbours beside it. Returns the pack's folder."""
    shutil.rmtree(base, ignore_errors=True)
    make_base(base, {path.name: path for path in sorted(NEIGHBOURS.iterdir())})
    with zipfile.ZipFile(archive) as content:
        content.extractall(base / "custom_nodes" / FOLDER)
    return base / "custom_nodes" / FOLDER


def check_archive(archive: Path, files: list[Path]) -> Checks:
    """Its size, and that what a user can need is in it."""
    size = archive.stat().st_size
    yield size <= LARGEST, f"the archive has {len(files)} files and {size / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} MB"
    helped = {path.stem for path in files if path.parent == Path("js/docs")}
    lacking = sorted(node_ids(PACK_ROOT) - helped)
    yield not lacking, "every node has its help page in it" + (f", but for {', '.join(lacking)}" if lacking else "")


def check_pip(tree: Path) -> Checks:
    """pip, asked what it would do in ComfyUI's own environment and in ones where other packs have pinned versions."""
    installed = installed_for(parse_requirements(tree / "requirements.txt"))
    pins: dict[str, str] = {}
    for path in NEIGHBOURS.glob("*/requirements.txt"):
        pins |= pinned_versions(path)
    old = {**pins, "timm": OLD_TIMM}
    cases: tuple[tuple[str, dict[str, str]], ...] = (
        ("ComfyUI's own packages", {}),
        ("another pack's", pins),
        ("another pack's", old),
        ("another pack's", {**old, **KEEPS_TIMM}),
    )
    for where, there in cases:
        arriving = changes(PACK_ROOT / "requirements.txt", installed, there)
        broken = [f"{name} {was} → {new}" for name, (was, new) in arriving.items() if was]
        added = ", ".join(f"{name} {new}" for name, (was, new) in arriving.items() if not was) or "nothing"
        verdict = f"changes {', '.join(broken)}" if broken else "changes nothing that is there"
        beside = " ".join([where, ", ".join(f"{name} {version}" for name, version in there.items())]).strip()
        line = f"pip install beside {beside}: {verdict}, adds {added}"
        if there == old and [name for name, (was, _) in arriving.items() if was] == ["timm"]:
            yield None, f"{line}. docs/faq.md says how to keep it"
        else:
            yield not broken, line


def check_in_host(server: ComfyServer, pack: Path) -> Checks:
    """Check that the running host has loaded all of the pack from the archive, and that its first workflow runs."""
    module = f"custom_nodes.{FOLDER}"
    infos = server.object_info()
    ours = {name for name, info in infos.items() if info["python_module"] == module}
    wanted = node_ids(PACK_ROOT)
    lacking = "" if ours == wanted else f", not {', '.join(sorted(wanted ^ ours))}; see {server.log_path}"
    yield ours == wanted, f"{len(ours)} of {len(wanted)} nodes are registered from the archive{lacking}"
    neighbours = {"NeighbourGreedy", "NeighbourPins"} <= infos.keys()
    yield (
        neighbours,
        "a pack that takes over sys.path, one that shares a socket name and one that is broken are beside it",
    )
    extras = {info["python_module"] for info in infos.values() if info["python_module"].startswith("comfy_extras.")}
    yield bool(extras), f"so are the nodes of {len(extras)} files of ComfyUI's own comfy_extras"
    with urllib.request.urlopen(f"{server.url}/extensions", timeout=60) as response:
        scripts = [name for name in json.load(response) if f"/{FOLDER}/" in name]
    yield bool(scripts), f"the page gets {len(scripts)} scripts of ours"
    templates = set(server.get("/workflow_templates").get(FOLDER, []))
    there = {path.stem for path in (pack / "workflows").glob("*.json")}
    yield templates == there, f"the page offers {len(templates)} of {len(there)} workflows as templates"
    help_pages = sum(bool(read(f"{server.url}/extensions/{FOLDER}/docs/{name}.md")) for name in wanted)
    yield help_pages == len(wanted), f"the page can open {help_pages} help pages"
    yield check_workflow(server, infos, pack / "workflows" / "01 Try it now.json")


def check_real_packs(infos: dict) -> Checks:
    """Check that packs of other authors have loaded beside ours."""
    for pack in REAL_PACKS:
        loaded = infos.get(pack.node, {}).get("python_module") == f"custom_nodes.{pack.folder}"
        yield loaded, f"{pack.requirement} of the package index is beside it, with its nodes"


def check_workflow(server: ComfyServer, infos: dict, path: Path) -> tuple[bool | None, str]:
    """Queue a shipped workflow as the front end would."""
    try:
        result: Result = server.run(ui_to_api(json.loads(path.read_text(encoding="utf-8")), infos))
    except (ComfyError, ValueError) as error:
        return False, f"{path.stem} did not run: {error}"
    images = [image for output in result.outputs.values() for image in output.get("images", [])]
    return bool(
        images
    ), f"{path.stem} ran through POST /prompt in {result.seconds:.1f} s and gave {len(images)} pictures"


def read(url: str) -> bytes:
    """Return the answer of a route; nothing for a 404."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except urllib.error.HTTPError:
        return b""


def check_afterwards(pack: Path, files: list[Path]) -> Checks:
    """Check that the pack left its own folder as it was, and that its command line tool starts from there."""
    now = {path.relative_to(pack) for path in pack.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    yield now == set(files), "nothing was written into its folder"
    tool = [sys.executable, str(pack), "convert", "--help"]
    done = subprocess.run(tool, capture_output=True, text=True, cwd=pack.parent)
    yield done.returncode == 0, f"its commands start from it{done.stderr[-300:]}"


def run_checks(tree: Path, work: Path, with_pip: bool = True) -> Checks:
    """All of them, in an order in which each builds on what went before."""
    archive = work / f"{FOLDER}.zip"
    files = build_archive(archive)
    yield from check_archive(archive, files)
    if with_pip:
        yield from check_pip(tree)
    pack = unpack(archive, work / "base")
    if with_pip:
        put_beside(work / "base" / "custom_nodes")
    with ComfyServer(tree, work / "base") as server:
        if with_pip:
            yield from check_real_packs(server.object_info())
        yield from check_in_host(server, pack)
    yield from check_afterwards(pack, files)


def main() -> None:
    """Print one line per check; exit with 1 if one does not hold."""
    parser = argparse.ArgumentParser(prog="./dev package", description=__doc__.split("\n")[0])
    parser.add_argument("--tree", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--no-pip", action="store_true", help="leave out what asks the package index")
    options = parser.parse_args()
    work, failed = PACK_ROOT / ".cache" / "package", 0
    for holds, line in run_checks(options.tree, work, not options.no_pip):
        print(f"{'note' if holds is None else 'ok  ' if holds else 'FAIL'}  {line}", flush=True)
        failed += holds is False
    print(f"The archive: {(work / FOLDER).relative_to(PACK_ROOT)}.zip")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
