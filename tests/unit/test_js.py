"""Runs the tests of js/lib in Node's own test runner, one result for each."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "js"
NODE = shutil.which("node")
TESTS = [
    (path.name, name)
    for path in sorted(HERE.glob("*.test.mjs"))
    for name in re.findall(r'^test\("((?:[^"\\]|\\.)+)"', path.read_text(encoding="utf-8"), re.M)
]


@cache
def results(file: str) -> tuple[str, dict[str, bool]]:
    """The whole output of a file, and which of its tests passed."""
    run = subprocess.run([NODE, "--test", "--test-reporter=tap", HERE / file], capture_output=True, text=True, timeout=120)
    lines = re.findall(r"^(not )?ok \d+ - (.+)$", run.stdout, re.M)
    return run.stdout + run.stderr, {name.replace("\\#", "#"): not failed for failed, name in lines}


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_js(file, name):
    if NODE is None:
        assert not os.environ.get("CI"), "CI needs Node.js"
        pytest.skip("no Node.js on this machine")
    output, passed = results(file)
    assert passed.get(name), output


@pytest.mark.skipif(NODE is None, reason="no Node.js on this machine")
@pytest.mark.parametrize("file", sorted({file for file, _ in TESTS}))
def test_js_files_have_no_other_tests(file):
    assert set(results(file)[1]) == {name for own, name in TESTS if own == file}
