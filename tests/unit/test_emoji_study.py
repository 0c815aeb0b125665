"""The emoji study without its downloads: names, views, batches, ranks, and one whole training in miniature."""

import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("resvg_py")
pytest.importorskip("webdataset")

from latent_clip.demo import training as demo_training
from latent_clip.evaluation.statistics import Rate
from latent_clip.models.latent_clip import LatentCLIP
from latent_clip.studies import emoji_measures as measures
from latent_clip.studies import emoji_pictures as pictures
from latent_clip.studies import emoji_towers as towers
from latent_clip.studies.emoji_pictures import (
    Drawing,
    View,
    agreed_names,
    caption_of,
    count_votes,
    may_flip,
    may_turn_hue,
)
from latent_clip.training.loop import Draw, Recipe
from latent_clip.training.starts import config_for_latents

ROOT = Path(__file__).resolve().parent.parent.parent
SQUARE = '<path fill="#f00" d="M0 0h8v16H0z"/><path fill="#00f" d="M8 0h8v16H8z"/>'  # red left, blue right
ICONS = {
    "icons": {
        "cat-face": {"body": SQUARE}, "bear-face": {"body": SQUARE}, "hand": {"body": SQUARE}, "hand-light-skin-tone": {"body": SQUARE},
        "elf-tone1": {"body": SQUARE}, "flag-chad": {"body": SQUARE}, "adult": {"body": SQUARE, "hidden": True},
        "tall": {"body": SQUARE, "height": 32},
    },
    "aliases": {"bear": {"parent": "bear-face"}, "flags": {"parent": "hand"}, "grown-up": {"parent": "adult"}},
    "width": 16, "height": 16,
}  # fmt: skip


def drawing(name="cat-face", artist="one", body=SQUARE, box=(0, 0, 16, 16)):
    return Drawing(artist, name, body, box)


# ------------------------------------------------------------------------------------------------------------ names


def test_names_leave_out_skin_tones_flags_and_what_is_withdrawn():
    assert pictures.names_of(ICONS) == {
        "cat-face": ["cat-face"], "bear-face": ["bear-face", "bear"], "hand": ["hand"], "tall": ["tall"]
    }  # fmt: skip
    assert caption_of("cat-face") == "cat face"


def test_a_drawing_gets_that_of_its_names_which_most_artists_have():
    others = {"bear": ["bear"], "cat-face": ["cat-face"]}
    votes = count_votes([pictures.names_of(ICONS), others, {"bear": ["bear", "bear"]}])
    assert votes["bear"] == 3 and votes["bear-face"] == 1
    assert agreed_names(pictures.names_of(ICONS), votes)["bear-face"] == "bear"
    assert [d.name for d in pictures.drawings_of("one", ICONS, votes)] == ["bear", "cat-face", "hand", "tall"]


def test_no_two_drawings_of_an_artist_have_one_name():
    names = {"cat": ["cat", "kitty"], "kitten": ["kitten", "kitty"]}
    assert agreed_names(names, Counter(kitty=5)) == {"cat": "kitty", "kitten": "kitten"}
    assert agreed_names({"cat": ["cat", "kitty"], "kitty": ["kitty"]}, Counter(kitty=5)) == {"cat": "cat", "kitty": "kitty"}


@pytest.mark.parametrize(
    "name", ["left-arrow", "person-running-facing-right", "letter-z", "keycap-7", "ten-oclock", "six-thirty", "last-quarter-moon",
             "1st-place-medal", "digit-two", "ok-button"]
)  # fmt: skip
def test_what_a_mirror_makes_false_is_not_flipped(name):
    assert not may_flip(name) and not any(view.flip for view in pictures.views_of(drawing(name), 50))


def test_flips_and_hues_by_name():
    assert may_flip("cat-face") and any(view.flip for view in pictures.views_of(drawing(), 50))
    assert not may_turn_hue("red-heart") and not any(view.hue for view in pictures.views_of(drawing("red-heart"), 50))
    assert may_turn_hue("shredder")


