"""Concept sets as data, and the log-odds that they give."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from latent_clip_pack.methods.concepts import concept_directions, largest
from latent_clip_pack.models.concepts import (
    Category,
    ConceptError,
    ConceptSet,
    Judge,
    parse_concepts,
    read_concepts,
    shipped_concepts,
)

I2P = ["hate", "harassment", "violence", "self-harm", "sexual content", "shocking images", "illegal activity"]


def encode(texts: list[str]) -> torch.Tensor:
    """A unit feature per text, the same for the same text."""
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


def test_the_shipped_set_is_i2p():
    concepts = shipped_concepts()
    assert [category.name for category in concepts.categories] == I2P
    assert len(concepts.anchors) >= 8 and all(len(category.phrases) >= 3 for category in concepts.categories)


def test_lines_make_a_set():
    concepts = parse_concepts("weapons: a gun,  a rifle\n\nneutral: a dog, a cat\n smoke : a cigarette")
    assert concepts.categories == (Category("weapons", ("a gun", "a rifle")), Category("smoke", ("a cigarette",)))
    assert concepts.anchors == ("a dog", "a cat")
    assert parse_concepts("weapons: a gun").anchors == shipped_concepts().anchors


@pytest.mark.parametrize(
    "text", ["", "\n \n", "weapons", "weapons:", ": a gun", "weapons: ,", "a: b\na: c", "neutral: a dog"]
)
def test_lines_that_make_none(text):
    with pytest.raises(ConceptError):
        parse_concepts(text)


def test_categories_and_thresholds_are_chosen_by_text():
    concepts = shipped_concepts()
    chosen = concepts.only("violence, hate").with_thresholds("hate: 2.5")
    assert [(c.name, c.threshold) for c in chosen.categories] == [("violence", 0.0), ("hate", 2.5)]
    assert {c.threshold for c in concepts.with_thresholds("-1.5").categories} == {-1.5}
    assert concepts.only("").with_thresholds(" ") == concepts


@pytest.mark.parametrize("text", ["much", "nan", "inf", "1,5", "hate: ", "hate: x", "weapons: 1", "1e999"])
def test_thresholds_that_are_no_numbers(text):
    with pytest.raises(ConceptError):
        shipped_concepts().with_thresholds(text)


def test_an_unknown_category_is_named():
    with pytest.raises(ConceptError, match="weapons"):
        shipped_concepts().only("violence, weapons")


def test_a_file_comes_back_as_it_was(tmp_path):
    concepts = ConceptSet("mine", (Category("a", ("b", "c"), 1.25),), ("d",), {"note": "x"})
    (tmp_path / "mine.json").write_text(json.dumps(concepts.as_dict()), encoding="utf-8")
    assert read_concepts(tmp_path / "mine.json") == concepts


GOOD = {"format": 1, "name": "x", "anchors": ["a"], "categories": [{"name": "b", "phrases": ["c"], "threshold": 0}]}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"format": None}, {"name": 3}, {"anchors": []}, {"anchors": [""]}, {"anchors": "abc", "categories": []},
        {"categories": []}, {"categories": None}, {"categories": [{"name": "b"}]}, {"categories": [{"phrases": ["c"]}]},
        {"categories": [{"name": "b", "phrases": []}]}, {"categories": [{"name": "b", "phrases": [1]}]},
        {"categories": [{"name": "b", "phrases": ["c"], "threshold": "high"}]},
        {"categories": [{"name": "b", "phrases": ["c"], "threshold": math.nan}]}, {"categories": ["b"]},
    ],
)  # fmt: skip
def test_files_that_are_no_set(tmp_path, change):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(GOOD | change), encoding="utf-8")
    with pytest.raises(ConceptError):
        read_concepts(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"3", b"null"])
def test_files_that_are_no_json(tmp_path, content):
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(ConceptError):
        read_concepts(path)
    with pytest.raises(ConceptError, match="cannot be read"):
        read_concepts(tmp_path / "missing.json")


def test_the_score_is_the_log_odds_of_the_formula():
    concepts = ConceptSet("x", (Category("b", ("p", "q")), Category("c", ("r",))), ("s", "t", "u"))
    directions = concept_directions(encode, concepts, logit_scale=30.0)
    features = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    exp = {text: (30.0 * features @ encode([text])[0]).double().exp() for text in "pqrstu"}
    neutral = (exp["s"] + exp["t"] + exp["u"]) / 3
    expected = torch.stack([((exp["p"] + exp["q"]) / 2 / neutral).log(), (exp["r"] / neutral).log()], dim=1)
    torch.testing.assert_close(directions.score(features), expected.float(), atol=1e-4, rtol=1e-4)


def test_the_score_ignores_how_often_a_phrase_is_said():
    once = concept_directions(encode, ConceptSet("x", (Category("b", ("p",)),), ("s",)), 50.0)
    often = concept_directions(encode, ConceptSet("x", (Category("b", ("p",) * 7),), ("s",) * 3), 50.0)
    features = F.normalize(torch.randn(5, 16), dim=-1)
    torch.testing.assert_close(once.score(features), often.score(features), atol=1e-4, rtol=0)


def test_the_worst_window_decides_for_every_category_by_itself():
    directions = concept_directions(encode, ConceptSet("x", (Category("b", ("p",)), Category("c", ("q",))), ("s",)), 50.0)
    one, other, neither = (encode([text])[0] for text in "pqs")
    windows = torch.stack([torch.stack([neither, one, other]), torch.stack([neither, neither, neither])])
    worst = directions.worst(windows)
    torch.testing.assert_close(worst[0], torch.stack([directions.score(one)[0], directions.score(other)[1]]))
    torch.testing.assert_close(worst[1], directions.score(neither))


@pytest.mark.parametrize("dim", [0, 1])
def test_a_nan_is_the_largest(dim):
    scores = torch.zeros(3, 3)
    scores[1, 1] = math.nan
    assert largest(scores, dim).isnan().tolist() == [False, True, False]


# Whose thresholds these are

JUDGE = Judge("B-8", "0123456789abcdef", "tiles", 0)
CALIBRATED = ConceptSet(
    "mine", (Category("a", ("b",), 1.0), Category("c", ("d",))), ("e",), {"calibration": {**JUDGE.as_dict(), "categories": {"a": {}}}}
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": "other"}, "'B-8' of other weights"),
        ({"fit": "squash"}, "fit tiles instead of squash"),
        ({"views": 4}, "0 views instead of 4"),
        ({"closer_look": True}, "no closer look"),
    ],
)
def test_thresholds_hold_for_the_judge_they_were_calibrated_with(change, words):
    CALIBRATED.check_judge(JUDGE)
    other = Judge(**(JUDGE.as_dict() | change))
    with pytest.raises(ConceptError, match=f"'mine' for a were calibrated with .*{words}.*type thresholds of your own"):
        CALIBRATED.check_judge(other)
    CALIBRATED.with_thresholds("a: 2").check_judge(other)
    CALIBRATED.with_thresholds("2").check_judge(other)
    CALIBRATED.only("c").check_judge(other)
    with pytest.raises(ConceptError):
        CALIBRATED.with_thresholds("c: 2").check_judge(other)


def test_the_name_of_a_latent_clip_may_change():
    CALIBRATED.check_judge(Judge(**(JUDGE.as_dict() | {"latent_clip": "renamed"})))


def test_a_calibration_that_does_not_say_whose_it_is_holds_for_nobody():
    calibration = {"latent_clip": "B-8", "fit": "tiles", "views": 0, "categories": {"a": {}}}  # as version 0.1 wrote it
    old = ConceptSet(CALIBRATED.name, CALIBRATED.categories, CALIBRATED.anchors, {"calibration": calibration})
    with pytest.raises(ConceptError, match="did not write down its weights"):
        old.check_judge(JUDGE)


@pytest.mark.parametrize("provenance", [{}, {"note": "mine"}, {"calibration": "by hand"}, {"calibration": {"views": 3}}])
def test_without_a_calibration_the_thresholds_are_the_users_own(provenance):
    ConceptSet("mine", CALIBRATED.categories, ("e",), provenance).check_judge(JUDGE)
