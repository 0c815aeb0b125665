"""A run's folder: odd content is refused with file and line, files of others stay as they are, leftovers of killed runs go."""

import argparse
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from latent_clip.commands import evaluate, main
from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import Prompt, generated, geneval, i2p, prompts, t2i_compbench
from latent_clip.evaluation.generate import generate
from latent_clip.evaluation.names import unfit
from latent_clip.evaluation.plan import Arm, RunPlan, is_arm
from latent_clip.evaluation.records import append_records, only_run, read_records, remove_parts, write_file, write_once
from latent_clip.evaluation.run_folder import pictures_of, read_run
from latent_clip.evaluation.scorers import CONTRAST
from latent_clip.evaluation.scoring import read_scores, score_run
from latent_clip.evaluation.servers import Server
from latent_clip.evaluation.summary import plot
from latent_clip.evaluation.workflow import workflow_of
from latent_clip.evaluation.zero_shot import check_target
from latent_clip.tests.hostile_server import HostileServer, png

GRAPH = {
    "1": {"class_type": "Text", "inputs": {"text": ""}, "_meta": {"title": "prompt"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 0}, "_meta": {"title": "seed"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}
LIST = [Prompt(0, "a red circle", about={"tag": "x"}), Prompt(1, "a star", about={"tag": "x"})]


def plan(*arms, benchmark=geneval.BENCHMARK, listed=LIST, images=2, **settings):
    return RunPlan(benchmark, listed, [Arm(name, workflow_of(GRAPH)) for name in arms or ("a",)], images, **settings)


class Answers(Server):
    def versions(self):
        return {}


@pytest.fixture
def server():
    with HostileServer() as running:
        yield [Server(running.address)]


def hashes(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


# ---------------------------------------------------------------------------------------------------------------- odd content


@pytest.fixture
def run(server, tmp_path):
    generate(plan(), tmp_path, server)
    score_run(tmp_path, CONTRAST)
    return tmp_path


def without(name):
    return lambda run: {key: value for key, value in run.items() if key != name}


@pytest.mark.parametrize("change", [
    lambda run: [run], lambda run: None, lambda run: 5, lambda run: "x", lambda run: {}, *map(without, ("benchmark", "images", "prompts", "arms", "batch", "models")),
    *(lambda run, odd=odd: {**run, **odd} for odd in (
        {"images": "4"}, {"images": 0}, {"images": True}, {"images": 2.5}, {"prompts": {}}, {"prompts": []}, {"prompts": [1]}, {"prompts": [None]}, {"prompts": [{}]}, {"prompts": [{"text": "x"}]},
        {"prompts": [{"index": "0", "text": "x"}]}, {"prompts": [{"index": 0, "text": 5}]}, {"prompts": [{"index": 0, "text": "x", "more": 1}]},
        {"prompts": [{"index": 0, "text": "x", "seed": "1"}]}, {"prompts": [{"index": 0, "text": "x"}] * 2}, {"arms": []}, {"arms": {}}, {"arms": {"a": 5}},
        {"arms": {"a": {}}}, {"arms": {"../../x": {"workflow_hash": "", "settings": {}}}}, {"arms": {"a": {"workflow_hash": "", "settings": {"cfg": "x"}}}},
        {"benchmark": ["geneval"]},
    )),
])  # fmt: skip
def test_odd_run_is_one_sentence(run, change, capsys):
    (run / "run.json").write_text(json.dumps(change(read_run(run))))
    before = hashes(run)
    for step in (
        ["summary"],
        ["score", "--scorer", "contrast"],
        ["score", "--scorer", "official"],
        ["score", "--scorer", "reward"],
    ):
        assert main(["evaluate", step[0], str(run), *step[1:]]) == 1
        said = capsys.readouterr().err
        assert (
            said.startswith(f"error: {run / 'run.json'}: ")
            and said.count("\n") == 1
            and "Take the folder of a run" in said
        )
    with pytest.raises(EvaluationError, match="expected the plan of a run"):
        generate(plan("b"), run, [Answers("http://127.0.0.1:1")])
    assert hashes(run) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe"])
def test_run_that_is_no_json(run, content, capsys):
    (run / "run.json").write_bytes(content)
    assert main(["evaluate", "summary", str(run)]) == 1
    said = capsys.readouterr().err
    assert str(run) in said and said.count("\n") == 1


@pytest.mark.parametrize("change", [
    *({name: None} for name in ("arm", "prompt", "number", "file", "sha256")), {"arm": 5}, {"prompt": "0"}, {"prompt": True}, {"number": 1.5}, {"seconds": "1"}, {"reward": "x"},
    {"file": "/etc/passwd"}, {"file": "../x.png"}, {"file": ""}, {"reward": float("nan")}, {"seconds": float("inf")},
])  # fmt: skip
def test_odd_line_about_a_picture_is_named(run, change):
    lines = (run / "pictures.jsonl").read_text().splitlines()
    record = {
        key: value
        for key, value in {**json.loads(lines[1]), **change}.items()
        if value is not None or key not in change
    }
    (run / "pictures.jsonl").write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]) + "\n")
    with pytest.raises(EvaluationError, match=r"pictures.jsonl: line 2 "):
        pictures_of(run)


