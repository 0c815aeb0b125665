"""What ./dev package checks, without asking the package index: the registry's archive, used in a fresh host."""

import pytest

from latent_clip.tools.package import run_checks

CHECKS = (
    "the archive has", "every node has its help page in it", "nodes are registered from the archive", "so are the nodes of",
    "the page gets", "workflows as templates", "help pages", "nothing was written into its folder", "its commands start from it",
)  # fmt: skip


@pytest.fixture(scope="module")
def lines(comfy_tree, tmp_path_factory):
    return list(run_checks(comfy_tree, tmp_path_factory.mktemp("package"), with_pip=False))


@pytest.mark.parametrize("words", CHECKS)
def test_archive(lines, words):
    found = [(holds, line) for holds, line in lines if words in line]
    assert found and all(holds is True for holds, _ in found), found


def test_archive_fails_no_check(lines):
    assert not [line for holds, line in lines if holds is False]
