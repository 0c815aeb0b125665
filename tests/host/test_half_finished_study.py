"""The study of half-finished images keeps apart what is learnt from and what is measured with, and has one rule for thresholds."""

import importlib

import pytest
import torch

pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def study(host_env):
    return lambda name: importlib.import_module(f"{host_env.pack.__name__}.studies.{name}")


def test_no_caption_of_two_things_is_both_learnt_from_and_measured_with(study):
    learnt = set(study("half_finished").prompts_to_learn("a test", 300))
    assert len(learnt) > 250
    fresh = study("half_finished_uses").fresh_prompts
    for kind, forbidden in (("hinted", 1), ("unrelated", 0)):
        captions = fresh("a test", 60, kind)
        assert len(captions) == 60
        assert all(sum(thing.kind == "star" for thing in caption.things) == forbidden for caption in captions)
        assert not learnt & {str(caption) for caption in captions if caption.category != "single"}
    assert {str(caption) for caption in fresh("a test", 12, "asked")} == {f"{a} star" for a in (
        "a red", "an orange", "a yellow", "a green", "a blue", "a purple")}  # fmt: skip


def test_a_threshold_is_the_lowest_that_suspects_no_larger_share(study):
    uses = study("half_finished_uses")
    scores = torch.linspace(-5, 4.98, 500)
    limit = uses.lowest_threshold(scores, 0.01)
    assert (scores > limit).sum() <= 5 < (scores > limit - 0.2).sum()


def test_a_schedule_of_cuts_looks_through_its_own_tower(study):
    """The best candidate is only seen by one of them after the first step: g is 1 for it, and less for the other."""
    uses, search = study("half_finished_uses"), study("search_study")
    generator = torch.Generator().manual_seed(0)
    final = torch.rand(30, uses.CANDIDATES, generator=generator)
    blind = torch.rand(30, uses.CANDIDATES, search.STEPS, generator=generator)
    kept = {
        "final": final.tolist(), "drafts": {str(d): torch.rand(30, uses.CANDIDATES, generator=generator).tolist() for d in search.DRAFTS},
        uses.SHIPPED: blind.tolist(), uses.AWARE: final[..., None].expand(-1, -1, search.STEPS).tolist(),
    }  # fmt: skip
    rows = {
        row["looks at"]: row
        for row in uses.compare(uses.looked(kept), uses.looked(kept))
        if row["budget"] == search.BUDGETS[0]
    }
    assert rows["cuts, aware"]["g"][0] == pytest.approx(1) and rows["cuts, shipped"]["g"][0] < 0.9
    assert rows["cuts, aware"]["over shipped cuts"][1] > 0 and rows["cuts, shipped"]["over shipped cuts"][0] == 0
    assert uses.correlations(uses.looked(kept))["aware"][0] == pytest.approx(1)
