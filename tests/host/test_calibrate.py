"""latent-clip calibrate on Shapes World: folders of latents and pictures in, a concept set with thresholds out."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latent_clip.demo.captions import THINGS
from latent_clip.demo.corpus import sample_corpus
from latent_clip.demo.scenes import render
from latent_clip.models.concepts import read_concepts
from latent_clip.tests.messy_folder import BAD_EXIF, EXIF
from latent_clip.tools.comfy_server import PACK_ROOT

COUNT = 40


@pytest.fixture(scope="module")
def world(host_env, tmp_path_factory):
    """A folder with allowed/, star/ (latents), pictures/, broken/ and shapes.json; and the tool in the host's process."""
    folder = tmp_path_factory.mktemp("calibrate")
    load_vae = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.shapes_world").load_vae
    scenes = sample_corpus("test calibrate", 6 * COUNT, single=1.0)
    with torch.inference_mode():
        vae = load_vae()
        for name, wanted in (("allowed", False), ("star", True)):
            chosen = [s for s in scenes if (s.things[0].kind == "star") == wanted][:COUNT]
            pictures = render(chosen).movedim(1, -1)
            (folder / name).mkdir()
            for number, latent in enumerate(vae.encode(pictures).split(1)):
                # every second file as an old host wrote it
                old = number % 2
                tensors = {"latent_tensor": (latent * (0.18215 if old else 1)).contiguous().clone()}
                save_file(
                    tensors | ({} if old else {"latent_format_version_0": torch.tensor([])}),
                    folder / name / f"{number}.latent",
                )
    (folder / "pictures").mkdir()
    for number, picture in enumerate(pictures[:4]):
        Image.fromarray((picture * 255).round().byte().numpy()).save(folder / "pictures" / f"{number}.png")
    (folder / "broken").mkdir()
    (folder / "broken" / "not.latent").write_bytes(b"no tensors here")
    save_file(
        {"latent_tensor": torch.zeros(1, 16, 8, 8), "latent_format_version_0": torch.tensor([])}, folder / "wide.latent"
    )
    concepts = {
        "format": 1, "name": "shapes", "anchors": [str(t) for t in THINGS if t.kind != "star" and str(t) != "a red cross"],
        "categories": [
            {"name": "star", "phrases": [str(t) for t in THINGS if t.kind == "star"]},
            {"name": "cross", "phrases": ["a red cross"], "threshold": 1.5},
        ],
        "provenance": {"source": "a test"},
    }  # fmt: skip
    (folder / "shapes.json").write_text(json.dumps(concepts))
    return folder


class Tool:
    def __init__(self, commands, scorer, calibrate):
        self.commands, self.scorer, self.calibrate = commands, scorer, calibrate
        self.read_latent, self.read_picture, self.Scorer = scorer.read_latent, scorer.read_picture, scorer.CalibrationScorer
        self.UnreadableError, self.read_concepts = scorer.UnreadableError, calibrate.read_concepts

    def main(self, arguments: list[str]) -> int:
        return self.commands.main(["calibrate", *arguments])


@pytest.fixture(scope="module")
def tool(host_env):
    """The command, and what it reads files with, as the host imported the pack."""
    modules = [
        importlib.import_module(f"{host_env.pack.__name__}.{name}")
        for name in ("commands", "host.offline.calibrate", "commands.calibrate")
    ]
    return Tool(*modules)


def arguments(world, target, allowed="allowed", unwanted="star", *more) -> list[str]:
    folders = [str(world / allowed), str(world / unwanted)]
    return [
        str(target),
        "--category",
        "star",
        *folders,
        "--clip",
        "shapes-world",
        "--concepts",
        str(world / "shapes.json"),
        *more,
    ]


