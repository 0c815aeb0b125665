"""Guidance as mathematics: zero for the innocent, bounded for the others, per item; and the avoid reward's hinge."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from latent_clip.methods.concepts import ConceptDirections
from latent_clip.methods.features import WindowFeatures
from latent_clip.methods.guidance import AvoidConcepts, ClimbReward, ConceptMonitor, GuidanceSettings, correction
from latent_clip.methods.rewards import Reward, Term, avoid_reward
from latent_clip.models.latent_spaces import LATENT_SPACES


@dataclass(frozen=True)
class FirstCells:
    """The first eight numbers of a latent as unit features."""

    space, reads_clips = LATENT_SPACES["sdxl"], False

    def __call__(self, raw_latents, noise_level=None):
        return F.normalize(raw_latents.flatten(1)[:, :8], dim=-1)

    @property
    def plain(self):
        return self

    def encode_windows(self, raw_latents, noise_level=None):
        return WindowFeatures(self(raw_latents), self(raw_latents).unsqueeze(1))


AXES = torch.eye(8)
CONCEPTS = ConceptDirections(("x", "y"), (1.0, 1.0), (AXES[:1], AXES[1:2]), AXES[7:], logit_scale=10.0)
"""A latent along the first axis shows x, along the second y, along the last neither."""


def latents(*axes: int) -> torch.Tensor:
    made = 0.01 * torch.randn(len(axes), 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for item, axis in enumerate(axes):
        made[item].view(-1)[axis] += 3
    return made


def same(x):
    return x


def test_avoid_reward_is_exactly_zero_below_its_threshold():
    x = latents(7, 0, 1).requires_grad_()
    reward = avoid_reward(FirstCells(), CONCEPTS)
    values = reward.evaluate(x)
    total = reward.weigh(values)
    (gradient,) = torch.autograd.grad(total.sum(), x)
    assert list(values) == ["avoid: x", "avoid: y"]
    assert total[0] == 0 and not gradient[0].any()
    assert (total[1:] < -5).all() and gradient[1].any() and gradient[2].any()
    scores = CONCEPTS.score(FirstCells()(x))
    torch.testing.assert_close(total, -(scores - 1).relu().sum(1))


def test_innocent_items_need_no_correction():
    assert correction(
        AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), latents(7, 7), same, 1.0, GuidanceSettings()
    ) == (
        None,
        None,
    )


def test_correction_leaves_innocent_items_of_a_batch_alone():
    change, _ = correction(
        AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), latents(7, 0), same, 1.0, GuidanceSettings()
    )
    assert not change[0].any() and change[1].any()


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("noise_level", [1.0, 0.25])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_correction_has_the_size_that_was_asked_for(strength, noise_level, scale):
    settings, x = GuidanceSettings(strength), latents(0, 1)
    reward = ClimbReward(Reward((Term("t", FirstCells(), lambda f: scale * f[:, 2]),)))
    change, _ = correction(reward, x, same, noise_level, settings)
    rms = change.square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(rms, torch.full((2,), strength * noise_level), rtol=1e-5, atol=0)
    assert (reward(x + 1e-3 * change)[0] > reward(x)[0]).all()


def test_suspect_is_steered_to_the_end_and_only_from_what_it_showed():
    objective = AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS))
    objective.start()
    first, _ = correction(objective, latents(0, 7), same, 1.0, GuidanceSettings())
    later, _ = correction(objective, latents(7, 7), same, 1.0, GuidanceSettings())
    assert first[0].any() and later[0].any() and not later[1].any()
    features = FirstCells()(latents(7, 7) + 0.05 * later)
    assert (CONCEPTS.score(features) - CONCEPTS.score(FirstCells()(latents(7, 7))))[0, 0] < 0
    objective.start()
    assert correction(objective, latents(7, 7), same, 1.0, GuidanceSettings())[0] is None


def test_every_item_of_a_batch_gets_what_it_would_get_alone():
    x, settings = latents(0, 1, 7), GuidanceSettings(0.7)
    together, _ = correction(AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), x, same, 1.0, settings)
    for item in range(3):
        alone, _ = correction(
            AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), x[item : item + 1], same, 1.0, settings
        )
        torch.testing.assert_close(together[item], torch.zeros(4, 4, 4) if alone is None else alone[0])


def test_gradient_passes_through_the_way_to_raw_latents():
    x = latents(0)
    change, _ = correction(
        AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), x / 7, lambda z: 7 * z, 1.0, GuidanceSettings()
    )
    plain, _ = correction(AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), x, same, 1.0, GuidanceSettings())
    torch.testing.assert_close(change, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_item_is_left_alone_and_the_others_go_on(bad):
    x = latents(0, 0)
    x[0, 0, 0, 0] = bad
    change, _ = correction(AvoidConcepts(ConceptMonitor(FirstCells(), CONCEPTS)), x, same, 1.0, GuidanceSettings())
    assert not change[0].any() and change[1].any() and change.isfinite().all()


def test_momentum_keeps_the_bound():
    objective, settings = ClimbReward(Reward((Term("t", FirstCells(), lambda f: f[:, 2]),))), GuidanceSettings(1.0, 0.9)
    direction = None
    for seed in range(5):
        x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
        change, direction = correction(objective, x, same, 1.0, settings, direction)
        assert (change.square().flatten(1).mean(1).sqrt() <= 1 + 1e-5).all()


@pytest.mark.parametrize("wrong", [{"strength": -1}, {"strength": float("nan")}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="expected"):
        GuidanceSettings(**wrong)
