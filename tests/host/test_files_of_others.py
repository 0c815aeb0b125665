"""Every command of latent-clip over a folder full of files of others: none of them is changed, moved or removed."""

import hashlib
import importlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("webdataset")

from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import render
from latent_clip.tests.original_layout import MINUTE, save_original

COUNT = 12


@pytest.fixture(scope="module")
def pack(host_env):
    """Modules of the pack as the host imported it."""
    return lambda name: importlib.import_module(f"{host_env.pack.__name__}.{name}")


@pytest.fixture
def run(pack, comfy_tree, capsys):
    """run(words…) → (exit status, what was printed); no command may end in a traceback."""

    def run(*words):
        place = ["--cpu", "--comfyui", str(comfy_tree)]
        takes_host = words[0] in ("embed", "finetune-vae", "calibrate") or words[:2] == ("evaluate", "zero-shot")
        status = pack("commands").main([*map(str, words), *(place if takes_host else [])])
        told = capsys.readouterr()
        return status, told.out + told.err

    return run


def tar_of(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """Somebody's folder: 200 files of every kind, under names that this pack uses too."""
    folder = tmp_path_factory.mktemp("messy") / "data"
    folder.mkdir()
    pictures = []
    for picture in render(sample_corpus("test files of others", COUNT)):
        file = io.BytesIO()
        Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy()).save(file, "PNG")
        pictures.append(file.getvalue())
    files = {f"{n:02}.png": content for n, content in enumerate(pictures)}
    files |= {f"star/{n}.png": pictures[n] for n in range(3)} | {f"circle/{n}.png": pictures[n + 3] for n in range(3)}
    files |= {f"{n:02}.txt": b"a star\n" for n in range(6)}
    files |= {f"mine-{n:03}.tar": tar_of({f"{n}-{k}.png": pictures[k] for k in range(3)}) for n in range(4)}
    files |= {f"{n:016x}.tar": tar_of({"a.png": pictures[0]}) for n in range(4)}
    files |= {f"{n:016x}.tar.part": b"a download" for n in range(4)} | {f"download-{n}.part": b"x" for n in range(4)}
    files |= {"model.safetensors.index.json": b'{"weight_map": {}}', "._0123456789abcdef.index.json": b"\0\5\x16", ".DS_Store": b"\0"}
    names = ["out", "clip", "vae", "all", "patches", "noise", "joint", "all.previous"]
    files |= {f"{name}.safetensors": b"their weights" for name in names} | {f"{name}.jsonl": b'{"theirs": 1}\nhalf a l' for name in names}
    files |= {f"{name}.part": b"x" for name in names} | {f"{name}.safetensors.unfinished": b"x" for name in names}
    files |= dict.fromkeys(("ours.json", "results.json", "run.json", "package.json", "concepts.json"), b'{"theirs": true}')
    files |= dict.fromkeys(("README.md", "card.md", "roc.png", "plot.png", "training.png", "archive.zip", ".lock"), b"theirs")
    files |= {"pictures.jsonl": b'{"theirs": 1}\nhalf', "scores.jsonl": b'{"theirs": 1}\nhalf', "a/00000.png": b"theirs", "a/metadata.jsonl": b'{"file_name": "00000.png", "text": "theirs"}\n'}
    files |= {f"notes/{n}.txt": b"x" for n in range(200 - len(files))}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    assert len(files) == 200
    return folder


@pytest.fixture
def data(messy, tmp_path):
    return Path(shutil.copytree(messy, tmp_path / "data"))


