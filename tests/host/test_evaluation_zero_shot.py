"""Zero-shot on Shapes World through the host's VAE: our figures, and CLIP_benchmark's own command on the same data set."""

import io
import json
import random
import tarfile
from importlib import import_module

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.clip_benchmark import run_clip_benchmark
from latent_clip.evaluation.pictures import read_pictures
from latent_clip.evaluation.zero_shot import classify, write_result

COUNT = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Single shapes in CLIP_benchmark's layout; a class is a colour and a kind."""
    from latent_clip.demo.captions import THINGS
    from latent_clip.demo.scenes import render, sample_scene

    root, chance = tmp_path_factory.mktemp("zero-shot") / "shapes", random.Random("zero-shot")
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("2")
    (root / "classnames.txt").write_text("\n".join(f"{thing.colour} {thing.kind}" for thing in THINGS))
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nan {c}")
    for shard in range(2):
        with tarfile.open(root / "test" / f"{shard}.tar", "w") as tar:
            for at in range(COUNT // 2):
                label = chance.randrange(len(THINGS))
                to_pil_image(render([sample_scene(chance, (THINGS[label],))])[0]).save(picture := io.BytesIO(), "WEBP", lossless=True)
                for extension, content in (("cls", str(label).encode()), ("webp", picture.getvalue())):
                    info = tarfile.TarInfo(f"s{shard:04d}{at:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


@pytest.fixture(scope="module")
def judge(host_env):
    return import_module(f"{host_env.pack.__name__}.host.offline.zero_shot").load_judge("shapes-world", "shapes-world")


def floats_of_one() -> bool:
    try:
        return float(np.ones(1)) == 1
    except TypeError:
        return False


def test_demo_latent_clip_names_single_shapes(judge, data, tmp_path):
    found = classify(judge, read_pictures(data), batch=16)
    assert judge.side == 64 and found.acc1 >= 0.9 and found.acc5 >= found.acc1 >= found.mean_per_class_recall - 0.1
    torch.manual_seed(3)
    assert classify(judge, read_pictures(data), batch=16) == found, "it can be repeated"


def test_clip_benchmarks_own_command_says_the_same(judge, data, tmp_path, monkeypatch):
    """Where NumPy no longer makes a float of an array of one, its own code runs with the rule that it was written for."""
    theirs = pytest.importorskip("clip_benchmark.cli", reason="CLIP_benchmark is not installed: pip install clip-benchmark")
    if not floats_of_one():
        with pytest.raises(EvaluationError, match="does not run with NumPy"):
            run_clip_benchmark(judge, str(data), "test", 16, tmp_path / "theirs.json")
        monkeypatch.setattr(theirs.zeroshot_classification, "float", lambda value: float(value.item()), raising=False)
    run_clip_benchmark(judge, str(data), "test", 16, tmp_path / "theirs.json")
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    found = classify(judge, read_pictures(data), batch=16)
    write_result(tmp_path / "ours.json", found, theirs["dataset"], judge.name, judge.name)
    ours = json.loads((tmp_path / "ours.json").read_text())
    assert ours.keys() == theirs.keys() and ours["metrics"].keys() == theirs["metrics"].keys()
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)
    assert {key: ours[key] for key in ours if key != "metrics"} == {key: theirs[key] for key in theirs if key != "metrics"}


def test_latents_that_were_embedded_before_are_named_the_same(host_env, judge, data, tmp_path, capsys):
    """Class folders → latent-clip embed → zero-shot on the shards, which needs no VAE; against zero-shot on the pictures."""
    from latent_clip.evaluation.pictures import LabelledPictures

    folders, pictures = tmp_path / "folders", read_pictures(data)
    for number, (image, label) in enumerate(pictures):
        place = folders / pictures.classes[label].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    command, comfyui = import_module(f"{host_env.pack.__name__}.commands").main, ["--comfyui", str(host_env.tree), "--cpu"]
    assert command(["embed", str(folders), str(tmp_path / "shards"), "--vae", "shapes-world", "--side", "64", *comfyui]) == 0
    (tmp_path / "shards" / "zeroshot_classification_templates.txt").write_text("a {c}\nan {c}")
    options = ["--clip", "shapes-world", *comfyui]
    assert command(["evaluate", "zero-shot", str(tmp_path / "shards"), str(tmp_path / "r.json"), *options]) == 0
    found = json.loads((tmp_path / "r.json").read_text())["metrics"]
    some = read_pictures(folders)
    direct = classify(judge, LabelledPictures("", some.classes, pictures.templates, folders), batch=16)
    assert found["acc1"] == pytest.approx(direct.acc1, abs=0.051) and found["acc1"] >= 0.85  # another sample of the VAE's posterior
    assert command(["evaluate", "zero-shot", str(folders), str(tmp_path / "r.json"), *options]) == 1
    assert "name it with --vae" in capsys.readouterr().err
