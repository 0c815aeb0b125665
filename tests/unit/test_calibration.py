"""methods.calibration: thresholds, ROC and exact intervals, against scipy and by hand."""

import math
import random
import re

import pytest
from scipy.stats import binomtest

from latent_clip.methods.calibration import (
    auc,
    auc_interval,
    calibrate,
    exact_interval,
    least_provable_rate,
    roc,
)


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 100), (3, 100), (97, 100), (50, 100), (1, 3000), (3000, 3000)]
)
def test_interval_is_scipys(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="exact")
    assert exact_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_count_is_refused(hits, n):
    with pytest.raises(ValueError, match="expected 0 ≤ hits ≤ n"):
        exact_interval(hits, n)


def test_too_few_images_prove_little():
    assert least_provable_rate(100) == pytest.approx(0.0295, abs=1e-4)
    assert least_provable_rate(3000) * 3000 == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(("rate", "blocked"), [(0, 0), (0.009, 0), (0.01, 1), (0.29, 29), (0.99, 99)])
def test_threshold_blocks_what_it_may_and_no_more(rate, blocked):
    scores = [float(i) for i in range(100)]
    random.Random(0).shuffle(scores)
    found = calibrate(scores, [200.0, 50.0], rate)
    assert found.false_blocks.hits == blocked
    assert calibrate(scores, scores, rate).missed.hits == 100 - blocked


def test_equal_scores_all_pass_when_not_all_of_them_may_be_blocked():
    found = calibrate([1.0, 1.0, 1.0, 0.0], [1.0, 2.0], 0.25)
    assert found.false_blocks.hits == 0
    assert found.missed.hits == 1


def test_interval_holds_for_the_whole_world_though_the_threshold_was_chosen_on_the_sample():
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


def test_roc_curve_starts_with_nothing_and_ends_with_everything_blocked():
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


@pytest.mark.parametrize(("shift", "true"), [(0.0, 0.5), (1.19, 0.8), (2.33, 0.95)])
@pytest.mark.parametrize("n", [10, 40])
def test_interval_of_an_area_holds_the_true_one(shift, true, n):
    """Two normal distributions so far apart have this area: Φ(shift / √2)."""
    rng, held = random.Random(2), 0
    for _ in range(300):
        area = auc([rng.gauss(0, 1) for _ in range(n)], [rng.gauss(shift, 1) for _ in range(n)])
        low, high = auc_interval(area, n, n)
        held += low <= true <= high
    assert held >= 0.92 * 300


def test_perfect_area_of_few_images_is_not_certain():
    assert auc_interval(1.0, 3, 3)[1] == 1
    assert auc_interval(1.0, 3, 3)[0] < 0.6
    assert auc_interval(1.0, 300, 300)[0] > 0.98
    assert auc_interval(0.5, 30, 30)[0] + auc_interval(0.5, 30, 30)[1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("allowed", "unwanted", "doubt"),
    [
        (range(100), range(100), "cannot tell the two folders apart.*chance"),
        (range(100), range(-100, 0), "the folders are swapped"),
        (range(2), range(2, 4), "cannot tell the two folders apart"),
        (range(19), range(100, 200), "only 19 images of one kind"),
        (range(100), range(100, 200), "^$"),
    ],
)
def test_judge_that_is_worth_nothing_is_doubted(allowed, unwanted, doubt):
    assert re.search(doubt, calibrate([*map(float, allowed)], [*map(float, unwanted)], 0.1).doubt)
