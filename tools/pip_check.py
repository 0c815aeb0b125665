"""Ask pip what `pip install -r requirements.txt` would change in a ComfyUI with other packs; install nothing.

pip reads of an installed package its metadata only. So an environment that holds the metadata of the host's own packages,
and the versions that another pack has pinned, is to pip's resolver what a user's installation is. Standard library only,
but for `packaging`, which the host's requirements bring along.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def parse_requirements(path: Path) -> list[Requirement]:
    """The lines of a requirements.txt."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def installed_for(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Metadata of every installed package that these requirements need, directly or not: name → METADATA."""
    found: dict[str, str] = {}
    seen, queue = set(), list(requirements)
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        if (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system, or an extra that nobody installed
        found[name] = package.read_text("METADATA") or ""
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(needed)
    return found


def pinned_versions(path: Path) -> dict[str, str]:
    """name → version of the lines `name==version` of a requirements.txt."""
    return {
        canonicalize_name(requirement.name): specifier.version
        for requirement in parse_requirements(path)
        for specifier in requirement.specifier
        if specifier.operator == "=="
    }


def changes(requirements: Path, installed: Mapping[str, str], pinned: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Changes that pip would make: name → (installed version or "", version that would come).

    Args:
        installed: name → METADATA.
        pinned: name → version, which take the place of the installed ones.

    Raises:
        RuntimeError: pip finds no solution, or no package index; the message is pip's.
    """
    metadata = {
        **installed,
        **{name: f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" for name, version in pinned.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (python,) = [path for path in Path(folder).glob("*/python*") if path.stem == "python"]
        (packages,) = {*Path(folder).glob("lib/python*/site-packages"), *Path(folder).glob("Lib/site-packages")}
        versions = {}
        for name, text in metadata.items():
            versions[name] = next(line.split(": ")[1] for line in text.splitlines() if line.startswith("Version: "))
            info = packages / f"{name.replace('-', '_')}-{versions[name]}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--quiet", "--no-input",
             "--disable-pip-version-check", "--report", "-", "-r", str(requirements)],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-600:])
    report = json.loads(done.stdout)
    arriving = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in report["install"]}
    return {name: (versions.get(name, ""), version) for name, version in sorted(arriving.items())}
