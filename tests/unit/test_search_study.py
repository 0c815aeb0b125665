"""The defaults of Search Best Images rest on the search study."""

import json

import pytest

from latent_clip.methods.search import plan_search
from latent_clip.studies.search import study


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))





def test_defaults_of_the_node_are_those_that_the_study_supports(results):
    for of in study.SIZES:
        plan = plan_search("drafts", of, 2, (1,) * results["steps"], 0.5)
        (row,) = [
            row for row in results["rows"]
            if (row["judge"], row["of"], row["budget"], row["kind"]) == (study.LATENT, of, 0.5, "the node's drafts")
        ]  # fmt: skip
        assert row["cost"] == pytest.approx(plan.cost / plan.plain)
        assert row["over equal"][1] > 0  # above fewer seeds at equal cost with its whole interval
        assert row["g"][0] >= 0.95
