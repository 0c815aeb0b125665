"""Starts the one real ComfyUI that host and browser tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def version_key(tree: Path) -> list[int]:
    """Sort key of .cache/comfyui/0.30.0."""
    return [int(part) if part.isdigit() else -1 for part in tree.name.split(".")]


@pytest.fixture(scope="session")
def comfy_tree() -> Path:
    """The ComfyUI under test: $COMFYUI_PATH as ./dev sets it, else the newest one that ./dev has fetched."""
    if path := os.environ.get("COMFYUI_PATH"):
        tree = Path(path)
    else:
        fetched = sorted((ROOT / ".cache" / "comfyui").glob("*/main.py"), key=lambda main: version_key(main.parent))
        tree = fetched[-1].parent if fetched else ROOT / ".cache" / "comfyui"
    if not (tree / "main.py").exists():
        pytest.fail(f"no ComfyUI at {tree}: run ./dev test host once, or set COMFYUI_PATH", pytrace=False)
    return tree


@pytest.fixture(scope="session")
def comfy(comfy_tree, tmp_path_factory):
    """A running ComfyUI with the pack and the test pack in it; see tests/host_server.py for what it offers."""
    from latent_clip.tests.host_server import TestServer

    with TestServer(comfy_tree, tmp_path_factory.mktemp("comfyui")) as server:
        yield server
