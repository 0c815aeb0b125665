"""Folders of shards: nobody else's files are touched, one process writes, many read, and no index or header is believed."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("webdataset")

from latent_clip.models import files
from latent_clip.models.files import InUseError, only_writer
from latent_clip.tests.shard_pieces import DATASET, SETTINGS, TOOLS
from latent_clip.training import shards as module
from latent_clip.training.embed import begin, embed
from latent_clip.training.run import finished_shards
from latent_clip.training.shard_folder import clean, indexes, retire
from latent_clip.training.shards import (
    Sample,
    ShardError,
    drop_repeats,
    finished,
    raw_tar_samples,
    read_dataset,
    read_samples,
    write_shard,
)
from latent_clip.training.sources import records_of

LATENT = {"latent": torch.zeros(1, 3, 4, 4)}


def samples(*names):
    return [Sample(name, dict(LATENT)) for name in names]


def ids(folder):
    return sorted(sample.id for sample in read_samples(folder))


def picture(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:03}.png").write_bytes(picture(number))
    return folder


# ----------------------------------------------------------------------------------------------------- files of others


STRANGERS = {
    "backup.part": b"a download", "0123456789abcdef.tar": b"named like ours", "fedcba9876543210.tar.part": b"a download of that",
    "mine-000.tar": b"a tar", "model.safetensors.index.json": b'{"weight_map": {}}', "._0123456789abcdef.index.json": b"\0\5",
    "notes.txt": b"x", "metadata.jsonl": b"{}", ".hidden.part": b"x",
}  # fmt: skip


def test_writing_and_reading_change_nothing_of_others(pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, content in STRANGERS.items():
        (out / name).write_bytes(content)
    before = hashes(out)
    embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)
    embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)
    assert len(ids(out)) == 24 and finished_shards(out).tars
    assert before.items() <= hashes(out).items()


def test_tars_of_the_pictures_are_no_target(tmp_path):
    for number in range(2):
        make_tar(tmp_path / f"mine-{number}.tar", {f"{number}.png": picture(number)})
    before = hashes(tmp_path)
    for source in (str(tmp_path / "*.tar"), f"{tmp_path}/../{tmp_path.name}/mine-0.tar"):
        with pytest.raises(ShardError, match="the tars of the pictures lie in this folder"):
            embed(records_of(source), tmp_path, DATASET, SETTINGS, TOOLS)
    assert hashes(tmp_path) == before and len(list(tmp_path.iterdir())) == 2, "nothing is written, no lock either"


@pytest.mark.parametrize("content", [b'{"name": "my data"}', b"[]", b"\xff\xfe"])
def test_header_of_another_program_stays(pictures, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"dataset\.json"):
        embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)
    assert (out / "dataset.json").read_bytes() == content and len(list(out.iterdir())) == 1


def test_shards_without_their_header_are_no_target(pictures, tmp_path):
    write_shard(tmp_path / "out", samples("a"))
    with pytest.raises(ShardError, match=r"no dataset\.json"):
        embed(records_of(str(pictures)), tmp_path / "out", DATASET, SETTINGS, TOOLS)


# ---------------------------------------------------------------------------------------------------------- one writer


WRITER = """
import sys, time
from pathlib import Path
from latent_clip.tests.shard_pieces import DATASET, SETTINGS, TOOLS
from latent_clip.training import shards
from latent_clip.training.embed import embed
from latent_clip.training.sources import records_of
members = shards.members
def slow(sample):
    for member in members(sample):
        time.sleep(0.03)
        yield member