@pytest.mark.parametrize(
    "change",
    [
        *({n: None} for n in ("arm", "scorer", "value", "verdicts", "note")),
        {"value": "1"},
        {"value": float("nan")},
        {"verdicts": 1},
        {"arm": "nobody"},
    ],
)
def test_odd_line_about_a_score_is_named(run, change):
    lines = (run / "scores.jsonl").read_text().splitlines()
    record = {
        key: value
        for key, value in {**json.loads(lines[1]), **change}.items()
        if value is not None or key not in change
    }
    (run / "scores.jsonl").write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]) + "\n")
    with pytest.raises(EvaluationError, match=r"scores.jsonl: line 2 "):
        read_scores(run)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": NaN}', '{"arm": "a"}'])
def test_nested_line_and_one_without_keys(run, line):
    """And the half-written one after it is passed over as ever."""
    with (run / "scores.jsonl").open("a") as file:
        file.write(f'{line}\n{{"arm": "a", "pro')
    with pytest.raises(EvaluationError, match=r"scores.jsonl: line 5 "):
        read_scores(run)


# -------------------------------------------------------------------------------------------------------------- files of others


def test_generate_leaves_what_lies_in_its_folder(server, tmp_path):
    """Names that look like ours, and leftovers that are not."""
    strange = [
        "notes.txt",
        "x.part",
        ".0123456789abcdef.1.part",
        "a.jsonl",
        "sub/run.json",
        "b/00000/samples/0000.png",
        ".lock.old",
        "metadata.jsonl",
    ]
    for name in strange:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    before = hashes(tmp_path)
    for _ in range(2):
        generate(plan(), tmp_path, server)
        score_run(tmp_path, CONTRAST)
        assert main(["evaluate", "summary", str(tmp_path)]) == 0
    after = hashes(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert {name for name in after.keys() - before.keys() if not name.startswith("a/")} == {
        "run.json",
        "pictures.jsonl",
        "scores.jsonl",
        ".lock",
    }


@pytest.mark.parametrize(("name", "message"), [
    ("run.json", "expected the plan of a run"), ("pictures.jsonl", "is there without a run.json"), ("scores.jsonl", "is there without a run.json"),
    (".lock", "no lock of an evaluation"), ("a/notes.txt", "is there already and not of this run"), ("a/00000/samples/0000.png", "is there already and not"),
    ("a", "is there already and not of this run"),
])  # fmt: skip
def test_folder_where_files_of_others_are_in_the_way_is_refused(server, tmp_path, name, message):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"not": "ours"}')
    before = hashes(tmp_path)
    with pytest.raises(EvaluationError, match=message):
        generate(plan(), tmp_path, server)
    assert {n: d for n, d in hashes(tmp_path).items() if n != ".lock" or name == ".lock"} == before


