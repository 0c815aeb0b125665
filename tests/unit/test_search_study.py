"""docs/search-study.md says what studies/search.json holds, and its counts hang together."""

import json

import pytest

from latent_clip.methods.search import plan_search
from latent_clip.studies import search_study as study
from latent_clip.studies.report import measured


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))


def test_the_document_states_the_stored_results(results):
    assert measured(study.DOCUMENT) == study.report(results)
    assert study.DOCUMENT.read_text(encoding="utf-8").startswith(study.INTRODUCTION)
    assert (study.IMAGES / "search-study.png").stat().st_size > 10_000


def test_the_study_is_as_large_as_it_says(results):
    assert results["prompts"] >= 200 and results["of"] == max(study.SIZES)


def test_no_schedule_costs_more_than_its_budget(results):
    assert all(row["cost"] <= row["budget"] + 1e-9 for row in results["rows"])


def test_the_defaults_of_the_node_are_those_that_the_study_supports(results):
    for of in study.SIZES:
        plan = plan_search("drafts", of, 2, (1,) * results["steps"], 0.5)
        (row,) = [
            row for row in results["rows"]
            if (row["judge"], row["of"], row["budget"], row["kind"]) == (study.LATENT, of, 0.5, "the node's drafts")
        ]  # fmt: skip
        assert row["cost"] == pytest.approx(plan.cost / plan.plain)
        assert row["over equal"][1] > 0  # above fewer seeds at equal cost with its whole interval
        assert row["g"][0] >= 0.95