shards.members = slow
embed(records_of(sys.argv[1]), Path(sys.argv[2]), DATASET, SETTINGS, TOOLS)
"""


def writer(pictures, out):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(pictures), str(out)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(out.glob(".*.tar.*.part")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    return process


def test_second_embed_is_refused_by_name_and_readers_read_what_is_finished(pictures, tmp_path):
    out = tmp_path / "out"
    process = writer(pictures, out)
    with pytest.raises(InUseError, match=rf"process {process.pid} on "):
        embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)
    while process.poll() is None:
        assert set(ids(out)) == finished(out).ids or process.poll() is None
    assert process.returncode == 0, process.stderr.read()
    assert len(ids(out)) == 24 and len(finished(out).tars) == 3


def test_what_a_killed_process_left_is_removed_or_finished_by_the_next_writer(pictures, tmp_path):
    out = tmp_path / "out"
    process = writer(pictures, out)
    process.kill()
    process.wait()
    assert [path.name.split(".")[2] for path in out.glob(".*.part")].count("tar") == 1
    finished(out)
    assert list(out.glob(".*.part")), "a reader removes nothing"
    embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)
    assert not list(out.glob(".*.part")) and len(ids(out)) == 24


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_killed_between_the_tar_and_its_index_the_shard_is_finished(tmp_path):
    DATASET.write(tmp_path)
    tar = write_shard(tmp_path, samples("a", "b"))
    index = tmp_path / f"{tar.stem}.index.json"
    index.replace(tmp_path / f".{index.name}.{files._host()}.{dead_process()}.0123abcd.part")
    assert ids(tmp_path) == []
    clean(tmp_path)
    assert ids(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("left", ["before", "tombstone", "no tar"])
def test_killed_while_repeats_are_dropped_no_row_is_lost_and_none_is_twice(tmp_path, left, monkeypatch):
    write_shard(tmp_path, samples("a", "b", "c"))
    write_shard(tmp_path, samples("c", "d"), [("e", "damaged")])

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if left == "before":
            patch.setattr(module, "retire", killed)
        else:
            unlink, count = Path.unlink, []

            def stop(path, missing_ok=False):
                if path.name.startswith("."):
                    return unlink(path, missing_ok)
                count.append(path)
                return killed() if len(count) == (1 if left == "tombstone" else 2) else unlink(path, missing_ok)

            patch.setattr(Path, "unlink", stop)
        with pytest.raises(Killed):
            drop_repeats(tmp_path)
        patch.undo()
    assert set(ids(tmp_path)) == {"a", "b", "c", "d"}
    clean(tmp_path)
    drop_repeats(tmp_path)
    assert ids(tmp_path) == ["a", "b", "c", "d"] and finished(tmp_path).skipped == {"e": "damaged"}
    assert len(list(tmp_path.iterdir())) == 4


def test_reader_reads_on_while_a_shard_is_replaced(tmp_path, monkeypatch):
    from latent_clip.training import shard_folder

    write_shard(tmp_path, samples("a"))
    write_shard(tmp_path, samples("b"))
    read, turns = shard_folder.read_index, []

    def replaced(path, name=""):
        if not turns:
            turns.append(path)
            retire(list(indexes(tmp_path))[1])
            write_shard(tmp_path, samples("b", "c"))
        return read(path, name)

    monkeypatch.setattr(shard_folder, "read_index", replaced)
    assert finished(tmp_path).ids == {"a", "b", "c"}


def test_shard_is_on_the_disk_before_it_has_a_name_and_its_size_is_what_was_written(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append(Path(f"/proc/self/fd/{number}").readlink().suffix), fsync(number)))

    def watched(path, target):
        events.append(Path(target).name.partition(".")[2])
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    tar = write_shard(tmp_path, samples("a"))
    assert events == [".part", ".part", "tar", "", ".part", "index.json", ""]
    assert json.loads((tmp_path / f"{tar.stem}.index.json").read_text())["bytes"] == tar.stat().st_size


# --------------------------------------------------------------------------------------------------- nothing to be read


def test_of_pictures_that_were_all_left_out_there_is_an_index_and_no_tar(tmp_path):
    DATASET.write(tmp_path)
    assert write_shard(tmp_path, [], [("a.png", "damaged")]) is None
    assert finished(tmp_path).skipped == {"a.png": "damaged"} and finished(tmp_path).tars == [] and not list(tmp_path.glob("*.tar"))
    with pytest.raises(ShardError, match=r"no finished shards with a sample in them \(1 pictures were left out\)"):
        finished_shards(tmp_path)
    assert begin(rows_of_names("a.png", "b.png"), tmp_path, DATASET)[0] == rows_of_names("b.png")


def rows_of_names(*names):
    from latent_clip.training.sources import ImageRecord

    return [ImageRecord(name, name) for name in names]


def test_empty_tar_of_version_0_2_is_passed_over(tmp_path):
    name = "0123456789abcdef"
    make_tar(tmp_path / f"{name}.tar", {})
    content = {"tar": f"{name}.tar", "bytes": 10240, "ids": [], "skipped": [["a", "damaged"]], "patches": 0}
    (tmp_path / f"{name}.index.json").write_text(json.dumps(content))
    assert finished(tmp_path).tars == [] and finished(tmp_path).skipped == {"a": "damaged"}


# ------------------------------------------------------------------------------------------------ nothing is believed


NAMES = [
    "pipe:touch ran; cat x #.tar", "http://x/0123456789abcdef.tar", "../0123456789abcdef.tar", "/0123456789abcdef.tar", "sub/0123456789abcdef.tar",
    r"C:\data\0123456789abcdef.tar", r"\\server\share\0123456789abcdef.tar", r"..\0123456789abcdef.tar", "C:0123456789abcdef.tar",
    "0123456789abcdef.tar:stream", "0123456789abcdef.tar\n", "x.tar", "CON", "", None, 5, ["0123456789abcdef.tar"],
]  # fmt: skip


@pytest.mark.parametrize("file", ["0123456789abcdef.index.json", "x.index.json"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_index_names_its_own_tar_only(tmp_path, name, file):
    (tmp_path / file).write_text(json.dumps({"tar": name, "bytes": 1, "ids": ["a"], "skipped": [], "patches": 0}))
    with pytest.raises(ShardError, match=re.escape(file)):
        finished(tmp_path)


def test_name_of_ours_is_a_plain_one_on_windows_too(tmp_path):
    tar = write_shard(tmp_path, samples("a"))
    (index,) = indexes(tmp_path)
    for name in (tar.name, index.path.name):
        path = PureWindowsPath("C:/data") / name
        assert path.name == name and path.parent == PureWindowsPath("C:/data") and not path.is_reserved() and ":" not in name
    assert all(PureWindowsPath("C:/data") / str(name) != PureWindowsPath("C:/data") / tar.name for name in NAMES)


def test_folder_with_a_colon(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("run:1")
    embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)
    assert len(ids(out)) == 24 and embed(records_of(str(pictures)), out, DATASET, SETTINGS, TOOLS)["there"] == 24


ODD = [
    b"", b"null", b"[]", b"[[]]", b"5", b'"x"', b"{}", b"{", b"\xff\xfe{}", b"\x80", b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"\0" * 100,
]  # fmt: skip


@pytest.mark.parametrize("content", ODD, ids=[repr(content[:12]) for content in ODD])
@pytest.mark.parametrize("file", ["dataset.json", "0123456789abcdef.index.json", "x.index.json"])
def test_odd_json_is_one_error_with_the_files_name(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ShardError, match=re.escape(file)) as caught:
        read_dataset(tmp_path) if file == "dataset.json" else finished(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


WRONG = [None, True, -1, 2.5, "x", [], {}, [1], ["a"], {"a": 1}, [["a", 1]], [["a"]], 10**400]


@pytest.mark.parametrize("key", ["tar", "bytes", "ids", "skipped", "patches"])
def test_every_part_of_an_index_is_checked(tmp_path, key):
    tar = write_shard(tmp_path, samples("a"), [("b", "damaged")])
    path = tmp_path / f"{tar.stem}.index.json"
    good = json.loads(path.read_text())
    fits = {"ids": ([], ["a"]), "skipped": ([],)}.get(key, ())
    for value in [value for value in WRONG if value not in fits]:
        if key == "patches" and value == 10**400:
            continue
        path.write_text(json.dumps({**good, key: value}))
        with pytest.raises(ShardError, match=tar.stem):
            finished(tmp_path)
    path.write_text(json.dumps({name: value for name, value in good.items() if name != key}))
    with pytest.raises(ShardError, match=tar.stem):
        finished(tmp_path)


@pytest.mark.parametrize("key", list(asdict(DATASET)))
def test_every_part_of_a_header_is_checked(tmp_path, key):
    good = asdict(replace(DATASET, teacher={"name": "t"}))
    fits = {"vae": ({}, {"a": 1}), "teacher": (None,), "predictions": (None, {}, {"a": 1}), "source": ("x",), "licence": ("x",), "moments": (True,)}
    for value in [value for value in WRONG if not any(value is one or (value == one and value not in (1, 0)) for one in fits.get(key, ()))]:
        (tmp_path / "dataset.json").write_text(json.dumps({**good, key: value}))
        with pytest.raises(ShardError, match=r"dataset\.json"):
            read_dataset(tmp_path)


@pytest.mark.parametrize("change", [
    {"vae": {"name": 5}}, {"vae": {"signature": 5}}, {"vae": {"signature": {"a": "x"}}}, {"vae": {"signature": {"a": [None]}}},
    {"vae": {"signature": {"a": [10**400]}}}, {"views": {"side": "32"}}, {"views": {"side": 32, "names": "centre"}}, {"teacher": {"name": []}},
    {"space": {**DATASET.space, "scale": 10**400}}, {"space": {**DATASET.space, "channels": 10**9}}, {"more": 1}, {"format": 2}, {"format": True},
])  # fmt: skip
def test_records_of_a_header_are_checked(tmp_path, change):
    (tmp_path / "dataset.json").write_text(json.dumps({**asdict(DATASET), **change}))
    with pytest.raises(ShardError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def sparse(path, size):
    """A tar of a few kB with one member that claims `size` bytes and has nothing but a hole, in GNU's old form."""
    info = tarfile.TarInfo("a.latent.safetensors")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:398] = block[398:410] = b"00000000000\0"
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + b"\0" * 10240)
    with tarfile.open(path) as tar:
        assert tar.next().size == size
    return path