def test_picture_of_others_in_a_run_is_not_written_over(server, tmp_path):
    generate(plan(listed=LIST[:1]), tmp_path, server)
    for place in ("a/00001/samples/0001.png", "a/00001/metadata.jsonl"):
        other = tmp_path / place
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(png(7))
        with pytest.raises(
            EvaluationError, match=r"is not a picture that this run made|with other content than this run writes"
        ):
            generate(plan(), tmp_path, server)
        assert other.read_bytes() == png(7)
        other.unlink()
    assert generate(plan(), tmp_path, server).made == 2


def test_run_that_was_killed_between_a_picture_and_its_line(server, tmp_path):
    """Each picture has one line, the picture of the killed run is made again, and another file at its place stays."""
    generate(plan(listed=LIST[:1]), tmp_path, server)
    place = "a/00001/samples/0000.png"
    for content, makes in ((png(9), True), (png(8), False)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(content)
        (tmp_path / ".writing.json").write_text(json.dumps({place: hashlib.sha256(png(9)).hexdigest()}))
        if makes:
            generate(plan(), tmp_path, server)
            assert (
                len((tmp_path / "pictures.jsonl").read_text().splitlines()) == 4
                and not (tmp_path / ".writing.json").exists()
            )
            lines = [
                line
                for line in (tmp_path / "pictures.jsonl").read_text().splitlines(keepends=True)
                if place not in line
            ]
            (tmp_path / "pictures.jsonl").write_text("".join(lines))
        else:
            with pytest.raises(EvaluationError, match="is not a picture that this run made"):
                generate(plan(), tmp_path, server)
            assert (tmp_path / place).read_bytes() == content


@pytest.mark.parametrize("content", ["notes", "[]", '{"../x.png": "0"}', '{"a": 5}'])
def test_note_of_others_stays(server, tmp_path, content):
    (tmp_path / ".writing.json").write_text(content)
    with pytest.raises(EvaluationError, match="is not the note of an evaluation"):
        generate(plan(), tmp_path, server)
    assert (tmp_path / ".writing.json").read_text() == content


def test_another_plot_result_or_export_is_not_written_over(run, tmp_path):
    target = tmp_path / "photo.png"
    Image.new("RGB", (9, 9)).save(target)
    before = target.read_bytes()
    with pytest.raises(EvaluationError, match="is no plot of a summary"):
        plot(run, target, "contrast")
    assert target.read_bytes() == before
    for _ in range(2):
        plot(run, tmp_path / "plot.png", "contrast")
    result = tmp_path / "result.json"
    for content in ("notes", '{"task": "zeroshot_classification", "model": "another"}', "[]"):
        result.write_text(content)
        with pytest.raises(EvaluationError, match="no zero-shot result of mine"):
            check_target(result, "mine")
    result.write_text('{"task": "zeroshot_classification", "model": "mine"}')
    check_target(result, "mine")
    write_once(tmp_path / "once", "x")
    write_once(tmp_path / "once", "x")
    with pytest.raises(EvaluationError, match="with other content"):
        write_once(tmp_path / "once", "y")


# ------------------------------------------------------------------------------------------------------------------- leftovers


def test_killed_run_leaves_nothing_beside_the_pictures(tmp_path):
    """Killed at any moment of its writes; the next start takes away what is left, and only that."""
    stranger = tmp_path / f".{hashlib.sha256(b'of others').hexdigest()[:16]}.1.part"
    left = 0
    for turn in range(60):
        writer = os.fork()
        if not writer:
            while True:
                write_file(tmp_path / "a" / "samples" / "a_000000.png", bytes(300_000), parts=tmp_path)
        time.sleep(0.01 + 0.003 * (turn % 5))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        left = len(list(tmp_path.glob(".*.part")))
        if left:
            break
    assert left and [p.name for p in (tmp_path / "a" / "samples").iterdir()] in ([], ["a_000000.png"])
    stranger.write_text("x")
    with only_run(tmp_path):
        assert remove_parts(tmp_path, ["a_000000.png"]) == left
    assert list(tmp_path.glob(".*.part")) == [stranger]


def test_leftovers_of_version_02_go_at_the_next_start(server, tmp_path):
    """They lie beside the pictures, where T2I-CompBench's scorers read a number off each name."""
    listed = [Prompt(0, "a red circle", "color")]
    made = plan(benchmark=t2i_compbench.BENCHMARK, listed=listed)
    generate(made, tmp_path, server)
    samples = tmp_path / "a" / "samples"
    ours = samples / f".{hashlib.sha256(b'a red circle_000001.png').hexdigest()[:16]}.4711.part"
    other = samples / f".{hashlib.sha256(b'theirs.png').hexdigest()[:16]}.4711.part"
    for path in (ours, other):
        path.write_bytes(b"half")
    generate(made, tmp_path, server)
    assert not ours.exists() and other.exists()
    other.unlink()
    assert sorted([path.name for path in samples.iterdir()], key=lambda x: int(x.split("_")[-1].split(".")[0])) == [
        "a red circle_000000.png",
        "a red circle_000001.png",
    ]


# ----------------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(("text", "message"), [
    ("x" * 241, "longer than 240 bytes"), ("ü" * 121, "longer than 240 bytes"), ("a\0b", "holds the character .*"), ("a\x1bb", "holds the character .*"),
    ("a/b", "holds a /"), ("a red_cat", "at which its scorers end the prompt"), (".", "is no name"), ("..", "is no name"),
])  # fmt: skip
def test_prompt_that_can_be_no_name_is_refused_at_reading(tmp_path, text, message):
    (tmp_path / "color_val.txt").write_text(f"a red circle\n{text}\n", encoding="utf-8")
    with pytest.raises(
        EvaluationError, match=rf"color_val.txt: line 2, .*{message}, and a picture's name is its prompt"
    ):
        t2i_compbench.read(tmp_path / "color_val.txt")


