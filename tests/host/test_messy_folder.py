"""`latent-clip embed` from the command line over a folder with every oddity that people's data have: a report to act on, nothing lost or changed."""

import json
import subprocess
import sys
import tarfile

import pytest

pytest.importorskip("webdataset")
pytest.importorskip("pyarrow")

from latent_clip.tests.messy_folder import hashes, make, make_tars
from latent_clip.tools.comfy_server import PACK_ROOT
from latent_clip.training.shards import read_samples


@pytest.fixture(scope="module")
def embed(comfy_tree):
    def run(source, target, *more):
        options = ("--vae", "shapes-world", "--side", "64", "--cpu", "--comfyui", str(comfy_tree), *more)
        return subprocess.run(
            [sys.executable, str(PACK_ROOT), "embed", str(source), str(target), *options], capture_output=True, text=True, timeout=500,
        )  # fmt: skip

    return run


def captions_of(folder):
    return {sample.id: sample.captions for sample in read_samples(folder)}


def test_nothing_is_lost_and_the_report_says_what_to_do(embed, tmp_path):
    messy = make(tmp_path)
    before = hashes(tmp_path)
    assert 200 <= len(before) <= 450
    done = embed(messy.root, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert captions_of(tmp_path / "out") == {name: [" ".join(text.split()) for text in texts] for name, texts in messy.captions.items()}
    report = done.stdout
    assert f"{len(messy.captions)} pictures embedded" in report
    for reason, count in messy.left_out.items():
        assert f"left out, {reason}: {count}, such as 'damaged/" in report
    rows = len(messy.captions) + messy.left_out.total()
    for line in (
        f"captions: {messy.captioned} of {rows} pictures have one",
        "table/metadata.jsonl: 5 of 48 entries match no picture, such as 'gone_0.jpg', 'gone_1.jpg', 'gone_2.jpg'",
        "table/metadata.jsonl: 2 entries passed over: damaged JSON", "table/metadata.jsonl: 1 entries passed over: names no picture",
        "table/metadata.jsonl: 1 entries passed over: no text", "caption files passed over, not UTF-8: 1, such as 'texts/cp1251.txt'",
        "caption files passed over, damaged JSON: 1, such as 'texts/nested.json'", "not read: 1 .heic files",
    ):  # fmt: skip
        assert line in report, report
    assert {name: value for name, value in hashes(tmp_path).items() if not bytes.fromhex(name).startswith(b"out")} == before


def test_tars(embed, tmp_path):
    messy = make_tars(tmp_path)
    before = hashes(tmp_path)
    done = embed(messy.root / "*.tar", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert captions_of(tmp_path / "out") == messy.captions
    for line in (
        "00009.tar: broken (", "; passed over. Download it again.", "cut.tar: broken (", "the 1 pictures before are used",
        "caption files passed over, sparse in its tar: 1, such as 'sparse.tar/a.txt'", "left out, cut off at the end of its tar: 1",
    ):  # fmt: skip
        assert line in done.stdout
    assert {name: value for name, value in hashes(tmp_path).items() if not bytes.fromhex(name).startswith(b"out")} == before
    packed = embed(messy.root / "packed" / "x.tar.gz", tmp_path / "other")
    assert packed.returncode == 1 and "gunzip -c x.tar.gz > x.tar" in packed.stderr


def test_only_pictures_with_captions(embed, tmp_path):
    messy = make_tars(tmp_path)
    done = embed(f"{messy.root}/{{00000..00001}}.tar::{messy.root}/sparse.tar", tmp_path / "out", "--require-captions")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 pictures embedded" in done.stdout and "left out, no caption: 1" in done.stdout
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        texts = [tar.extractfile(info).read() for info in tar if info.name.endswith(".txt")]
    assert len(texts) == 8 and all(texts)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["space"]["name"] == "shapes-world"
