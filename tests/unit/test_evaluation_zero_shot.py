"""Labelled pictures in both layouts, the figures of zero-shot classification, and what is no such data set."""

import io
import json
import tarfile
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.pictures import imagenet, read_pictures
from latent_clip.evaluation.zero_shot import class_directions, classify, metrics_of, prepare, write_result

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(colour, size=(8, 8)) -> bytes:
    Image.new("RGB", size, colour).save(target := io.BytesIO(), "PNG")
    return target.getvalue()


def save_folders(root, counts=(2, 3, 1)):
    for (name, colour), count in zip(sorted(COLOURS.items()), counts):
        (root / name).mkdir(parents=True)
        for k in range(count):
            (root / name / f"{k}.png").write_bytes(png(colour))
    return root


def save_tars(root, extra=None, shards=2):
    """CLIP_benchmark's layout: classes in the order of COLOURS."""
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text(str(shards))
    (root / "classnames.txt").write_text("\n".join(COLOURS))
    (root / "zeroshot_classification_templates.txt").write_text("a {c} thing\nall {c}")
    for shard in range(shards):
        with tarfile.open(root / "test" / f"{shard}.tar", "w") as tar:
            for label, colour in enumerate(COLOURS.values()):
                parts = {"cls": str(label).encode(), "png": png(colour)} if extra is None else extra
                for extension, content in parts.items():
                    info = tarfile.TarInfo(f"s{shard}_{label}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def colour_judge():
    """Reads the mean colour; texts are the colours that they name."""

    def encode_text(texts):
        return torch.stack([torch.tensor(next(rgb for name, rgb in COLOURS.items() if name in text)) / 255.0 for text in texts])

    def encode(pictures):
        return torch.nn.functional.normalize(pictures.mean((-2, -1)), dim=-1)

    return SimpleNamespace(name="colours", side=4, encode=encode, encode_text=encode_text)


@pytest.mark.parametrize("save", [save_folders, save_tars])
def test_both_layouts_are_read_and_named(tmp_path, save):
    found = read_pictures(save(tmp_path / "data"))
    labels = [label for _, label in found]
    assert labels == ([0, 0, 1, 1, 1, 2] if save is save_folders else [0, 1, 2, 0, 1, 2])
    metrics = classify(colour_judge(), found, batch=4)
    assert (metrics.acc1, metrics.acc5, metrics.mean_per_class_recall) == (1, 1, 1)


def test_wrong_names_show(tmp_path):
    root = save_folders(tmp_path / "data")
    (root / "classnames.txt").write_text("blue\nred\ngreen\n")  # the last two exchanged
    metrics = classify(colour_judge(), read_pictures(root))
    assert metrics.acc1 == pytest.approx(2 / 6) and metrics.mean_per_class_recall == pytest.approx(1 / 3) and metrics.acc5 == 1


def test_figures_by_hand():
    scores = torch.eye(7)[[0, 1, 2, 3, 4, 5, 6, 0]] + torch.arange(7) / 100
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])
    found = metrics_of(scores, labels)
    assert found.acc1 == 7 / 8
    assert found.acc5 == 7 / 8, "class 0 is last but for its own pictures"
    assert found.mean_per_class_recall == pytest.approx((2 / 3 + 5) / 6)


def test_result_file_is_clip_benchmarks(tmp_path):
    write_result(tmp_path / "r.json", metrics_of(torch.eye(3), torch.arange(3)), "wds/x", "m", "p")
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "dataset": "wds/x", "model": "m", "pretrained": "p", "task": "zeroshot_classification", "language": "en",
        "metrics": {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0},
    }  # fmt: skip


def test_imagenets_names_and_templates(tmp_path):
    names, templates = imagenet()
    assert len(names) == 1000 and len(templates) == 80 and all(template.count("{c}") == 1 for template in templates)
    for wnid in ("n01440764", "n01443537"):
        (tmp_path / "in" / wnid).mkdir(parents=True)
        (tmp_path / "in" / wnid / "x.JPEG").write_bytes(png((1, 2, 3)))
    with pytest.raises(EvaluationError, match="2 class folders and 1000 names"):
        read_pictures(tmp_path / "in")
    twice = class_directions(lambda texts: torch.eye(4)[[len(text) % 4 for text in texts]], ["a", "b", "a"], ["{c}", "xx{c}"])
    assert torch.equal(twice[0], twice[2]) and torch.allclose(twice.norm(dim=1), torch.ones(3))


def test_picture_becomes_its_centre_square():
    wide = Image.new("RGB", (30, 10))
    wide.paste((255, 255, 255), (10, 0, 20, 10))
    assert prepare(wide, 10).min() == 1 and prepare(wide, 5).shape == (3, 5, 5)
    assert prepare(Image.new("L", (7, 9), 255), 7).shape == (3, 7, 7)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda root: (root / "test" / "1.tar").unlink(), "1 of 2 shards are missing, such as 1.tar"),
    (lambda root: (root / "classnames.txt").write_text("red\ngreen"), "label 2, expected 0 to 1"),
    (lambda root: (root / "classnames.txt").unlink(), "needs classnames.txt"),
    (lambda root: (root / "zeroshot_classification_templates.txt").write_text("a thing"), "expected {c} where"),
    (lambda root: (root / "test" / "nshards.txt").write_text("two"), "expected the number of shards"),
    (lambda root: (root / "dataset_type.txt").write_text("retrieval"), "a data set for retrieval"),
    (lambda root: (root / "test" / "0.tar").write_bytes((root / "test" / "0.tar").read_bytes()[:700]), "broken off"),
])  # fmt: skip
def test_damaged_data_set_is_refused(tmp_path, spoil, message):
    root = save_tars(tmp_path / "data")
    spoil(root)
    with pytest.raises(EvaluationError, match=message):
        list(read_pictures(root))


@pytest.mark.parametrize(("parts", "message"), [
    ({"cls": b"0"}, "has .cls, expected a picture and a number"), ({"png": png((0, 0, 0)), "cls": b"x"}, "expected a picture and a number"),
    ({"png": b"no picture", "cls": b"0"}, "no picture"),
])  # fmt: skip
def test_damaged_sample_is_refused(tmp_path, parts, message):
    with pytest.raises(EvaluationError, match=message):
        list(read_pictures(save_tars(tmp_path / "data", parts)))


def test_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no class folders with pictures"):
        read_pictures(tmp_path)
