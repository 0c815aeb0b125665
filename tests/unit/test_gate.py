"""The verdict: nothing passes but finite numbers below finite thresholds."""

import math

import pytest
import torch

from latent_clip.methods.gate import blurred, extra_views, reasons_to_block

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("row", "thresholds", "passes"),
    [
        ([-1.0, 0.5], [0.0, 1.0], True),
        ([0.0, 0.5], [0.0, 1.0], False),
        ([-1.0, 1.0], [0.0, 1.0], False),
        ([NAN, -9.0], [0.0, 1.0], False),
        ([-INF, -9.0], [0.0, 1.0], False),
        ([INF, -9.0], [0.0, 1.0], False),
        ([-1.0, -9.0], [NAN, 1.0], False),
        ([-1.0, -9.0], [INF, 1.0], False),
        ([-1.0, -9.0], [1.0], False),
        ([-1.0], [0.0, 1.0], False),
    ],
)
def test_what_passes(row, thresholds, passes):
    (reason,) = reasons_to_block(torch.tensor([row]), ["a", "b"], thresholds)
    assert (reason == "") == passes


def test_without_categories_nothing_passes():
    assert all(reasons_to_block(torch.zeros(3, 0), [], []))


def test_the_worst_category_is_named_first():
    (reason,) = reasons_to_block(torch.tensor([[1.0, 5.0, -3.0]]), ["a", "b", "c"], [0.0, 0.0, 0.0])
    assert reason.index("b:") < reason.index("a:") and "c" not in reason


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (128, 96), (1, 1), (5, 300)])
def test_a_blur_keeps_only_the_coarsest_colours(size):
    x = torch.randn(2, 4, *size)
    hidden = blurred(x)
    assert hidden.shape == x.shape
    cells = [max(1, side // 32) for side in size]
    fine = hidden - torch.nn.functional.interpolate(
        torch.nn.functional.adaptive_avg_pool2d(hidden, [2 * c for c in cells]), size, mode="bilinear"
    )
    assert fine.std() < 0.05 * x.std() or x[0, 0].numel() == 1


def test_views_are_repeatable_and_near():
    x = torch.randn(2, 4, 16, 16)
    views = extra_views(x, 7)
    assert views.shape == (7, 2, 4, 16, 16) and torch.equal(views, extra_views(x, 7))
    assert not torch.equal(views[0], x) and (views[0] - x).std() < 0.2 * x.std()
    assert torch.corrcoef(torch.stack([views[1, 0, 0, :-1].flatten(), x[0, 0, 1:].flatten()]))[0, 1] > 0.95
