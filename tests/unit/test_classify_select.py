"""Zero-shot classification as CLIP does it, and keeping the best of a batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from latent_clip.methods.classify import classify, label_directions
from latent_clip.methods.select import keep_best, rank

NAN = float("nan")
TEXTS = ["a cat", "a dog", "art of a cat", "art of a dog"]
VECTORS = dict(zip(TEXTS, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).double() * 3))


def encode_text(texts: list[str]) -> torch.Tensor:
    return torch.stack([VECTORS[text] for text in texts])


def test_directions_average_unit_vectors_over_templates():
    directions = label_directions(encode_text, ["cat", "dog"], ["a {}", "art of a {}"])
    for direction, texts in zip(directions, [("a cat", "art of a cat"), ("a dog", "art of a dog")]):
        first, second = (VECTORS[text] / VECTORS[text].norm() for text in texts)
        mean = (first + second) / 2
        torch.testing.assert_close(direction, mean / mean.norm())


def test_no_template_is_the_label_itself():
    directions = label_directions(encode_text, ["a cat", "a dog"], [])
    torch.testing.assert_close(directions, F.normalize(encode_text(["a cat", "a dog"]), dim=-1))


def test_probabilities_equal_the_formula():
    features = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    directions = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(2)), dim=-1)
    table = classify(features, directions.double(), 20.0)
    for row, feature in zip(table.tolist(), features):
        weights = [math.exp(20 * sum(a * b for a, b in zip(feature.tolist(), d.tolist()))) for d in directions]
        assert row == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-4)
    torch.testing.assert_close(table.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], ["{}"], "Got 0 label"),
        (["a cat"], ["{}"], "Got 1 label.*at least two"),
        (["a cat", "a dog", "a cat"], ["{}"], "a label more than once: a cat"),
        (["a cat", "a dog"], ["{}", "a photo"], "Got the template 'a photo', expected {}"),
    ],
)
def test_wrong_labels_and_templates_are_named(labels, templates, message):
    with pytest.raises(ValueError, match=message):
        label_directions(encode_text, labels, templates)


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ([0.1, 0.3, 0.2], [1, 2, 0]),
        ([1.0, 1.0, 1.0], [0, 1, 2]),
        ([0.0, 2.0, -0.0, 2.0], [1, 3, 0, 2]),
        ([-math.inf, 0.0, math.inf], [2, 1, 0]),
        ([NAN, 0.1, NAN, -math.inf], [1, 3, 0, 2]),
        ([], []),
    ],
)
def test_rank_is_stable(scores, order):
    assert rank(torch.tensor(scores)) == order


@pytest.mark.parametrize(
    ("keep", "threshold", "best", "rest"),
    [
        (1, None, [3], [1, 2, 0]),
        (2, None, [3, 1], [2, 0]),
        (9, None, [3, 1, 2, 0], []),
        (9, 0.5, [3, 1, 2], [0]),
        (2, 0.5, [3, 1], [2, 0]),
        (1, 5.0, [], [3, 1, 2, 0]),
    ],
)
def test_keep_best_splits_the_batch(keep, threshold, best, rest):
    assert keep_best(torch.tensor([0.1, 0.5, 0.5, 0.9]), keep, threshold) == (best, rest)


@pytest.mark.parametrize(
    ("keep", "threshold", "best", "rest"),
    [(1, None, [3], [1, 0, 2]), (9, None, [3, 1], [0, 2]), (9, -math.inf, [3, 1], [0, 2]), (9, 0.6, [3], [1, 0, 2])],
)
def test_what_has_no_score_is_last_and_never_kept(keep, threshold, best, rest):
    assert keep_best(torch.tensor([NAN, 0.5, NAN, 0.9]), keep, threshold) == (best, rest)


def test_threshold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="Got NaN as threshold"):
        keep_best(torch.tensor([0.5]), 1, NAN)


def test_keep_must_be_positive():
    with pytest.raises(ValueError, match="keep = 0, expected at least 1"):
        keep_best(torch.tensor([0.5]), 0)


def test_variety_chooses_among_those_above_the_threshold():
    scores = torch.tensor([1.0, 0.9, 0.5, 0.1, NAN])
    features = F.normalize(torch.tensor([[1.0, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]), dim=-1)
    assert keep_best(scores, 2, None, features, 0.0) == keep_best(scores, 2) == ([0, 1], [2, 3, 4])
    assert keep_best(scores, 2, None, features, 1.0) == ([0, 2], [1, 3, 4])
    assert keep_best(scores, 3, 0.6, features, 9.0) == ([0, 1], [2, 3, 4])
    for wrong in (-1.0, NAN):
        with pytest.raises(ValueError, match="variety"):
            keep_best(scores, 2, None, features, wrong)
