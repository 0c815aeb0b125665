"""What ./dev package checks, without asking the package index: the registry's archive, used in a fresh host."""

from latent_clip.tools.package import run_checks


def test_the_archive_works_beside_other_packs(comfy_tree, tmp_path):
    lines = list(run_checks(comfy_tree, tmp_path, with_pip=False))
    assert len(lines) > 8
    assert not [line for holds, line in lines if holds is False]