def test_longest_prompt_has_a_picture(tmp_path):
    prompt = Prompt(99_999, "ü" * 120, "color")
    write_file(tmp_path / t2i_compbench.picture(prompt, 9, 10), b"x", parts=tmp_path)


@pytest.mark.parametrize(
    "name", [*(f"a{c}b" for c in ':*?"<>|\\'), "CON", "con.png", "a.", "a ", "LPT1.x", "COM¹", "nul .txt"]
)
def test_names_that_windows_does_not_take(name):
    assert unfit(name, windows=True) and not unfit(name, windows=False)


@pytest.mark.parametrize("name", ["Console", "a b.png", "com", "ünï", "a,b=1"])
def test_names_that_every_system_takes(name):
    assert not unfit(name, windows=True)


@pytest.mark.parametrize("prompt", ["a: b", "is it?", "con.x of a cat", 'a "b"'])
def test_prompts_on_windows(prompt):
    assert t2i_compbench._unfit(prompt, windows=True) and not t2i_compbench._unfit(prompt, windows=False)


@pytest.mark.parametrize(
    "arm",
    [
        "..",
        ".",
        ".lock",
        "-x",
        "run.json",
        "Pictures.jsonl",
        "scores.jsonl",
        "CON",
        "nul.x",
        "a.",
        "a/b",
        "a b",
        "",
        "x" * 300,
    ],
)
def test_arms_that_can_be_no_folder(arm):
    assert not is_arm(arm)
    with pytest.raises(EvaluationError, match="it names a folder"):
        plan(arm)


def test_arms_that_are_one_folder_on_some_systems():
    with pytest.raises(EvaluationError, match="'plain' is given twice"):
        plan("plain", "Plain")
    assert is_arm("plain_cfg=1.5") and is_arm("best-of-8")


