"""Random views of latents, and ReNO that climbs them."""

import math

import pytest
import torch

from latent_clip.methods.augmentations import Augmentations
from latent_clip.methods.reno import RenoSettings, optimize_noise
from latent_clip.methods.rewards import Reward, Term
from latent_clip.tests.unit.test_reno import Flat, make_generator, make_reward, noise


def latents(batch: int = 3) -> torch.Tensor:
    return 7 * noise(batch)


def test_view_is_the_picture_moved_with_its_edge_repeated():
    picture = torch.arange(64.0).view(1, 1, 8, 8)
    seen = {tuple(Augmentations(0.125, 0)(picture, index).flatten().tolist()) for index in range(60)}
    padded = torch.nn.functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    moved = {tuple(padded[..., a : a + 8, b : b + 8].flatten().tolist()) for a in range(3) for b in range(3)}
    assert seen == moved


def test_noise_is_in_proportion_to_each_items_own_spread():
    x = latents() * torch.tensor([1.0, 0.1, 3.0]).view(3, 1, 1, 1)
    added = Augmentations(0, 0.13)(x, 4) - x
    assert (added.flatten(1).std(1) / x.flatten(1).std(1)).tolist() == pytest.approx([0.13] * 3, rel=0.1)


def test_same_number_is_the_same_view_and_an_item_is_seen_as_alone():
    views, x = Augmentations(), latents()
    assert torch.equal(views(x, 3), views(x, 3))
    assert not torch.equal(views(x, 3), views(x, 4))
    assert not torch.equal(views(x, 3), Augmentations(seed=1)(x, 3))
    assert torch.allclose(views(x, 3)[1:2], views(x[1:2], 3))


def test_view_without_shift_and_noise_is_the_latent():
    assert torch.equal(Augmentations(0, 0)(latents(), 5), latents())


@pytest.mark.parametrize(
    "change", [{"shift": -0.1}, {"shift": 0.6}, {"noise": -1}, {"noise": math.inf}, {"shift": math.nan}]
)
def test_views_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=r"Got the augmentations' .* expected 0"):
        Augmentations(**change)


def test_first_step_follows_the_gradient_of_the_view():
    """By hand: z − lr · clip(∇(−R(view(G(z)))) + prior), and Nesterov's first step is 1.9 of that."""
    start, generator, reward, views = noise(1), make_generator(), make_reward(), Augmentations(seed=3)
    z = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-reward(views(generator(z, [0]), 0)).sum(), z)
    gradient = gradient + 0.01 * (1 - (start.numel() - 1) / start.norm() ** 2) * start
    step = 1.9 * 5.0 * gradient * min(1.0, 0.1 / (gradient.norm().item() + 1e-6))
    seen = []

    def generate(z, items):
        seen.append(z.detach().clone())
        return generator(z, items)

    optimize_noise(generate, reward, start, RenoSettings(iterations=2, views=views))
    assert torch.allclose(seen[1], start - step, atol=1e-5)


def test_what_is_reported_and_kept_is_judged_on_the_latents_themselves():
    start, reward = noise(3), make_reward()
    state = optimize_noise(make_generator(), reward, start, RenoSettings(iterations=12, views=Augmentations(noise=0.5)))
    assert torch.allclose(reward(state.latents), state.rewards, atol=1e-5)
    assert (state.rewards >= reward(make_generator()(start, []))).all()
    for item in range(3):
        values = [iteration.rewards[item] for iteration in state.iterations]
        assert state.rewards[item].item() == max(values) and state.best_iteration[item] == values.index(max(values))
        assert all(iteration.terms.keys() == {"cosine", "size"} for iteration in state.iterations)


def test_batch_seen_in_views_is_as_many_single_runs():
    settings = RenoSettings(iterations=8, views=Augmentations())
    together = optimize_noise(make_generator(), make_reward(), noise(3), settings)
    for i in range(3):
        alone = optimize_noise(make_generator(), make_reward(), noise(3)[i : i + 1], settings)
        assert torch.allclose(together.noise[i], alone.noise[0], atol=1e-5)


# ----------------------------------------------------------------------------------------------------- watched


