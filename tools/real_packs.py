"""Packs of other authors that the package index has, for a ComfyUI that tries ours beside them. Pinned and hash-checked."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RealPack:
    """Wheel of a real pack: a folder for custom_nodes, and one of the nodes in it."""

    requirement: str
    folder: str
    node: str
    sha256: str


REAL_PACKS = (
    RealPack(
        "comfyui-tooling-nodes==0.1.0", "comfyui_tooling_nodes", "ETN_LoadImageBase64",
        "a67723c739a75f167c1c6ec02e6179f70a023afab4ec96b1165018bc011a4e7a",
    ),
    RealPack(
        "comfyui-ib-customnodes==0.2.3", "ComfyUI_Ib_CustomNodes", "PILToImage",
        "b07597426ec895d98a8e4a5865857b69d6c64238da989431125e921ff564e8a9",
    ),
)  # fmt: skip


def put_beside(custom_nodes: Path) -> None:
    """Unpack all of them into a custom_nodes folder.

    Raises:
        RuntimeError: pip could not fetch one, or its hash is another; the message is pip's.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("".join(f"{pack.requirement} --hash=sha256:{pack.sha256}\n" for pack in REAL_PACKS))
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
             "--disable-pip-version-check", "--dest", folder, "-r", str(wanted)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-600:])
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as content:
                folders = tuple(f"{pack.folder}/" for pack in REAL_PACKS)
                names = [name for name in content.namelist() if name.startswith(folders)]
                content.extractall(custom_nodes, names)