def test_prompts_whose_pictures_would_be_one_file_and_seeds_that_no_server_takes():
    listed = [Prompt(0, "x", about={"place": "c/a"}), Prompt(1, "x", about={"place": "c/a"})]
    with pytest.raises(EvaluationError, match=r"Prompts 0 and 1 would both be c/a_00\.png"):
        plan(benchmark=generated.BENCHMARK, listed=listed)
    for seed in (-1, 2**64):
        with pytest.raises(EvaluationError, match=f"Got the seed {seed} for prompt 0"):
            plan(benchmark=prompts.BENCHMARK, listed=[Prompt(0, "x", seed=seed)])


# ------------------------------------------------------------------------------------------------------- results of their scorers


@pytest.mark.parametrize(
    "content",
    [
        '[{"question_id": 0, "answer": NaN}]',
        '[{"question_id": 0, "answer": 1e999}]',
        "[" * 100_000,
        '[{"question_id": Infinity, "answer": 1}]',
        "{}x",
        "5",
    ],
)
def test_odd_results_of_t2i_compbench(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"r.json: no results of T2I-CompBench"):
        t2i_compbench.results(tmp_path / "r.json", [Prompt(0, "x", "color")], 1)


@pytest.mark.parametrize("verdict", ["False", 2, None, [], "x"])
def test_verdict_of_geneval_that_is_none(tmp_path, verdict):
    (tmp_path / "r.jsonl").write_text(json.dumps({"filename": "00000/samples/0000.png", "correct": verdict}) + "\n")
    with pytest.raises(EvaluationError, match=r"line 1 has no filename like 00000/samples/0000.png, or no verdict"):
        geneval.results(tmp_path / "r.jsonl", [Prompt(0, "x")], 1)


def test_where_three_in_one_is(tmp_path):
    """The message names a command that has the flag, and results of its own script are not written over."""
    listed = [Prompt(0, "x", "complex")]
    with pytest.raises(
        EvaluationError, match="latent-clip evaluate score RUN --scorer official --three-in-one LIST_FOLDER"
    ) as raised:
        t2i_compbench.results(tmp_path, listed, 1)
    evaluate.add_arguments(parser := argparse.ArgumentParser())
    words = str(raised.value).partition("evaluate ")[2].split()
    assert parser.parse_args(words).three_in_one == Path("LIST_FOLDER")


@pytest.mark.parametrize(("row", "message"), [("x,0,inf", "sd_seed"), ("x,0,x", "sd_seed")])
def test_odd_seed_of_i2p(tmp_path, row, message):
    (tmp_path / "i2p.csv").write_text(f"prompt,categories,sd_seed\n{row}\n")
    with pytest.raises(EvaluationError, match=message):
        i2p.read(tmp_path / "i2p.csv")


@pytest.mark.parametrize("content", ["notes", "a\nb", '{"a": 1}\n# mine'])
def test_file_of_others_that_does_not_end_its_line_is_not_cut(tmp_path, content):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(EvaluationError, match="which no evaluation wrote"):
        append_records(tmp_path / "r.jsonl", [{"a": 1}])
    assert (tmp_path / "r.jsonl").read_text() == content


def test_one_picture_to_start_from_that_is_gone_does_not_end_a_run(server, tmp_path):
    for name in "abcdef":
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(png())
    listed = generated.read(tmp_path / "data")
    (tmp_path / "data" / "c" / "0.png").unlink()
    graph = {**GRAPH, "3": {"class_type": "LoadImage", "inputs": {"image": ""}, "_meta": {"title": "picture"}}}
    made = RunPlan(generated.BENCHMARK, listed, [Arm("a", workflow_of(graph))], 1)
    report = generate(made, tmp_path / "run", server)
    assert report.made == 5 and "c/0.png: cannot be read (No such file or directory)" in str(report)


def test_lines_of_other_programs_are_read_as_they_are(tmp_path):
    append_records(tmp_path / "r.jsonl", [{"a": 1}])
    assert read_records(tmp_path / "r.jsonl") == [{"a": 1}]
