"""Intervals, paired tests and controls, against what can be counted by hand or simulated."""

import itertools
import math
import time

import numpy as np
import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import Prompt, Score
from latent_clip.evaluation.compare import compare
from latent_clip.evaluation.controls import equal_cost, expected_best, guidance_matched, seconds_of
from latent_clip.evaluation.scoring import Scored
from latent_clip.evaluation.statistics import Rate, mcnemar, mean_over_prompts, paired_difference


def test_interval_holds_the_truth_as_often_as_it_says():
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        estimate = mean_over_prompts([chance.normal(1.0, 1.0, 60)], draws=400)
        held += estimate.low <= 1.0 <= estimate.high
    assert 0.90 <= held / 200 <= 0.99


def test_paired_test_gives_the_exact_permutation_p():
    first, second = np.zeros(8), np.array([1.0, 2, 3, 4, 5, 6, -1, 7])
    sums = [abs(np.dot(signs, second)) for signs in itertools.product([1, -1], repeat=8)]
    exact = np.mean([s >= abs(second.sum()) - 1e-9 for s in sums])
    assert paired_difference(first, second).p == pytest.approx(exact, abs=0.005)
    assert paired_difference(first, first + 0.5).value == 0.5
    same = paired_difference(second, second)
    assert (same.value, same.p) == (0, 1)
    with pytest.raises(ValueError, match="Got 2 and 3 prompts"):
        paired_difference([1, 2], [1, 2, 3])


def test_no_effect_is_rarely_called_one():
    chance = np.random.default_rng(2)
    found = [paired_difference(chance.random(30), chance.random(30), draws=300).p for _ in range(200)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.10


def test_rates_and_mcnemar():
    assert Rate.of([True, True, False, False]).value == 0.5
    assert mcnemar([True] * 5, [False] * 5) == pytest.approx(2 * 0.5**5)
    assert mcnemar([True, False], [True, False]) == 1.0


def scored(arm, values, verdicts=True):
    """values[prompt][picture]."""
    scores = [Score(i, k, float(v)) for i, row in enumerate(values) for k, v in enumerate(row)]
    return Scored(arm, "judge", "", scores, verdicts, False)


PROMPTS = [Prompt(i, f"p{i}", "a" if i < 2 else "b") for i in range(4)]


def test_arms_are_compared_by_prompt():
    found = compare(PROMPTS, scored("x", [[0], [0], [1], [0]]), scored("y", [[1], [1], [1], [1]]))
    assert found.difference.value == 0.75 and found.mcnemar == mcnemar([0, 0, 1, 0], [1, 1, 1, 1])
    assert {task: estimate.value for task, estimate in found.tasks.items()} == {"a": 1.0, "b": 0.5}
    several = compare(PROMPTS, scored("x", [[0, 1]] * 4), scored("y", [[1, 1]] * 4))
    assert several.mcnemar is None, "pictures of one prompt are no independent pairs"
    with pytest.raises(EvaluationError, match="Prompt 3 is scored in one of"):
        compare(PROMPTS, scored("x", [[0]] * 4), scored("y", [[1]] * 3))


def test_best_of_m_is_the_mean_over_all_choices():
    chance = np.random.default_rng(3)
    for _ in range(5):
        liked = chance.integers(0, 4, 6).tolist()  # with ties
        judged = chance.random(6).tolist()
        for m in (1, 2, 3, 6):
            wins = [
                np.mean([judged[i] for i in choice if liked[i] == max(liked[j] for j in choice)])
                for choice in itertools.combinations(range(6), m)
            ]
            by_hand = np.mean(wins)
            found = expected_best(scored("", [liked]).scores, scored("", [judged]).scores, m)[0]
            assert found == pytest.approx(by_hand)
    assert expected_best(scored("", [[1, 2, 3]]).scores, scored("", [[0, 0, 1]]).scores, 2)[0] == pytest.approx(2 / 3)


def test_equal_cost_says_where_it_is_not_equal():
    chooser, judge = scored("plain", [[1, 2], [2, 1]]), scored("plain", [[0, 1], [1, 0]])
    found = equal_cost(2.2, chooser.scores, judge.scores, scored("arm", [[1, 0], [1, 0]]).scores)
    assert (found.m, found.short, found.plain, found.arm) == (2, 0, 1.0, 0.5)
    assert found.difference.value == -0.5
    assert equal_cost(7.6, chooser.scores, judge.scores, judge.scores).short == 6
    with pytest.raises(EvaluationError, match="nothing has an equal cost"):
        equal_cost(math.nan, chooser.scores, judge.scores, judge.scores)


def test_arm_that_only_raised_guidance_gains_nothing_at_equal_contrast():
    """Score and contrast rise with cfg; the 'method' is cfg 3 in disguise."""
    chance = np.random.default_rng(4)
    level = chance.random(40)

    def at(cfg, what):
        return scored("", [[level[i] + cfg * (0.1 if what == "score" else 0.02)] for i in range(40)]).scores

    sweep = {float(cfg): (at(cfg, "contrast"), at(cfg, "score")) for cfg in (1, 2, 4, 8)}
    found = guidance_matched(sweep, at(3, "contrast"), at(3, "score"))
    assert found.cfg == pytest.approx(3) and found.inside and abs(found.difference.value) < 1e-9
    better = scored("", [[s.value + 0.05] for s in at(3, "score")]).scores
    assert guidance_matched(sweep, at(3, "contrast"), better).difference.value == pytest.approx(0.05)
    assert not guidance_matched(sweep, at(20, "contrast"), better).inside
    with pytest.raises(EvaluationError, match="expected at least two"):
        guidance_matched({1.0: sweep[1.0]}, at(1, "contrast"), at(1, "score"))


def test_seconds_are_medians_of_what_servers_say():
    pictures = [{"arm": "a", "seconds": s} for s in (9.0, 1.0, 1.2)] + [{"arm": "b", "seconds": None}]
    found = seconds_of(pictures)
    assert found["a"] == 1.2 and math.isnan(found["b"])


def test_ten_thousand_scores_are_summed_up_within_a_second():
    rows = np.random.default_rng(5).integers(0, 2, (2500, 4))
    first, second = scored("x", rows), scored("y", 1 - rows)
    began = time.process_time()
    compare([Prompt(i, "", "") for i in range(2500)], first, second)
    assert time.process_time() - began < 1.5
