"""How the study of look-ahead counts: two ways put together from three, a gate behind them, and two judges at equal false alarms."""

import json

import pytest

from latent_clip.studies.safety import study
from latent_clip.studies.safety.draft_counts import (
    AHEAD,
    REDIRECT,
    REPORT,
    against,
    combined,
    joined,
    kind_of,
    tally,
    thresholds_of_two,
    two_judges,
)
from latent_clip.studies.safety.protocol import GUIDE, NONE


def run(like, same, scores, **more) -> dict:
    return {
        "unsafe": like,
        "like": like,
        "broken": [False] * 6,
        "right": [True] * 6,
        "same": same,
        "scores": scores,
        **more,
    }


@pytest.fixture
def runs() -> dict:
    """Two asked, two hinted, two innocent pictures. Draft: sees items 0 and 4; watch: items 0, 1 and 5."""
    return {
        NONE: run([True] * 4 + [False] * 2, [True] * 6, [5.0, 5.0, 0.0, 5.0, 0.0, 0.0]),
        GUIDE: run([False, False, True, True, False, False], [False, False, True, True, True, False], [0.0, 0.0, 0.0, 5.0, 0.0, 0.0]),
        AHEAD: run(
            [False, True, True, True, False, False], [False, True, True, True, False, True], [0.0, 5.0, 0.0, 5.0, 0.0, 0.0],
            draft=[True, False, False, False, True, False],
        ),
    }  # fmt: skip


def test_who_is_drafted_and_watched_is_what_either_of_the_two_makes_of_him(runs):
    both = combined(runs)
    assert both[REDIRECT]["like"] == [False, False, True, True, False, False]
    assert both[REDIRECT]["same"] == [False, False, True, True, False, False]
    assert both[REPORT]["like"] == runs[AHEAD]["like"]
    assert both[REPORT]["late"] == [False, True, False, False, False, True]


def test_gate_blocks_by_score_and_what_was_reported(runs):
    rows = tally(runs | combined(runs), 2, gate=1.0)
    hits = {way: {key: value["hits"] for key, value in row.items()} for way, row in rows.items()}
    assert hits[NONE]["like"] == 4 and hits[NONE]["like passes"] == 1 and hits[NONE]["lost"] == 0
    assert hits[GUIDE]["like"] == 2 and hits[GUIDE]["replaced"] == 1
    assert hits[AHEAD]["like"] == 3 and hits[AHEAD]["like passes"] == 1 and hits[AHEAD]["replaced"] == 1
    assert hits[AHEAD]["identical"] == rows[AHEAD]["identical"]["n"] == 1
    assert hits[REPORT]["like passes"] == 1 and hits[REPORT]["lost"] == 2, (
        "of the innocent one is replaced, one reported"
    )


def test_parts_are_joined_in_order(runs):
    twice = joined([runs, runs])
    assert twice[AHEAD]["draft"] == runs[AHEAD]["draft"] * 2 and set(twice) == set(runs)


def test_blocks_of_a_kind_are_found_again(runs):
    parts = [kind_of(runs, kind, 2) for kind in range(3)]
    assert parts[2][AHEAD]["draft"] == [True, False] and joined(parts) == runs


def test_two_judges_run_are_set_against_one_by_picture(runs):
    two = runs[AHEAD] | {"like": [False] * 6, "broken": [True] + [False] * 5, "same": [False] * 4 + [True, True]}
    found = against(runs[AHEAD], two, 2)
    counted = {name: (row["one only"], row["two only"]) for name, row in found.items()}
    assert counted == {"star-like": (3, 0), "unreadable": (0, 1), "innocent replaced": (1, 0)}
    assert found["star-like"]["p"] == 0.25


def test_two_judges_share_the_false_alarms_of_one():
    alarms = [float(number) for number in range(200)]  # the worst six are 3 %, the worst three 1.5 %
    scores = {
        "alarms": {"Latent-CLIP": alarms, "pixel CLIP": alarms},
        "bad": {"Latent-CLIP": [300.0, 0.0, 195.0, 0.0], "pixel CLIP": [0.0, 300.0, 0.0, 0.0]},
        "good": {"Latent-CLIP": [0.0, 0.0], "pixel CLIP": [300.0, 0.0]},
    }
    assert thresholds_of_two(scores) == pytest.approx({"Latent-CLIP": 196.0, "pixel CLIP": 196.0}, abs=0.01)
    plain = {"like": [True] * 4 + [False] * 2, "scores": [9.0, 9.0, 9.0, 0.0, 0.0, 0.0]}
    found = two_judges(scores, plain, gate=1.0)
    one, both = found["Latent-CLIP"], found["either, at half the rate each"]
    assert one["thresholds"] == {"Latent-CLIP": 193.0} and both["thresholds"] == {
        "Latent-CLIP": 196.0,
        "pixel CLIP": 196.0,
    }
    assert (one["suspected"]["hits"], one["like"]["hits"], one["like passes"]["hits"]) == (2, 2, 1)
    assert (both["suspected"]["hits"], both["like"]["hits"], both["innocent suspected"]["hits"]) == (2, 2, 1)


# What was measured


@pytest.fixture(scope="module")
def ahead() -> dict:
    return json.loads(study.RESULTS.read_text(encoding="utf-8"))["ahead"]


def test_drafts_are_judged_by_the_thresholds_of_the_gate(ahead):
    calibration = json.loads(study.RESULTS.read_text(encoding="utf-8"))["calibration"]
    assert ahead["protocol"]["gates"] == {judge: calibration[judge]["threshold"] for judge in ("Latent-CLIP", "red")}
    assert ahead["protocol"]["count"] >= 300


def test_nobody_is_changed_whose_draft_was_let_pass(ahead):
    for ways in (*ahead["stars"].values(), ahead["red"], *ahead["wide"].values()):
        row = ways[AHEAD]
        assert row["identical"]["hits"] == row["identical"]["n"] == row["replaced"]["n"] - row["replaced"]["hits"]
        assert row["like passes"]["hits"] <= row["like"]["hits"] and row["star"]["hits"] <= row["like"]["hits"]


def test_two_judges_that_run_leave_less_than_one_and_no_more_ruins(ahead):
    one, two = ahead["stars"]["euler"][AHEAD], ahead["two judges, run"]
    assert two["like"]["n"] == one["like"]["n"] == 2 * ahead["protocol"]["count"]
    assert two["like"]["hits"] < one["like"]["hits"] and two["unreadable"]["high"] < 0.05
    assert two["identical"]["hits"] == two["identical"]["n"] == two["replaced"]["n"] - two["replaced"]["hits"]


def test_every_way_of_a_sampler_was_given_the_same_prompts(ahead):
    count = ahead["protocol"]["count"]
    for ways in (*ahead["stars"].values(), ahead["red"]):
        assert {(row["like"]["n"], row["replaced"]["n"]) for row in ways.values()} == {(2 * count, count)}


def test_looking_ahead_leaves_less_than_guidance(ahead):
    for ways in (ahead["stars"]["euler"], ahead["red"]):
        assert ways[AHEAD]["like"]["high"] < ways[GUIDE]["like"]["low"]
    both = ahead["judges"]["either, at half the rate each"]
    assert both["like"]["hits"] < ahead["judges"]["Latent-CLIP"]["like"]["hits"] and both["p"] < 0.05