def test_views_are_the_same_each_time_and_begin_with_the_drawing_as_it_is():
    first = pictures.views_of(drawing(), 8)
    assert first == pictures.views_of(drawing(), 8) and first[0] == View() and len(set(first)) == 8
    assert first[1:] != pictures.views_of(drawing(artist="two"), 8)[1:]


# --------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_is_moved_scaled_and_mirrored_on_white():
    red, blue, white = ([255, 0, 0], [0, 0, 255], [255, 255, 255])
    plain = pictures.render(drawing())
    assert plain.shape == (3, 64, 64) and plain.dtype == torch.uint8
    assert plain[:, 32, 10].tolist() == red and plain[:, 32, 54].tolist() == blue
    flipped = pictures.render(drawing(), View(flip=True))
    assert flipped[:, 32, 10].tolist() == blue
    small = pictures.render(drawing(), View(scale=0.5))
    assert small[:, 32, 10].tolist() == white and small[:, 32, 28].tolist() == red
    moved = pictures.render(drawing(), View(across=0.5))
    assert moved[:, 32, 10].tolist() == white and moved[:, 32, 54].tolist() == red
    assert pictures.render(drawing(), View(hue=1 / 3))[:, 32, 10].tolist() == [0, 255, 0]


def test_a_tall_icon_is_centred_in_a_square():
    (tall,) = [d for d in pictures.drawings_of("one", ICONS, Counter()) if d.name == "tall"]
    assert tall.box == (-8, 0, 32, 32)
    assert pictures.render(tall).shape == (3, 64, 64)


def test_a_package_is_read_and_a_missing_npm_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="expected npm to fetch it"):
        pictures.read_set("noto")
    inner = tmp_path / "icons.json"
    inner.write_text(json.dumps(ICONS))
    with tarfile.open(tmp_path / "sets" / "noto-1.2.9.tgz", "w:gz") as tar:
        tar.add(inner, "package/icons.json")
    assert pictures.read_set("noto") == ICONS


# --------------------------------------------------------------------------------------------------------- measures


def test_ranks_count_those_that_are_not_worse():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.4], [0.1, 0.2, 0.3]])
    assert measures.ranks(scores).tolist() == [0, 2, 0]  # an equal one is no proof of knowledge


def test_ranks_among_a_few_are_seeded_and_those_among_all_where_all_are_drawn():
    scores = torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    assert measures.ranks_among(scores, 40, seed=3).tolist() == measures.ranks(scores).tolist()
    few = measures.ranks_among(scores, 10, seed=3)
    assert few.tolist() == measures.ranks_among(scores, 10, seed=3).tolist() and few.max() <= 9
    assert (few <= measures.ranks(scores)).all()
    with pytest.raises(ValueError, match="Got 40 names"):
        measures.ranks_among(scores, 41, seed=3)


def test_verdicts_tell_perfect_from_blind_and_one_way_of_retrieval_from_the_other():
    basis = torch.eye(120)
    perfect = measures.verdicts(basis, basis, basis)
    assert tuple(perfect) == measures.TASKS and all(all(hits) for hits in perfect.values())
    blind = measures.verdicts(torch.ones(120, 120), basis, basis)
    assert not any(any(hits) for hits in blind.values())
    # every picture lies nearest to the first name, but each name's nearest picture is its own
    images = basis * 0.5 + torch.eye(120)[:1]
    found = measures.verdicts(F.normalize(images, dim=-1), basis, basis)
    assert sum(found["name by picture, R@1"]) == 1 and all(found["picture by name, R@1"][1:])


def test_points_are_a_paired_difference():
    assert measures.points([True, False] * 50, [True, True] * 50).startswith("+50.0 (+")


# --------------------------------------------------------------------------------------------------- batches, towers


def test_no_batch_has_a_name_twice_and_each_step_its_own():
    names = [f"name-{n % 30}" for n in range(100)]
    rows = towers.distinct_rows(Draw.of(1, 0), names, 25)
    assert len({names[row] for row in rows}) == 25
    assert rows == towers.distinct_rows(Draw.of(1, 0), names, 25) != towers.distinct_rows(Draw.of(1, 1), names, 25)
    with pytest.raises(ValueError, match="Got 30 names for a batch of 31"):
        towers.distinct_rows(Draw.of(1, 0), names, 31)


