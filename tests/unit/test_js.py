"""Runs the tests of js/lib in Node's own test runner."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no Node.js on this machine")
@pytest.mark.parametrize("path", sorted((HERE / "js").glob("*.test.mjs")), ids=lambda path: path.name)
def test_helpers_of_the_page(path):
    run = subprocess.run([NODE, "--test", path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
