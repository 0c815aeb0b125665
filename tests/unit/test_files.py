"""Files that are there whole or not at all, and one writer for a folder."""

import errno
import json
import os
import re
import subprocess
import sys
import time

import pytest

from latent_clip.models import files
from latent_clip.models.files import (
    ExistsError,
    InUseError,
    check_new,
    leftovers,
    only_writer,
    part_of,
    replacing,
    write_whole,
)

HOLD = """
import sys, time
from pathlib import Path
from latent_clip.models.files import only_writer, part_of
with only_writer(Path(sys.argv[1])):
    part_of(Path(sys.argv[1]) / "x.json").write_bytes(b"half")
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def test_second_writer_is_told_who_the_first_is_and_comes_in_once_that_one_is_dead(holder, tmp_path):
    with pytest.raises(InUseError, match=rf"process {holder.pid} on {os.uname().nodename}, since 20\d\d-.*writes into this folder"), only_writer(tmp_path):
        pass
    assert leftovers(tmp_path, re.compile(".*")) == [], "the first is alive"
    holder.kill()
    holder.wait()
    with only_writer(tmp_path):
        assert [name for name, _ in leftovers(tmp_path, re.compile(".*"))] == ["x.json"]
        assert json.loads((tmp_path / files.LOCK).read_text())["pid"] == os.getpid()


def test_process_that_the_holder_forked_does_not_keep_the_lock(tmp_path):
    ready, forked = os.pipe()
    with only_writer(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(forked, b"x")
            time.sleep(20)
            os._exit(0)
    try:
        os.read(ready, 1)
        with only_writer(tmp_path):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_file_of_that_name_that_is_no_lock_is_left_alone(tmp_path):
    (tmp_path / files.LOCK).write_text("somebody's notes")
    with pytest.raises(InUseError, match="left as it is"), only_writer(tmp_path):
        pass
    assert (tmp_path / files.LOCK).read_text() == "somebody's notes"


def test_disk_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "_lock", refuse)
    with only_writer(tmp_path):
        pass
    assert "second run" in caplog.text


def test_only_leftovers_of_dead_processes_under_our_own_names_are_found(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, host = part_of(tmp_path / "a.json"), files._host()
    names = {
        f".a.json.{host}.{dead.pid}.0123abcd.part": True, f".a.json.elsewhere.{dead.pid}.0123abcd.part": False, mine.name: False,
        "a.json.part": False, ".a.json.part": False, f".a.json.{host}.{dead.pid}.part": False, f".b.json.{host}.{dead.pid}.0123abcd.part": False,
    }  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".a.json.{host}.{dead.pid}.99999999.part").symlink_to(mine)
    found = {path.name for _, path in leftovers(tmp_path, re.compile("a.json"))}
    assert found == {name for name, left in names.items() if left}
    far = tmp_path / f".a.json.elsewhere.{dead.pid}.0123abcd.part"
    os.utime(far, (time.time() - 2 * files.OLD,) * 2)
    assert far in [path for _, path in leftovers(tmp_path, re.compile("a.json"))]


def test_file_takes_its_name_when_it_is_on_the_disk_and_not_before(tmp_path, monkeypatch):
    path, synced = tmp_path / ("x" * 240), []
    write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.path.realpath(f"/proc/self/fd/{number}"), path.read_text())))
    with pytest.raises(ExistsError), replacing(path, lambda part: check_new(part, False)) as part:
        part.write_text("new")
    synced.clear()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as part:
        part.write_text("new")
    assert synced == [(str(part), "old"), (str(tmp_path), "new")]
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_kept(tmp_path):
    path = tmp_path / "a"
    check_new(path, False)
    path.write_text("x")
    with pytest.raises(ExistsError, match="--force"):
        check_new(path, False)
    check_new(path, True)
    with pytest.raises(ExistsError, match="folder"):
        check_new(tmp_path, True)


def test_full_disk_is_a_sentence_with_the_file(tmp_path):
    path = tmp_path / "x.tar"
    with pytest.raises(OSError, match=r"x\.tar: cannot be written \(No space left on device\)\. Free some space"), replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
