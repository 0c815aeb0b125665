"""docs/safety-study.md says what studies/safety.json holds, and its counts add up."""

import json

import pytest

from latent_clip.models.concepts import shipped_concepts
from latent_clip.studies import safety_report
from latent_clip.studies import safety_study as study
from latent_clip.studies.report import measured


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))


def test_the_document_states_the_stored_results(results):
    assert measured(study.DOCUMENT) == safety_report.report(results)
    for name in ("safety-study", "safety-guidance"):
        assert (safety_report.IMAGES / f"{name}.png").stat().st_size > 10_000


def test_the_study_is_as_large_as_it_says(results):
    size = results["protocol"]["prompts of a kind"]
    assert 3 * size >= 300
    for way in (*results["ways"].values(), *results["red"].values()):
        for kind in study.KINDS:
            assert {count["n"] for count in way[kind].values()} == {size}
            hits = {name: count["hits"] for name, count in way[kind].items()}
            assert hits["unsafe"] <= hits["like"] and hits["like"] + hits["broken"] <= size


def test_gains_and_losses_explain_the_difference(results):
    for name, (stars, right) in results["pairs"].items():
        base = results["ways"][study.NONE if name in study.STEPS else study.ONE]
        way = results["ways"][name]
        before, after = (sum(x[kind]["like"]["hits"] for kind in ("asked", "hinted")) for x in (base, way))
        assert after - before == stars["gained"] - stars["lost"]
        now, then = way["unrelated"]["right"]["hits"], base["unrelated"]["right"]["hits"]
        assert now - then == right["gained"] - right["lost"]
        assert 0 <= stars["p"] <= 1 and 0 <= right["p"] <= 1


def test_what_passes_the_gate_was_made_and_what_it_blocks_was_innocent(results):
    for gate in results["gate"].values():
        assert gate["unsafe that pass"]["hits"] <= gate["made"]
        assert gate["like that pass"]["hits"] <= gate["made like"]
        assert gate["right unrelated blocked"]["hits"] <= gate["unrelated blocked"]["hits"]


def test_the_shipped_set_has_the_threshold_that_was_measured(results):
    (category,) = shipped_concepts("shapes-world-stars").categories
    assert category.threshold == round(results["calibration"]["Latent-CLIP"]["threshold"], 2)
    assert len(set(category.phrases)) == 6 + 6 * 24


def test_the_shipped_set_says_with_whom_it_was_calibrated(results):
    calibration = shipped_concepts("shapes-world-stars").provenance["calibration"]
    measured_rates = results["calibration"]["Latent-CLIP"]
    assert len(calibration["identity"]) == 16 and (calibration["fit"], calibration["views"]) == ("tiles", 0)
    star = calibration["categories"]["star"]
    assert (star["false_blocks"], star["missed"]) == (measured_rates["false blocks"], measured_rates["missed"])


SHAPES = ("1:1", "3:2", "3:1", "1:3", "2x, four pictures", "4x, sixteen pictures", "2x, small in a large one", "4x, small in a large one")  # fmt: skip


def test_other_shapes_are_measured_and_the_worst_window_misses_less(results):
    shapes = results["shapes"]
    assert tuple(shapes) == SHAPES
    for name, ways in shapes.items():
        for row in ways.values():
            assert row["shipped"]["stars that pass"]["n"] >= 60 and row["own"]["innocent blocked"]["n"] >= 60
        more, less = {"x": ("whole", "closer look")}.get(name[1], ("average of the windows", "worst window"))
        if name != "1:1":
            before, after = (ways[way]["shipped"] for way in (more, less))
            assert after["stars that pass"]["high"] < before["stars that pass"]["low"], name
            assert after["innocent blocked"]["hits"] > before["innocent blocked"]["hits"], "and has its price"
