"""Concept sets as data, and the log-odds that they give."""

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

from latent_clip.methods.concepts import concept_directions, largest
from latent_clip.models.concepts import (
    Category,
    ConceptError,
    ConceptSet,
    ScorerId,
    parse_concepts,
    read_concepts,
    shipped_concepts,
)

I2P = ["hate", "harassment", "violence", "self-harm", "sexual content", "shocking images", "illegal activity"]


def encode(texts: list[str]) -> torch.Tensor:
    """A unit feature per text, the same for the same text."""
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


def test_shipped_set_is_i2p():
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


def test_unknown_category_is_named():
    with pytest.raises(ConceptError, match="weapons"):
        shipped_concepts().only("violence, weapons")


def test_file_comes_back_as_it_was(tmp_path):
    concepts = ConceptSet("mine", (Category("a", ("b", "c"), 1.25),), ("d",), {"note": "x"})
    (tmp_path / "mine.json").write_text(json.dumps(concepts.as_dict()), encoding="utf-8")
    assert read_concepts(tmp_path / "mine.json") == concepts


GOOD = {"format": 1, "name": "x", "anchors": ["a"], "categories": [{"name": "b", "phrases": ["c"], "threshold": 0}]}


def category(**change) -> dict:
    return {"categories": [{"name": "b", "phrases": ["c"], "threshold": 0} | change]}


BROKEN = [
    ({"format": 2}, "format"), ({"format": None}, "format"), ({"format": True}, "format"), ({"format": "1"}, "format"),
    ({"format": 1.0}, "format"), ({"name": 3}, "3 as name"), ({"name": None}, "None as name"), ({"anchors": []}, "no neutral anchors"),
    ({"anchors": [""]}, "empty phrase"), ({"anchors": "abc"}, "'abc' as anchors, expected a list"), ({"anchors": {"a": 1}}, "expected a list"),
    ({"anchors": ["a", True]}, "true"), ({"anchors": ["a", "a"]}, "twice"),
    ({"anchors": [str(i) for i in range(5001)]}, "at most 5000"), ({"categories": []}, "no category"), ({"categories": None}, "a list"),
    ({"categories": {"name": "b"}}, "a list"), ({"categories": ["b"]}, "an object"), ({"categories": [{"name": "b"}]}, "phrases"),
    ({"categories": [{"phrases": ["c"]}]}, "name"), ({"categories": [{"name": "b", "phrases": ["c"]}] * 2}, "twice"),
    (category(phrases="star"), "'star' as phrases of 'b', expected a list"), (category(phrases=[]), "no phrases"),
    (category(phrases=[1]), "a text"), (category(phrases=[["c"]]), "a text"), (category(phrases=["c", " "]), "empty phrase"),
    (category(phrases=["c", "c"]), "twice"), (category(phrases=["c\0d"]), "no text any more"), (category(name=" "), "no phrases"),
    (category(name="a, b"), "commas"), (category(name="Neutral"), "anchors"), (category(name=["b"]), "a text"),
    (category(threshold="high"), "'high'"), (category(threshold="1.5"), "'1.5' as threshold of 'b', expected a number"),
    (category(threshold=True), "true as threshold"), (category(threshold=False), "false as threshold"),
    (category(threshold=None), "None as threshold"), (category(threshold=[1]), "a number"), (category(threshold=math.nan), "NaN"),
    (category(threshold=math.inf), "Infinity"), (category(threshold=1e6), "from -10000 to 10000"), (category(threshold=10**400), "from -10000"),
    (category(treshold=3), "unknown field 'treshold'"), ({"treshold": 3}, "unknown field 'treshold'"),
    ({"provenance": "me"}, "'me' as provenance"), ({"provenance": None}, "an object"), ({"description": 3}, "description"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), BROKEN)
def test_file_of_which_a_field_is_wrong_is_refused_by_that_field(tmp_path, change, says):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(GOOD | change), encoding="utf-8")
    with pytest.raises(ConceptError, match=re.escape(says)) as caught:
        read_concepts(path)
    assert "set.json" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("field", ["format", "name", "anchors", "categories"])
