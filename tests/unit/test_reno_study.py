"""docs/reno-study.md says what studies/reno.json holds, and its counts add up."""

import json
from itertools import pairwise

import pytest

from latent_clip.studies import reno_study as study
from latent_clip.studies.report import measured


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))


def test_the_document_states_the_stored_results(results):
    assert measured(study.DOCUMENT) == study.report(results)
    assert (study.IMAGES / "reno-study.png").stat().st_size > 10_000


def test_the_study_is_as_large_as_it_says(results):
    protocol = results["protocol"]
    assert protocol["prompts"] >= 200 and protocol["seeds"] >= 3
    for row in results["methods"].values():
        assert row["all"]["n"] == protocol["prompts"] * protocol["seeds"]
        assert row["all"]["hits"] == sum(row[kind]["hits"] for kind in study.CATEGORIES)


def test_gains_and_losses_explain_the_difference(results):
    hits = {name: row["all"]["hits"] for name, row in results["methods"].items()}
    for pair in results["pairs"]:
        assert hits[pair["second"]] - hits[pair["first"]] == pair["gained"] - pair["lost"]
        assert 0 <= pair["p"] <= 1 and 0 <= pair["p_by_prompt"] <= 1


def test_a_reward_never_falls_while_it_is_climbed(results):
    for name, run in results["long"].items():
        rewards = [point[name.split(",")[0]] for point in run["curve"].values()]
        assert all(later >= earlier - 1e-4 for earlier, later in pairwise(rewards))