def test_both_kinds_of_tower_are_equal_but_for_what_they_read():
    pixel, latent = (dict(LatentCLIP(config).named_parameters()) for config in (towers.PIXEL, towers.LATENT))
    assert pixel.keys() == latent.keys()
    assert [key for key in pixel if pixel[key].shape != latent[key].shape] == ["visual.conv1.weight"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Four colours under names, as pixels and as "latents" (mean colours of cells, in 3 channels), and small configs for both."""
    monkeypatch.setattr(towers, "FOLDER", tmp_path)
    monkeypatch.setattr(demo_training, "CACHE", tmp_path)
    colours = {"red-square": (255, 0, 0), "blue-square": (0, 0, 255), "green-square": (0, 200, 0), "black-square": (0, 0, 0)}
    drawings = [drawing(name, artist) for artist in ("one", "two") for name in colours]
    stored = torch.tensor([colours[d.name] for d in drawings], dtype=torch.uint8)[:, None, :, None, None].expand(-1, 2, -1, 64, 64)
    stored = stored.contiguous()
    stored[:, 1, :, :16] = 255
    latents = F.avg_pool2d(stored.flatten(0, 1).float(), 8).unflatten(0, (8, 2)).half() / 50
    small = {"layers": 1, "width": 32, "head_width": 16}
    pixel: dict = {**towers.PIXEL, "embed_dim": 16, "vision_cfg": {**towers.PIXEL["vision_cfg"], **small},
             "text_cfg": {**towers.PIXEL["text_cfg"], "width": 16, "heads": 2, "layers": 1}}  # fmt: skip
    latent = config_for_latents(pixel, 3, grid=8, patch_size=2, factor=8)
    return towers.Seen(drawings, stored, 4), towers.Seen(drawings, latents, 4), pixel, latent


def test_a_study_in_miniature(tiny):
    pixels, latents, pixel, latent = tiny
    recipe = Recipe("pixel", 40, lr=5e-3, seed=1, warmup=5)
    teacher, seconds = towers.train_contrastive(recipe, pixels, pixel)
    assert seconds > 0 and not any(p.requires_grad for p in teacher.parameters())
    assert teacher.text.token_embedding.weight.shape == (49408, 16)  # all words again, those of no caption empty
    assert teacher.text.token_embedding.weight.any(1).sum() == len(pixels.used_ids())
    names = [d.name for d in pixels.drawings[:4]]

    def right(model, stored):
        return (towers.features_of(model, stored) @ towers.texts_of(model, names).T).argmax(1).tolist() == [0, 1, 2, 3]

    assert right(teacher, pixels.stored[:4, 0])
    again, same_seconds = towers.train_contrastive(recipe, pixels, pixel)  # from its file
    assert same_seconds == seconds and torch.equal(again.visual.proj, teacher.visual.proj)
    student, _ = towers.train_distilled(replace(recipe, name="distilled"), latents, latent, pixels, teacher)
    assert right(student, latents.stored[:4, 0])
    assert torch.equal(student.text.token_embedding.weight, teacher.text.token_embedding.weight)  # pictures alone


# ------------------------------------------------------------------------------------------------------- the results


def test_the_page_states_what_was_read_of_the_final_artist():
    found = json.loads((ROOT / "studies/emoji_final.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/training-study.md").read_text(encoding="utf-8")
    assert len(found["tasks"]) == 6 and (ROOT / "docs/images/emoji-study.png").stat().st_size > 10_000
    for by in found["tasks"].values():
        assert tuple(by) == measures.TASKS
        for task, bits in by.items():
            assert len(bits) == found["drawings"] >= measures.AMONG and set(bits) == {"0", "1"}
            assert any(line.startswith(f"| {task} |") and str(Rate(bits.count("1"), len(bits))) in line for line in page.splitlines())
