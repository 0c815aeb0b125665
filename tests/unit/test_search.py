"""Schedules of a search: what they cost, cuts as text, and what is refused."""

import pytest

from latent_clip.methods.search import Cut, Plan, cost_of_cuts, cuts_for, parse_cuts, plan_search

TWENTY = (1,) * 20


def test_cuts_that_others_found_best():
    """Held-out best of field data for 20 steps: see the study."""
    assert cuts_for(0.5, 8, 2, TWENTY) == (Cut(4, 5), Cut(7, 3), Cut(12, 2))
    assert cuts_for(0.45, 8, 2, TWENTY) == (Cut(3, 5), Cut(5, 3), Cut(9, 2))


def test_cost_of_cuts_is_counted():
    assert cost_of_cuts(8, (Cut(4, 5), Cut(7, 3), Cut(12, 2)), TWENTY) == 8 * 4 + 5 * 3 + 3 * 5 + 2 * 8
    # at a step of two evaluations the cut comes between them
    assert cost_of_cuts(8, (Cut(1, 2),), (2, 2, 1)) == 8 + 2 + 4 + 2


@pytest.mark.parametrize("look", ["drafts", "cuts", "both"])
@pytest.mark.parametrize("steps", [8, 16, 20, 30, 50])
@pytest.mark.parametrize(("candidates", "keep"), [(8, 1), (8, 2), (16, 2), (16, 4), (64, 4)])
@pytest.mark.parametrize("budget", [0.35, 0.5, 0.65, 0.9])
def test_plan_keeps_its_budget_where_one_of_use_can(look, steps, candidates, keep, budget):
    plan = plan_search(look, candidates, keep, (1,) * steps, budget)
    cheapest = plan_search(look, candidates, keep, (1,) * steps, 0.01)
    assert plan.cost <= max(budget * plan.plain, cheapest.cost)
    assert plan.cost > (budget - 0.2) * plan.plain or look == "cuts"
    quotas = [plan.candidates, *(cut.keep for cut in plan.cuts)]
    assert quotas == sorted(quotas, reverse=True)
    steps_of_cuts = [cut.step for cut in plan.cuts]
    assert steps_of_cuts == sorted(set(steps_of_cuts)) and all(0 < step < steps for step in steps_of_cuts)
    assert (plan.cuts[-1].keep if plan.cuts else plan.sampled) == keep


def test_drafts_of_a_sampler_that_asks_twice_may_take_more_steps():
    once, twice = (plan_search("drafts", 8, 2, asked, 0.5) for asked in (TWENTY, (2,) * 19 + (1,)))
    assert (once.draft_steps, twice.draft_steps) == (5, 9)
    assert twice.plain == 8 * 39


def test_budget_that_pays_for_no_draft_gets_the_shortest_of_use():
    plan = plan_search("drafts", 8, 2, (1,) * 8, 0.5)
    assert (plan.draft_steps, plan.cost, plan.plain) == (3, 8 * 3 + 2 * 8, 64)


def test_cuts_as_text():
    cuts = (Cut(4, 6), Cut(8, 3))
    for text in ("20% → 6, 40% → 3", "20%->6;40% -> 3", " 20 % => 6\n40%→3\n".replace("20 %", "20%")):
        assert parse_cuts(text, 20, 8, 2) == cuts
    assert parse_cuts("", 20, 8, 2) == parse_cuts(" , ", 20, 8, 2) == ()
    assert plan_search("cuts", 8, 2, TWENTY, 0.5, cuts="20% → 6, 40% → 3").cuts == cuts
    both = plan_search("both", 8, 2, TWENTY, 0.6, cuts="50% → 2")
    assert both.sampled == 3 and both.cuts == (Cut(10, 2),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("20%", "expected such as"),
        ("20 → 6", "expected such as"),
        ("20% → six", "expected such as"),
        ("20% → 6 → 3", "expected such as"),
        ("0% → 6", "outside"),
        ("120% → 6", "outside"),
        ("99% → 6", "at most 95%"),
        ("40% → 6, 20% → 3", "early to late"),
        ("20% → 6, 21% → 3", "step of its own"),
        ("20% → 3, 40% → 6", "fewer than 3"),
        ("20% → 8", "fewer than 8"),
        ("20% → 1", "at least 2"),
    ],
)
def test_cuts_that_are_none(text, says):
    with pytest.raises(ValueError, match=says):
        parse_cuts(text, 20, 8, 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"candidates": 1}, "at least 2"),
        ({"keep": 8}, "1 to 7"),
        ({"keep": 0}, "1 to 7"),
        ({"keep": 9}, "1 to 7"),
        ({"budget": 0.0}, "budget"),
        ({"budget": 1.0}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"draft_steps": -1}, "draft_steps"),
        ({"evaluations": (1,)}, "Select Best Latents"),
        ({"evaluations": ()}, "Select Best Latents"),
        ({"evaluations": (1,) * 4}, "would save nothing"),
        ({"draft_steps": 15}, "would save nothing"),
        ({"look": "twice"}, "drafts, cuts or both"),
    ],
)
def test_search_that_is_none(wrong, says):
    settings = {"look": "drafts", "candidates": 8, "keep": 2, "evaluations": TWENTY, "budget": 0.5}
    with pytest.raises(ValueError, match=says):
        plan_search(**{**settings, **wrong})


def test_four_steps_can_be_cut():
    plan = plan_search("cuts", 8, 2, (1,) * 4, 0.6)
    assert plan.cuts == (Cut(1, 5), Cut(3, 2)) or plan.cost <= 0.6 * plan.plain


def test_plan_counts_drafts_and_sampling():
    assert Plan(8, 2, TWENTY, 4, 2).cost == 8 * 4 + 2 * 20