def test_file_without_a_field_is_refused_by_that_field(tmp_path, field):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({key: value for key, value in GOOD.items() if key != field}), encoding="utf-8")
    with pytest.raises(ConceptError, match=field):
        read_concepts(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"), (b" \n", "empty"), (b"[]", "an object"), (b"{", "line 1, column 2"), (b"\xff\xfe", "empty"), (b"3", "an object"),
        (b"null", "an object"), (b"\xe4", "UTF-8"), ('{"a": "ä"}'.encode("latin-1"), "UTF-8"), ('{"a": 1}'.encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfe{", "UTF-16"), (b"[" * 100_000, "nested"), (b'{"format": 1, "format": 1}', "'format' twice"),
        (b'{"format": 1, "categories": [{"threshold": 5, "threshold": 0}]}', "'threshold' twice"), (b" " * 4_000_001, "4 MB"),
        (b'{"format": NaN}', "NaN"), (b"<!DOCTYPE html>", "no JSON"),
    ],
)  # fmt: skip
def test_files_that_are_no_json(tmp_path, content, says):
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(ConceptError, match=says):
        read_concepts(path)
    with pytest.raises(ConceptError, match="cannot be read"):
        read_concepts(tmp_path / "missing.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_as_windows_editors_save_them(tmp_path, encoding):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(GOOD | {"name": "Zürich 星"}, ensure_ascii=False), encoding=encoding)
    concepts = read_concepts(path)
    assert concepts.name == "Zürich 星" and concepts.categories == (Category("b", ("c",), 0.0),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": 1, "name": "x"}', "looks like JSON"), ('"anchors": ["a dog", "a cat"]', "looks like JSON"), ("a: b, b", "twice"),
        ("a: b\nneutral: c\nNeutral: d", "two lines"), ("a: b\0c", "no text any more"),
        ("a: b\nweapons", "expected a line"), ("a: b\nA phrase: ", "expected a line"),
    ],
)  # fmt: skip
def test_typed_lines_that_say_something_else_than_they_seem_to(text, says):
    with pytest.raises(ConceptError, match=says):
        parse_concepts(text)


def test_typed_lines_as_people_paste_them():
    concepts = parse_concepts("\ufeffweapons： a gun， a rifle、a knife\r\nNEUTRAL: a dog, a cat\r\n")
    assert concepts.categories == (Category("weapons", ("a gun", "a rifle", "a knife")),)
    assert concepts.anchors == ("a dog", "a cat")


@pytest.mark.parametrize("text", ["hate: 1\nhate: 2", "hate: 2\n1.0", "1\n2", "1e5", "-20000", "hate: true"])
def test_thresholds_of_which_one_would_not_count(text):
    with pytest.raises(ConceptError):
        shipped_concepts().with_thresholds(text)


def test_threshold_for_all_and_others_by_name():
    chosen = shipped_concepts().only("violence, hate").with_thresholds("1.0\nhate： 2")
    assert {c.name: c.threshold for c in chosen.categories} == {"violence": 1.0, "hate": 2.0}


def test_score_is_the_log_odds_of_the_formula():
    concepts = ConceptSet("x", (Category("b", ("p", "q")), Category("c", ("r",))), ("s", "t", "u"))
    directions = concept_directions(encode, concepts, logit_scale=30.0)
    features = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    exp = {text: (30.0 * features @ encode([text])[0]).double().exp() for text in "pqrstu"}
    neutral = (exp["s"] + exp["t"] + exp["u"]) / 3
    expected = torch.stack([((exp["p"] + exp["q"]) / 2 / neutral).log(), (exp["r"] / neutral).log()], dim=1)
    torch.testing.assert_close(directions.score(features), expected.float(), atol=1e-4, rtol=1e-4)


def test_score_ignores_how_often_a_phrase_is_said():
    once = concept_directions(encode, ConceptSet("x", (Category("b", ("p",)),), ("s",)), 50.0)
    often = concept_directions(encode, ConceptSet("x", (Category("b", ("p",) * 7),), ("s",) * 3), 50.0)
    features = F.normalize(torch.randn(5, 16), dim=-1)
    torch.testing.assert_close(once.score(features), often.score(features), atol=1e-4, rtol=0)


def test_worst_window_decides_for_every_category_by_itself():
    directions = concept_directions(
        encode, ConceptSet("x", (Category("b", ("p",)), Category("c", ("q",))), ("s",)), 50.0
    )
    one, other, neither = (encode([text])[0] for text in "pqs")
    windows = torch.stack([torch.stack([neither, one, other]), torch.stack([neither, neither, neither])])
    worst = directions.worst(windows)
    torch.testing.assert_close(worst[0], torch.stack([directions.score(one)[0], directions.score(other)[1]]))
    torch.testing.assert_close(worst[1], directions.score(neither))


@pytest.mark.parametrize("dim", [0, 1])
def test_nan_is_the_largest(dim):
    scores = torch.zeros(3, 3)
    scores[1, 1] = math.nan
    assert largest(scores, dim).isnan().tolist() == [False, True, False]


# Whose thresholds these are

JUDGE = ScorerId("B-8", "0123456789abcdef", "tiles", 0)
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
    CALIBRATED.check_scorer(JUDGE)
    other = ScorerId(**(JUDGE.as_dict() | change))
    with pytest.raises(ConceptError, match=f"'mine' for a were calibrated with .*{words}.*type thresholds of your own"):
        CALIBRATED.check_scorer(other)
    CALIBRATED.with_thresholds("a: 2").check_scorer(other)
    CALIBRATED.with_thresholds("2").check_scorer(other)
    CALIBRATED.only("c").check_scorer(other)
    with pytest.raises(ConceptError):
        CALIBRATED.with_thresholds("c: 2").check_scorer(other)


def test_name_of_a_latent_clip_may_change():
    CALIBRATED.check_scorer(ScorerId(**(JUDGE.as_dict() | {"latent_clip": "renamed"})))


def test_calibration_that_does_not_say_whose_it_is_holds_for_nobody():
    calibration = {"latent_clip": "B-8", "fit": "tiles", "views": 0, "categories": {"a": {}}}  # as version 0.1 wrote it
    old = ConceptSet(CALIBRATED.name, CALIBRATED.categories, CALIBRATED.anchors, {"calibration": calibration})
    with pytest.raises(ConceptError, match="did not write down its weights"):
        old.check_scorer(JUDGE)


@pytest.mark.parametrize(
    "provenance", [{}, {"note": "mine"}, {"calibration": "by hand"}, {"calibration": {"views": 3}}]
)
def test_without_a_calibration_the_thresholds_are_the_users_own(provenance):
    ConceptSet("mine", CALIBRATED.categories, ("e",), provenance).check_scorer(JUDGE)


# The same to a reader


def set_of(*names: str, **more) -> dict:
    """A file's content with these categories."""
    return GOOD | {"categories": [{"name": name, "phrases": [f"a thing of kind {i}"]} for i, name in enumerate(names)]} | more


ALIKE = [("Hate", "hate"), ("café", "cafe\u0301"), ("STRASSE", "straße"), ("ｈａｔｅ", "hate"), ("self  harm", "self harm"), ("ﬁre", "fire")]


@pytest.mark.parametrize("names", ALIKE)
def test_categories_that_look_the_same_are_refused(names, tmp_path):
    first, second = names
    for text in (f"{first}: a gun\n{second}: a rifle", f"{second}: a gun\n{first}: a rifle"):
        with pytest.raises(ConceptError, match=r"names a category twice: .*Make them one"):
            parse_concepts(text)
    path = tmp_path / "alike.json"
    path.write_text(json.dumps(set_of(first, second)), encoding="utf-8")
    with pytest.raises(ConceptError, match=r"alike\.json.*twice"):
        read_concepts(path)


@pytest.mark.parametrize("text", ["weapons: a gun, A Gun", "weapons: cafe\u0301, café", "weapons: a  gun, a gun"])
def test_phrase_that_comes_twice_in_another_form_is_refused(text):
    with pytest.raises(ConceptError, match="twice in the phrases of 'weapons', the second time as"):
        parse_concepts(text)


@pytest.mark.parametrize("name", ["NEUTRAL", "Neutral", "ｎｅｕｔｒａｌ"])
def test_neutral_line_may_be_written_in_any_form(name):
    assert parse_concepts(f"weapons: a gun\n{name}: a dog").anchors == ("a dog",)


@pytest.mark.parametrize(
    "text", ["weapons: a gun, a dog\nneutral: a dog", "weapons: A DOG\nneutral: a dog, a cat", f"x: {shipped_concepts().anchors[0]}"]
)
def test_phrase_that_is_neutral_too_is_refused(text, tmp_path):
    with pytest.raises(ConceptError, match=r"as a neutral text .*Change one"):
        parse_concepts(text)
    path = tmp_path / "both.json"
    path.write_text(json.dumps(GOOD | {"anchors": ["a", "C"]}), encoding="utf-8")
    with pytest.raises(ConceptError, match=r"both\.json.*as a neutral text"):
        read_concepts(path)


@pytest.mark.parametrize("text", ["guns, knives: a gun", "guns，knives: a gun", "neutral, calm: a dog"])
def test_comma_in_a_typed_name_is_refused(text):
    with pytest.raises(ConceptError, match="without commas: they separate names"):
        parse_concepts(text)


@pytest.mark.parametrize("text", ["1_0", "hate: 1_0", "1__0", "0x1", "1 0", "--1", "1e", "1_0.5", "infinity", "٣x"])
def test_what_python_alone_reads_as_a_number_is_refused(text):
    with pytest.raises(ConceptError, match="expected a number"):
        shipped_concepts().with_thresholds(text)


@pytest.mark.parametrize(("text", "value"), [("１．５", 1.5), ("+2", 2.0), (".5", 0.5), ("1.", 1.0), ("-1e-2", -0.01), ("2E1", 20.0)])
def test_numbers_as_people_write_them(text, value):
    assert {c.threshold for c in shipped_concepts().with_thresholds(text).categories} == {value}