def peak(at: float) -> Reward:
    """Highest where the mean of the latent's square is `at`."""
    return Reward((Term("peak", Flat(), lambda f: -(f.square().mean(1) - at).abs()),))


def growing() -> Reward:
    """The latent's size, which a climb raises for ever."""
    return Reward((Term("size", Flat(), lambda f: f.square().mean(1)),))


def identity(z, items):
    return z * 1.0


FAST = {"learning_rate": 20.0, "prior_weight": 0.0}


def test_watch_changes_nothing_but_is_reported():
    settings = RenoSettings(iterations=9)
    plain = optimize_noise(make_generator(), make_reward(), noise(2), settings)
    state = optimize_noise(make_generator(), make_reward(), noise(2), settings, validation=make_reward(5))
    assert torch.equal(plain.noise, state.noise) and plain.best_iteration == state.best_iteration
    assert [i.rewards for i in plain.iterations] == [i.rewards for i in state.iterations]
    assert all(len(i.validation) == 2 for i in state.iterations) and not any(i.validation for i in plain.iterations)
    first = make_reward(5)(state.first_latents)
    assert state.iterations[0].validation == pytest.approx(first.tolist(), abs=1e-6)


def test_watch_that_keeps_has_the_last_word_on_what_is_best():
    watch = peak(2.0)
    state = optimize_noise(
        identity, growing(), noise(2), RenoSettings(iterations=30, watch_keeps=True, **FAST), validation=watch
    )
    for item in range(2):
        values = [iteration.validation[item] for iteration in state.iterations]
        assert 0 < state.best_iteration[item] == values.index(max(values)) < 29
        assert state.values[item].item() == max(values)
        assert state.rewards[item].item() == state.iterations[state.best_iteration[item]].rewards[item]
    assert torch.allclose(watch(state.latents), state.values)


def test_watch_that_keeps_never_keeps_what_the_reward_likes_less_than_the_first():
    """The watch likes a smaller latent, the reward a larger one: the first, which is the only one of its size, stays."""
    state = optimize_noise(
        identity, growing(), noise(2), RenoSettings(iterations=8, watch_keeps=True, **FAST), validation=peak(0.0)
    )
    assert state.best_iteration == [0, 0] and torch.equal(state.latents, state.first_latents)


def test_patience_counts_the_watch():
    """The reward rises all the time; the item ends three evaluations after the watch was highest."""
    state = optimize_noise(
        identity, growing(), noise(1), RenoSettings(iterations=90, patience=3, **FAST), validation=peak(2.0)
    )
    watched = [iteration.validation[0] for iteration in state.iterations]
    assert state.stop_reasons == ["watch turned down"]
    assert len(watched) == watched.index(max(watched)) + 4 < 90
    assert state.best_iteration == [len(watched) - 1]  # by the reward, which nobody told to step back


@pytest.mark.parametrize("item", [0, 1])
def test_item_that_the_watch_cannot_judge_keeps_its_first_latents(item):
    def head(features):
        values = features.square().mean(1)
        broken = torch.zeros(2)
        broken[item] = torch.nan
        return values + broken

    watch = Reward((Term("half", Flat(), head),))
    state = optimize_noise(
        identity, growing(), noise(2), RenoSettings(iterations=5, watch_keeps=True, **FAST), validation=watch
    )
    assert torch.equal(state.latents[item], state.first_latents[item]) and state.best_iteration[item] == 0
    assert state.best_iteration[1 - item] == 4


def test_watch_that_can_judge_nothing_is_named():
    broken = Reward((Term("nan", Flat(), lambda f: f.sum(1) * torch.nan),))
    with pytest.raises(ValueError, match="The validation reward is NaN or infinite for every item"):
        optimize_noise(identity, growing(), noise(2), RenoSettings(iterations=3, watch_keeps=True), validation=broken)
    state = optimize_noise(identity, growing(), noise(2), RenoSettings(iterations=3), validation=broken)
    assert state.stop_reasons == ["iterations"] * 2  # it only watches: the run is none the worse


def test_to_keep_by_a_watch_there_must_be_one():
    with pytest.raises(ValueError, match="watch_keeps without a validation reward"):
        optimize_noise(identity, growing(), noise(1), RenoSettings(watch_keeps=True))
