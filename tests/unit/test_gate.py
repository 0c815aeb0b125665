"""The verdict: nothing passes but finite numbers below finite thresholds."""

import math

import pytest
import torch

from latent_clip.methods.features import WindowFeatures
from latent_clip.methods.gate import Flags, blurred, extra_views, reasons_to_block_clips
from latent_clip.methods.guidance import ConceptMonitor

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
    flags = Flags(torch.tensor([row]), ["a", "b"], thresholds)
    assert flags.reasons[0] == "" if passes else flags.reasons[0]
    assert bool(flags.categories.any()) != passes


def test_without_categories_nothing_passes():
    flags = Flags(torch.zeros(3, 0), [], [])
    assert all(flags.reasons) and flags.categories.any(dim=1).all()


def test_worst_category_is_named_first():
    (reason,) = Flags(torch.tensor([[1.0, 5.0, -3.0]]), ["a", "b", "c"], [0.0, 0.0, 0.0]).reasons
    assert reason.index("b:") < reason.index("a:") and "c" not in reason


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (128, 96), (1, 1), (5, 300)])
def test_blur_keeps_only_the_coarsest_colours(size):
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


@pytest.mark.parametrize("score", [-INF, -1.0, 0.0, 1.0, INF, NAN])
def test_drafts_monitor_and_gate_flag_by_one_rule(score):
    """The monitor's verdict in mid-sampling is the gate's, at the threshold itself and for numbers that are none."""
    monitor = ConceptMonitor(Encoder(), Scores(score))
    flags = monitor.check(torch.zeros(2, 4, 8, 8))
    reasons, _ = reasons_to_block_clips(torch.full((2, 1, 1), score), ["a"], [0.0])
    assert [bool(reason) for reason in flags.reasons] == [bool(reason) for reason in reasons]
    assert monitor.flagged.flatten().tolist() == [bool(reason) for reason in reasons] == [score not in (-1.0,)] * 2
    assert monitor.flagged_items(2) == ([] if score == -1.0 else [0, 1]) and monitor.flagged_items(3) == []


def test_flagged_image_stays_flagged_until_sampling_ends():
    concepts = Scores(1.0)
    monitor = ConceptMonitor(Encoder(), concepts)
    monitor.check(torch.zeros(1, 4, 8, 8))
    concepts.score = -1.0
    assert monitor.check(torch.zeros(1, 4, 8, 8)).reasons == [""] and monitor.flagged_items(1) == [0]
    monitor.start()
    monitor.check(torch.zeros(1, 4, 8, 8))
    assert monitor.flagged_items(1) == []


class Scores:
    """A concept whose score does not depend on the image."""

    names, thresholds = ("a",), (0.0,)

    def __init__(self, score: float):
        self.score = score

    def worst(self, windows):
        return torch.full((len(windows), 1), self.score)


class Encoder:
    reads_clips = False

    def encode_windows(self, raw_latents, noise_level=None):
        features = torch.zeros(len(raw_latents), 8)
        return WindowFeatures(features, features[:, None])
