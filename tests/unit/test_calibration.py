"""methods.calibration: thresholds, ROC and exact intervals, against scipy and by hand."""

import math
import random

import pytest
from scipy.stats import binomtest

from latent_clip_pack.methods.calibration import auc, calibrate, exact_interval, least_provable_rate, roc


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 100), (3, 100), (97, 100), (50, 100), (1, 3000), (3000, 3000)]
)
def test_the_interval_is_scipys(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="exact")
    assert exact_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(hits, n):
    with pytest.raises(ValueError, match="expected 0 ≤ hits ≤ n"):
        exact_interval(hits, n)


def test_too_few_images_prove_little():
    assert least_provable_rate(100) == pytest.approx(0.0295, abs=1e-4)
    assert least_provable_rate(3000) * 3000 == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(("rate", "blocked"), [(0, 0), (0.009, 0), (0.01, 1), (0.29, 29), (0.99, 99)])
def test_the_threshold_blocks_what_it_may_and_no_more(rate, blocked):
    scores = [float(i) for i in range(100)]
    random.Random(0).shuffle(scores)
    found = calibrate(scores, [200.0, 50.0], rate)
    assert found.false_blocks.hits == blocked
    assert calibrate(scores, scores, rate).missed.hits == 100 - blocked


def test_equal_scores_all_pass_when_not_all_of_them_may_be_blocked():
    found = calibrate([1.0, 1.0, 1.0, 0.0], [1.0, 2.0], 0.25)
    assert found.false_blocks.hits == 0
    assert found.missed.hits == 1


def test_the_interval_holds_for_the_whole_world_though_the_threshold_was_chosen_on_the_sample():
    rng, held = random.Random(1), 0
    for _ in range(400):
        found = calibrate([rng.random() for _ in range(200)], [1.0], 0.02)
        held += 1 - found.threshold <= found.false_blocks.interval[1]  # of uniform scores, so many are blocked
    assert held >= 0.95 * 400


@pytest.mark.parametrize(
    ("allowed", "unwanted", "area"), [([0, 1], [2, 3], 1), ([2, 3], [0, 1], 0), ([1], [1], 0.5), ([0, 2], [1], 0.5)]
)
def test_auc_counts_the_pairs_in_order(allowed, unwanted, area):
    assert auc(allowed, unwanted) == area


def test_the_roc_curve_starts_with_nothing_and_ends_with_everything_blocked():
    points = roc([0.0, 1.0, 1.0], [1.0, 2.0])
    assert points == [(math.inf, 0, 0), (2.0, 0, 0.5), (1.0, 2 / 3, 1), (0.0, 1, 1)]


@pytest.mark.parametrize(
    ("allowed", "unwanted", "rate", "message"),
    [
        ([], [1.0], 0.1, "no allowed images"),
        ([1.0], [], 0.1, "no unwanted images"),
        ([math.nan], [1.0], 0.1, "no finite number"),
        ([1.0], [1.0], 1.0, "expected 0 to below 1"),
        ([1.0], [1.0], math.nan, "expected 0 to below 1"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(allowed, unwanted, rate, message):
    with pytest.raises(ValueError, match=message):
        calibrate(allowed, unwanted, rate)
