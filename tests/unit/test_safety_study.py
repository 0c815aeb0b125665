"""The shipped thresholds and claims rest on the safety study."""

import json

import pytest

from latent_clip.models.concepts import shipped_concepts
from latent_clip.studies.safety import study


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))






def test_shipped_set_has_the_threshold_that_was_measured(results):
    (category,) = shipped_concepts("shapes-world-stars").categories
    assert category.threshold == round(results["calibration"]["Latent-CLIP"]["threshold"], 2)
    assert len(set(category.phrases)) == 6 + 6 * 24


def test_shipped_set_says_with_whom_it_was_calibrated(results):
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