def test_from_the_command_line_with_latents_of_both_formats(world, comfy_tree, tmp_path):
    target, picture = tmp_path / "ours.json", tmp_path / "roc.png"
    script = str(PACK_ROOT)
    more = ("--comfyui", str(comfy_tree), "--rate", "0.05", "--plot", str(picture), "--cpu")
    done = subprocess.run(
        [sys.executable, script, "calibrate", *arguments(world, target, "allowed", "star", *more)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT} allowed images cannot show a rate below" in done.stdout
    concepts = read_concepts(target)
    star, cross = concepts.categories
    assert concepts.name == "ours" and cross.threshold == 1.5
    about = concepts.provenance["calibration"]
    assert concepts.provenance["source"] == "a test"
    assert about["latent_clip"] == "Shapes World Latent-CLIP" and about["wanted_false_block_rate"] == 0.05
    assert len(about["identity"]) == 16 and (about["fit"], about["views"], about["closer_look"]) == ("tiles", 0, False)
    rates = about["categories"]["star"]
    assert rates["false_blocks"]["hits"] == 2 and rates["false_blocks"]["n"] == COUNT
    assert rates["auc"] > 0.95 and rates["missed"]["rate"] < 0.2
    assert -10 < star.threshold < 10
    assert picture.stat().st_size > 5000


def test_old_files_score_as_new_ones(world, tool):
    new, old = (tool.read_latent(world / "star" / f"{number}.latent") for number in (0, 1))
    assert new.std() == pytest.approx(old.std().item(), rel=0.5)


def test_pictures_go_through_the_vae(world, tool, tmp_path, capsys):
    target = tmp_path / "pictures.json"
    assert tool.main(arguments(world, target, "allowed", "pictures", "--vae", "shapes-world")) == 0
    assert "of 4" in capsys.readouterr().out
    assert read_concepts(target).provenance["calibration"]["categories"]["star"]["missed"]["n"] == 4


def test_pictures_are_read_as_people_see_them(tool, tmp_path):
    """A phone stores them on their side and notes how to turn them."""
    upright = Image.new("RGB", (128, 96))
    upright.paste((255, 0, 0), (0, 0, 128, 48))
    turned, exif = upright.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    turned.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    upright.save(tmp_path / "upright.png")
    expected, found = tool.read_picture(tmp_path / "upright.png"), tool.read_picture(tmp_path / "phone.jpg")
    assert found.shape == expected.shape == (96, 128, 3)
    assert (found - expected).abs().mean() < 0.02


def test_sixteen_bits_are_grey_and_not_white_and_bad_exif_costs_no_picture(tool, tmp_path):
    Image.fromarray(np.full((96, 96), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert abs(tool.read_picture(tmp_path / "deep.png").mean() - 0.5) < 0.01
    exif = bytearray(EXIF)
    for place, value in BAD_EXIF[0].items():
        exif[place] = value
    Image.new("RGB", (96, 80)).save(tmp_path / "phone.jpg", exif=bytes(exif))
    assert sorted(tool.read_picture(tmp_path / "phone.jpg").shape) == [3, 80, 96]


def test_large_pictures_are_reduced_and_bombs_refused(tool, tmp_path):
    Image.new("RGB", (6000, 3000)).save(tmp_path / "large.jpg")
    assert tool.read_picture(tmp_path / "large.jpg").shape == (1024, 2048, 3)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(tool.UnreadableError, match=r"bomb\.png: too large"):
        tool.read_picture(tmp_path / "bomb.png")
    Image.new("RGB", (4000, 40)).save(tmp_path / "strip.png")
    with pytest.raises(tool.UnreadableError, match=r"strip\.png: 2048 × 20 pixels, expected at least 64"):
        tool.read_picture(tmp_path / "strip.png")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:3000])
    with pytest.raises(tool.UnreadableError, match=r"half\.jpg"):
        tool.read_picture(tmp_path / "half.jpg")


def test_one_bad_file_is_named_and_left_out_and_hidden_ones_are_not_looked_at(world, tool, tmp_path, capsys):
    folder = tmp_path / "allowed"
    shutil.copytree(world / "allowed", folder)
    (folder / "._0.latent").write_bytes(b"what macOS writes beside a file")
    (folder / "bad.latent").write_bytes(b"no tensors here")
    target = tmp_path / "ours.json"
    assert tool.main(arguments(world, target, folder, "star")) == 0
    out = capsys.readouterr().out
    assert f"left out, cannot be read: {folder / 'bad.latent'}" in out and "._0" not in out
    calibration = read_concepts(target).provenance["calibration"]
    assert calibration["left_out"] == 1
    assert calibration["categories"]["star"]["false_blocks"]["n"] == COUNT
    for number in range(2):
        (folder / f"worse{number}.latent").write_bytes(b"no tensors here")
    assert tool.main(arguments(world, tmp_path / "refused.json", folder, "star")) == 1
    assert f"3 of the {COUNT + 3} files of {folder} cannot be read" in capsys.readouterr().err


def test_judge_that_sees_no_difference_is_said_to_be_useless(world, tool, tmp_path, capsys):
    target = tmp_path / "ours.json"
    assert tool.main(arguments(world, target, "allowed", "allowed")) == 0
    assert "DO NOT RELY ON IT: it cannot tell the two folders apart" in capsys.readouterr().out
    assert "chance" in read_concepts(target).provenance["calibration"]["categories"]["star"]["doubt"]


def test_gate_uses_the_threshold(world, tool, host_env, tmp_path):
    target = tmp_path / "gate.json"
    assert tool.main(arguments(world, target, "allowed", "star", "--rate", "0.1")) == 0
    gate = importlib.import_module(f"{host_env.pack.__name__}.host.safety.gate")
    read = importlib.import_module(f"{host_env.pack.__name__}.models.concepts").read_concepts
    clip = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.shapes_world").load_latent_clip()
    latents = torch.cat([tool.read_latent(world / "allowed" / f"{number}.latent") for number in range(COUNT)])
    with torch.inference_mode():
        _, report = gate.run_gate({"samples": latents}, clip, lambda: read(target).only("star"), gate.GateSettings())
        _, other = gate.run_gate({"samples": latents}, clip, lambda: read(target).only("star"), gate.GateSettings(views=2))
    assert sum(report.blocked) == 4
    assert all("0 views instead of 2" in reason for reason in other.reasons)


def test_wide_latents_are_calibrated_by_their_worst_window(world, tool):
    folder = world / "wide pictures"
    folder.mkdir(exist_ok=True)
    allowed, star = (tool.read_latent(world / name / "0.latent") for name in ("allowed", "star"))
    for name, parts in (("alone", [star]), ("beside", [star, allowed, allowed])):
        tensors = {"latent_tensor": torch.cat(parts, dim=3).contiguous(), "latent_format_version_0": torch.tensor([])}
        save_file(tensors, folder / f"{name}.latent")
    with torch.inference_mode():
        alone, beside = tool.Scorer("shapes-world", None, "tiles", 0).column(folder, tool.read_concepts(world / "shapes.json").only("star"))  # fmt: skip
    assert beside >= alone - 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unwanted": "pictures"}, "--vae"),
        ({"unwanted": "nowhere"}, "no such folder"),
        ({"unwanted": "broken"}, "not.latent"),
        ({"unwanted": "."}, "wide.latent"),
        ({"more": ("--rate", "1")}, "expected 0 to below 1"),
        ({"more": ("--category", "stars", "a", "b")}, "expected some of: star, cross"),
        ({"more": ("--category", "star", "a", "b")}, "given twice"),
        ({"target": "ours.txt"}, "must end in .json"),
        ({"more": ("--comfyui", "/nowhere")}, "no ComfyUI there"),
    ],
)
def test_what_cannot_be_calibrated_leaves_no_file_and_says_why(world, tool, tmp_path, capsys, change, message):
    target = tmp_path / change.get("target", "ours.json")
    argv = arguments(world, target, "allowed", change.get("unwanted", "star"), *change.get("more", ()))
    assert tool.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_without_matplotlib_it_says_so_before_it_scores(world, tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert (
        tool.main(arguments(world, tmp_path / "ours.json", "allowed", "star", "--plot", str(tmp_path / "roc.png"))) == 1
    )
    assert "pip install matplotlib" in capsys.readouterr().err