def hashes(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shards(pack, messy, comfy_tree, tmp_path_factory):
    """Shards of Shapes World among files of others, and a Latent-CLIP that was trained on them, somewhere else."""
    folder = tmp_path_factory.mktemp("made")
    words = ["--vae", "shapes-world", "--side", "64", "--teacher", "shapes-world", "--cpu", "--comfyui", str(comfy_tree)]
    assert pack("commands").main(["embed", str(messy), str(folder / "shards"), *words]) == 0
    words = ["--start", "shapes-world", "--patch-size", "1", "--distil", "1", *TRAIN]
    assert pack("commands").main(["train", "--train-data", str(folder / "shards"), "--output", str(folder / "clip.safetensors"), *words]) == 0
    return folder


TRAIN = ["--batch-size", "4", "--train-num-samples", "8", "--warmup", "1", "--workers", "0", "--shuffle", "8", "--precision", "fp32"]
EMBED = ["--vae", "shapes-world", "--side", "64"]
WORKFLOW = {
    "1": {"class_type": "Text", "inputs": {"text": ""}, "_meta": {"title": "prompt"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 0}, "_meta": {"title": "seed"}},
}  # fmt: skip


THEIRS = "left as it is|would be written over"


def lines_of_evaluate(d, aside):
    generate = ["evaluate", "generate", d, "--benchmark", "prompts", "--prompts", "neutral", "--arm", f"a={aside}/workflow.json", "--server", "127.0.0.1:9"]
    yield "error", generate
    for scorer in ("contrast", "reward", "official"):
        yield "error", ["evaluate", "score", d, "--scorer", scorer]
    yield "error", ["evaluate", "summary", d, "--judge", "x", "--plot", d / "plot.png"]
    yield "error", ["evaluate", "compare", d / "a", d / "b"]
    yield "error", ["evaluate", "drift", d, "a", "b"]
    zero = ["--clip", "shapes-world", "--vae", "shapes-world"]
    yield "error", ["evaluate", "zero-shot", d, d / "results.json", *zero]
    yield None, ["evaluate", "zero-shot", d, aside / "r.json", *zero]


def lines_of_training(d, aside, made):
    train = ["train", "--start", "shapes-world", "--patch-size", "1", "--distil", "1", *TRAIN]
    yield "no sample has a teacher", [*train, "--train-data", d, "--output", aside / "t.safetensors"]
    yield THEIRS, [*train, "--train-data", made / "shards", "--output", d / "out.safetensors", "--logs", aside / "logs"]
    yield THEIRS, [*train, "--train-data", made / "shards", "--output", aside / "t.safetensors", "--logs", d]
    yield 0, [*train, "--train-data", made / "shards", "--output", d / "t.safetensors", "--logs", d / "t.logs"]
    tune = ["finetune-vae", d, "--vae", "shapes-world", "--clip", "shapes-world", "--contrastive", "1", "--train-num-samples", "8"]
    tune += ["--batch-size", "4", "--warmup", "1", "--workers", "0", "--precision", "fp32"]
    yield THEIRS, [*tune, "--output", d / "clip.safetensors", "--output-vae", aside / "v.safetensors", "--logs", aside / "logs"]
    yield THEIRS, [*tune, "--output", aside / "c.safetensors", "--output-vae", d / "vae.safetensors", "--logs", aside / "logs"]
    yield THEIRS, [*tune, "--output", aside / "c.safetensors", "--output-vae", aside / "v.safetensors", "--logs", d]
    yield 0, [*tune, "--output", d / "c.safetensors", "--output-vae", d / "v.safetensors", "--logs", d / "logs"]


def lines(d, aside, made):
    """(words of the refusal, or 0 for success, or None for whichever; command line) of every command."""
    yield 0, ["embed", d, d, *EMBED]
    yield 0, ["embed", d, d, *EMBED]  # goes on
    yield "the tars of the pictures lie in this folder", ["embed", f"{d}/mine-*.tar", d, *EMBED]
    yield 0, ["embed", f"{d}/mine-*.tar", d / "notes", *EMBED]
    yield from lines_of_training(d, aside, made)
    yield THEIRS, ["convert", aside / "original.pt", d / "out.safetensors"]
    yield 0, ["convert", aside / "original.pt", d / "mine.safetensors"]
    yield THEIRS, ["card", made / "clip.safetensors", "--output", d / "README.md"]
    calibrate = ["--clip", "shapes-world", "--vae", "shapes-world", "--category", "violence", d / "circle", d / "star"]
    yield THEIRS, ["calibrate", d / "ours.json", *calibrate]
    yield THEIRS, ["calibrate", aside / "x.json", "--plot", d / "roc.png", *calibrate]
    yield 0, ["calibrate", d / "mine.json", *calibrate]
    yield from lines_of_evaluate(d, aside)


def test_no_command_changes_a_file_of_others(run, data, shards, tmp_path, pack):
    aside = tmp_path / "aside"
    aside.mkdir()
    save_original(aside / "original.pt", MINUTE, vae_widths=(4, 4))
    (aside / "workflow.json").write_text(json.dumps(WORKFLOW))
    (data / "original.pt").write_bytes((aside / "original.pt").read_bytes())
    before, seen = hashes(data), set()
    for expected, words in lines(data, aside, shards):
        status, told = run(*words)
        after = hashes(data)
        changed = {name for name, value in before.items() if after.get(name) != value}
        assert not changed, f"{words} has changed or removed {sorted(changed)}"
        if expected is not None:
            assert status == bool(expected) and re.search(expected or "", told), f"{words}: {told}"
        seen.add(words[0] if words[0] != "evaluate" else f"evaluate {words[1]}")
    commands = {path.stem.replace("_", "-") for path in Path(pack("commands").__file__).parent.glob("*.py")} - {"--init--", "comfyui", "evaluate", "evaluate-zero-shot"}
    steps = {f"evaluate {step}" for step in ("generate", "score", "summary", "compare", "drift", "zero-shot")}
    assert seen == commands | steps, "every command is walked"


def test_with_force_or_when_it_is_its_own_an_output_is_replaced(run, shards, tmp_path):
    train = ["train", "--train-data", shards / "shards", "--start", "shapes-world", "--patch-size", "1", "--distil", "1", *TRAIN]
    output = tmp_path / "t.safetensors"
    assert run(*train, "--output", output)[0] == 0 == run(*train, "--output", output)[0], "its own, as its folder says"
    output.write_bytes(b"somebody's weights")
    status, told = run(*train, "--output", output)
    assert status == 1 and "t.safetensors: is there already" in told and output.read_bytes() == b"somebody's weights"
    assert run(*train, "--output", output, "--force")[0] == 0 and output.stat().st_size > 10_000
    card = tmp_path / "card.md"
    card.write_text("notes")
    assert run("card", output, "--output", card)[0] == 1 and card.read_text() == "notes"
    assert run("card", output, "--output", card, "--force")[0] == 0 and "latent-clip" in card.read_text()


def test_zero_shot_reads_shards_among_files_of_others(run, data, tmp_path):
    assert run("embed", data, data, *EMBED)[0] == 0
    before = hashes(data)
    status, told = run("evaluate", "zero-shot", data, tmp_path / "r.json", "--clip", "shapes-world")
    assert (status, "top-1" in told) in ((0, True), (1, False)) and hashes(data) == before
