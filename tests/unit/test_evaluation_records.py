"""Records: whole lines, half-written ones, two runs on one folder; and speed."""

import json
import subprocess
import sys
import time

import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.records import append_records, only_run, read_records, write_file


def test_lines_are_appended_and_read(tmp_path):
    path = tmp_path / "a" / "r.jsonl"
    assert read_records(path) == []
    append_records(path, [{"a": 1}, {"b": "ü\nx"}])
    append_records(path, [{"c": None}])
    assert read_records(path) == [{"a": 1}, {"b": "ü\nx"}, {"c": None}]


@pytest.mark.parametrize("torn", ['{"a": 2', '{"a": 2}', "{", "\x00"])
def test_half_written_last_line_is_left_out_and_then_replaced(tmp_path, torn):
    path = tmp_path / "r.jsonl"
    append_records(path, [{"a": 1}])
    with path.open("a") as file:
        file.write(torn)
    assert read_records(path) == [{"a": 1}]
    append_records(path, [{"a": 3}])
    assert read_records(path) == [{"a": 1}, {"a": 3}]


def test_file_of_nothing_but_a_half_written_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a"')
    append_records(path, [{"a": 3}])
    assert read_records(path) == [{"a": 3}]


@pytest.mark.parametrize("line", ["{", "3", ""])
def test_broken_line_before_others_is_refused(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(EvaluationError, match="line 2 is"):
        read_records(path)


def test_not_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        append_records(tmp_path / "r.jsonl", [{"a": float("nan")}])


def test_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / ("x" * 240 + ".png")  # as long as a prompt makes it
    write_file(path, b"old")

    with pytest.raises(TypeError):
        write_file(path, [b"not bytes"])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_runs_on_one_folder(tmp_path):
    """The second is another process; it is let in once the first has ended, however that ended."""
    code = (
        "import sys; from pathlib import Path; from latent_clip.evaluation.records import only_run\n"
        "with only_run(Path(sys.argv[1])):\n    print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(EvaluationError, match=rf"another run \(process {other.pid}\)"), only_run(tmp_path):
        pass
    other.kill()
    other.wait()
    with only_run(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_ten_thousand_records_are_read_quickly(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(
        path, [{"arm": "plain", "prompt": i // 4, "number": i % 4, "value": 1.0, "scorer": "x"} for i in range(10_000)]
    )
    began = time.process_time()
    assert len(read_records(path)) == 10_000
    assert time.process_time() - began < 1
    assert json.loads(path.read_bytes().split(b"\n")[0])["prompt"] == 0
