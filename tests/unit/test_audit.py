"""The safety gate's log: whole lines, bounded size, and no record of a blocked image that others push out."""

import errno
import hashlib
import importlib.util
import json
import os
import sys
import types
from multiprocessing import get_context
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent.parent / "host" / "safety" / "audit.py"


def load():
    """The module alone: of the host it needs one folder."""
    host = types.ModuleType("folder_paths")
    host.get_user_directory = lambda: "/nowhere"
    before = sys.modules.get("folder_paths")
    sys.modules["folder_paths"] = host
    try:
        spec = importlib.util.spec_from_file_location("audit_alone", FILE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        if before is None:
            del sys.modules["folder_paths"]
        else:
            sys.modules["folder_paths"] = before


@pytest.fixture
def audit():
    return load()


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_long_text_is_cut_and_can_be_recognised(audit, tmp_path):
    text, path = "é" * 5_000_000, tmp_path / "safety.jsonl"
    audit.write_record({"texts": {"7.text": text, "8.text": "short"}, "reasons": [""]}, path)
    assert path.stat().st_size < 20_000
    (record,) = records(path)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert record["texts"]["8.text"] == "short"
    assert record["texts"]["7.text"] == "é" * 2000 + f" … cut: 10000000 bytes, sha256 {digest}"


@pytest.mark.parametrize(
    "more",
    [
        {"texts": {f"{i}.text": "word " * 2000 for i in range(3000)}},
        {"texts": {f"{i}" * 10_000: "x" for i in range(300)}},
        {"categories": ["c" * 5000] * 2000, "scores": [[1.5] * 2000] * 64},
        {"looks": [{"draft": "d" * 3000, "scores": [1.0] * 500, "late": "l" * 3000, "redirected": True}] * 4096},
        {"prompt_id": "p" * 1_000_000},
    ],
)
def test_no_record_is_large_whatever_is_in_it(audit, tmp_path, more):
    path = tmp_path / "safety.jsonl"
    audit.write_record({"reasons": ["", "star: log-odds 3"], **more}, path)
    assert path.stat().st_size < 2 * audit.RECORD
    (record,) = records(path)
    assert record["reasons"][1].startswith("star")


def test_flood_does_not_push_out_the_record_of_a_blocked_image(audit, tmp_path):
    path = tmp_path / "safety.jsonl"
    audit.write_record({"n": "evidence", "reasons": ["star"]}, path, max_bytes=5000)
    for number in range(2 * audit.KEPT):
        audit.write_record({"n": number, "pad": "x" * 3500, "reasons": [""]}, path, max_bytes=5000)
    files = sorted(tmp_path.glob("safety*.jsonl"))
    assert len(files) == audit.KEPT + 1, "its size is bounded"
    assert not any(r["n"] == "evidence" for file in files for r in records(file))
    assert [r["n"] for r in records(tmp_path / "blocked.jsonl")] == ["evidence"]


def test_log_of_blocked_images_that_is_nearly_full_is_warned_of(audit, tmp_path, caplog):
    audit.KEPT = 5
    for number in range(5):
        audit.write_record({"n": number, "pad": "x" * 3500, "reasons": ["star"]}, tmp_path / "safety.jsonl", max_bytes=5000)
    assert "blocked.jsonl" not in caplog.text
    audit.write_record({"n": 5, "pad": "x" * 3500, "reasons": ["star"]}, tmp_path / "safety.jsonl", max_bytes=5000)
    assert "4 of at most 5 files of blocked.jsonl are full" in caplog.text


def test_full_log_of_blocked_images_refuses_more_until_its_oldest_file_is_a_year_old(audit, tmp_path):
    path, blocked = tmp_path / "safety.jsonl", {"pad": "x" * 3500, "reasons": ["star"]}
    audit.KEPT = 3
    for number in range(4):
        audit.write_record({"n": number, **blocked}, path, max_bytes=5000)
    with pytest.raises(OSError, match=r"none is 365 days old; move them") as full:
        audit.write_record({"n": 4, **blocked}, path, max_bytes=5000)
    assert full.value.strerror and full.value.errno in (errno.EDQUOT, errno.ENOSPC)
    audit.write_record({"n": 5, "reasons": [""]}, path, max_bytes=5000)  # a batch that passes is not held up
    oldest = tmp_path / "blocked.3.jsonl"
    assert records(oldest)[0]["n"] == 0
    os.utime(oldest, (0, oldest.stat().st_mtime - 366 * 86_400))
    audit.write_record({"n": 6, **blocked}, path, max_bytes=5000)
    assert records(oldest)[0]["n"] == 1 and records(tmp_path / "blocked.jsonl")[0]["n"] == 6


class Disk:
    """os.write on a disk that is full after some bytes."""

    def __init__(self, room: int):
        self.room, self.real = room, os.write

    def write(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real(file, data[: self.room])
        self.room -= written
        return written


def test_line_that_a_full_disk_tears_is_taken_back(audit, tmp_path, monkeypatch):
    path = tmp_path / "safety.jsonl"
    audit.write_record({"n": 0}, path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Disk(30).write)
        with pytest.raises(OSError, match="No space"):
            audit.write_record({"n": 1, "pad": "x" * 100}, path)
    audit.write_record({"n": 2}, path)
    assert [record["n"] for record in records(path)] == [0, 2]


def test_line_that_a_crash_has_torn_spoils_no_other(audit, tmp_path):
    path = tmp_path / "safety.jsonl"
    path.write_text('{"n": 0}\n{"n": 1, "scor', encoding="utf-8")
    audit.write_record({"n": 2}, path)
    audit.write_record({"n": 3}, path)
    _, torn, *others = path.read_text(encoding="utf-8").splitlines()
    assert torn == '{"n": 1, "scor' and [json.loads(line)["n"] for line in others] == [2, 3]


def _write(writer: int, path: Path) -> None:
    audit = load()
    for number in range(40):
        audit.write_record({"writer": writer, "number": number, "reasons": ["star" if number % 2 else ""]}, path, 2000)


def test_several_processes_write_whole_lines(tmp_path):
    path, context = tmp_path / "safety.jsonl", get_context("fork")
    writers = [context.Process(target=_write, args=(writer, path)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    for name, count in (("safety*.jsonl", 120), ("blocked*.jsonl", 60)):
        found = [(r["writer"], r["number"]) for file in tmp_path.glob(name) for r in records(file)]
        assert len(found) == len(set(found)) == count