LIMITED = """
import resource, sys
from pathlib import Path
from latent_clip.training.shards import ShardError, raw_tar_samples
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
try:
    list(raw_tar_samples(Path(sys.argv[1])))
except ShardError as error:
    print(error)
"""


def test_tar_of_three_kilobytes_that_claims_three_gigabytes_is_refused_without_them(tmp_path):
    path = sparse(tmp_path / "x.tar", 3 << 30)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and f"{path}: its member 'a.latent.safetensors' is stored with holes" in done.stdout, done.stderr[-500:]


def test_member_that_claims_more_than_its_tar_holds_is_refused(tmp_path):
    info = tarfile.TarInfo("a.json")
    info.size = 3 << 30
    (tmp_path / "x.tar").write_bytes(info.tobuf() + b"{}" + b"\0" * 2000)
    with pytest.raises(ShardError, match=r"x\.tar: its member 'a.json' claims 3221225472 bytes"):
        list(raw_tar_samples(tmp_path / "x.tar"))


def test_sample_has_a_largest_size(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "x.tar", {"a.txt": b"x" * 600, "a.json": b"x" * 600, "b.txt": b"x" * 600})
    assert len(list(raw_tar_samples(path))) == 2
    monkeypatch.setattr(module, "LARGEST_SAMPLE", 1000)
    with pytest.raises(ShardError, match=r"x\.tar: its member 'a.json'"):
        list(raw_tar_samples(path))


def test_damaged_tars_are_one_error_with_their_name(tmp_path):
    good, path = write_shard(tmp_path, samples("a", "b")).read_bytes(), tmp_path / "odd.tar"
    generator = np.random.default_rng(0)
    kinds = [b"", b"x", b"<html>" * 1000, b"\x1f\x8b" + b"\0" * 100, good[:700], good[:1030]]
    for _ in range(150):
        content = bytearray(good)
        for at in generator.integers(0, 1600, generator.integers(1, 12)):
            content[at] = generator.integers(0, 256)
        kinds.append(bytes(content[: generator.integers(600, len(good))]))
    errors = []
    for content in kinds:
        path.write_bytes(content)
        try:
            list(raw_tar_samples(path))
        except ShardError as error:
            errors.append(str(error))
    assert len(errors) > 60 and all("odd.tar" in error for error in errors)


def test_lock_is_there_before_a_shard_is(pictures, tmp_path):
    with only_writer(tmp_path / "out"), pytest.raises(InUseError):
        embed(records_of(str(pictures)), tmp_path / "out", DATASET, SETTINGS, TOOLS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [files.LOCK]
