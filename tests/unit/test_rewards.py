"""Rewards are weighted terms on shared encoders, and they refuse latents that they cannot read."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from latent_clip.methods.concepts import ConceptDirections
from latent_clip.methods.features import average_unit, encode_latents, encode_windows
from latent_clip.methods.rewards import Reward, Term, avoid_reward, combine, latent_reward, text_reward
from latent_clip.models.latent_spaces import (
    LATENT_SPACES,
    LatentSpace,
    LatentSpaceError,
    check_raw_latents,
    common_space,
    space_of_channels,
)

SDXL, FLUX, SD1 = LATENT_SPACES["sdxl"], LATENT_SPACES["flux"], LATENT_SPACES["sd1"]
RIGHT, UP = torch.eye(8)[0], torch.eye(8)[1]


@dataclass(frozen=True)
class FakeEncoder:
    """A linear tower, and a list of the batch sizes that it was called with. Equal only to itself and its equals."""

    reads_clips = False
    space: LatentSpace = SDXL
    seed: int = 0
    calls: list[int] = field(default_factory=list, compare=False)

    def __call__(self, raw_latents, noise_level=None):
        self.calls.append(len(raw_latents))
        return encode_latents(self.tower, raw_latents, 4, "crop")

    def tower(self, views):
        weight = torch.randn(8, self.space.channels * 16, generator=torch.Generator().manual_seed(self.seed))
        return views.flatten(1) @ weight.T


@dataclass(frozen=True)
class FakeWatcher(FakeEncoder):
    """The same tower, every window of it."""

    @property
    def plain(self):
        return FakeEncoder(self.space, self.seed, self.calls)

    def __call__(self, raw_latents, noise_level=None):
        return self.encode_windows(raw_latents).average

    def encode_windows(self, raw_latents, noise_level=None):
        self.calls.append(len(raw_latents))
        return encode_windows(self.tower, raw_latents, 4, "crop")


def latents(channels: int = 4, size: int = 8) -> torch.Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(7))


# What a reward computes


def test_text_reward_is_a_cosine():
    encoder = FakeEncoder()
    torch.testing.assert_close(text_reward(encoder, "cat", RIGHT)(latents()), encoder(latents())[:, 0])


def test_text_to_avoid_is_subtracted():
    encoder = FakeEncoder()
    features = encoder(latents())
    score = text_reward(encoder, "cat", RIGHT, UP, weight=2)(latents())
    torch.testing.assert_close(score, 2 * (features[:, 0] - features[:, 1]))


def test_latent_reward_is_one_for_the_reference_itself():
    encoder = FakeEncoder()
    reference = encoder(latents())[0]
    scores = latent_reward(encoder, "like it", reference)(latents())
    assert scores[0] == pytest.approx(1)
    assert scores[1:].max() < 1


def test_shared_encoder_runs_once_for_many_terms():
    encoder, equal, other = FakeEncoder(), FakeEncoder(), FakeEncoder(seed=1)
    reward = combine([text_reward(e, f"{i}", RIGHT) for i, e in enumerate([encoder, encoder, equal, other])])
    reward(latents())
    assert (encoder.calls, equal.calls, other.calls) == ([3], [], [3])
    assert reward.encoders == [encoder, other]


def test_text_and_a_concept_to_avoid_share_the_forward_pass():
    watcher = FakeWatcher()
    concepts = ConceptDirections(("x",), (-5.0,), (torch.eye(8)[:1],), torch.eye(8)[7:], logit_scale=10.0)
    rewards = [text_reward(watcher.plain, "cat", RIGHT), avoid_reward(watcher, concepts)]
    x = torch.randn(3, 4, 4, 12, generator=torch.Generator().manual_seed(1))
    for order in (rewards, rewards[::-1]):
        watcher.calls.clear()
        values = combine(order).evaluate(x)
        assert watcher.calls == [3]
        torch.testing.assert_close(values["cat"], watcher.plain(x)[:, 0])
        log_odds = concepts.score(watcher.encode_windows(x).windows)[..., 0]
        torch.testing.assert_close(values["avoid: x"], -(log_odds.amax(1) + 5).relu())


def test_evaluate_is_unweighted_and_the_sum_is_weighted():
    encoder = FakeEncoder()
    reward = combine([text_reward(encoder, "cat", RIGHT, weight=2), text_reward(encoder, "dog", UP, weight=-0.5)])
    values = reward.evaluate(latents())
    features = encoder(latents())
    assert list(values) == ["cat", "dog"]
    torch.testing.assert_close(values["cat"], features[:, 0])
    torch.testing.assert_close(reward(latents()), 2 * features[:, 0] - 0.5 * features[:, 1])
    torch.testing.assert_close(reward.weigh(values), reward(latents()))


def test_scores_of_a_batch_are_scores_of_its_items():
    reward = text_reward(FakeEncoder(), "cat", RIGHT)
    torch.testing.assert_close(reward(latents()), torch.cat([reward(item[None]) for item in latents()]))


def test_the_gradient_is_that_of_finite_differences():
    reward = combine([text_reward(FakeEncoder(), "cat", RIGHT, UP), text_reward(FakeEncoder(seed=1), "dog", UP)])
    x = latents().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x).sum(), x)
    step = 1e-2 * F.normalize(gradient.flatten(), dim=0).view_as(x)
    with torch.no_grad():
        slope = (reward(x + step).sum() - reward(x - step).sum()) / 2e-2
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_reward_built_in_inference_mode_has_gradients():
    with torch.inference_mode():
        reward = text_reward(FakeEncoder(), "cat", torch.eye(8)[0])
    x = latents().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x).sum(), x)
    assert gradient.norm() > 0


def test_tiles_are_averaged_as_unit_vectors():
    features = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])  # lengths must not count
    torch.testing.assert_close(average_unit(features), torch.full((1, 2), 0.5**0.5))


@pytest.mark.parametrize("fit", ["tiles", "crop", "squash"])
@pytest.mark.parametrize(
    ("size", "windows"), [((4, 4), 1), ((8, 8), 1), ((4, 12), 4), ((12, 4), 4), ((3, 9), 4)], ids=str
)
def test_look_has_the_average_of_the_encoder_and_every_window(fit, size, windows):
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    tower = FakeEncoder().tower
    look = encode_windows(tower, x, 4, fit)
    torch.testing.assert_close(look.average, encode_latents(tower, x, 4, fit))
    more = 1 if fit != "tiles" and size[0] != size[1] else 0
    assert look.windows.shape == (2, windows + more, 8)
    torch.testing.assert_close(look.windows.norm(dim=-1), torch.ones(2, windows + more))
    if size[0] == size[1]:
        assert torch.equal(look.average, encode_latents(tower, x, 4, fit)), "bit for bit"
        assert torch.equal(look.windows[:, 0], look.average)


@pytest.mark.parametrize("size", [(4, 10), (4, 4)], ids=str)
def test_encoded_latents_have_unit_length(size):
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    features = encode_latents(FakeEncoder().tower, x.double(), 4, "tiles")
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


def test_tower_sees_its_own_dtype():
    seen = []

    def tower(views):
        seen.append(views.dtype)
        return views.flatten(1)

    assert encode_latents(tower, latents(), 4, "crop", torch.bfloat16).dtype == torch.float32
    assert seen == [torch.bfloat16]


# Combining


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["cat", "cat", "cat"], ["cat", "cat (2)", "cat (3)"]),
        (["cat", "cat (2)", "cat"], ["cat", "cat (2)", "cat (3)"]),
    ],
)
def test_terms_keep_their_names(names, expected):
    reward = combine([text_reward(FakeEncoder(), name, RIGHT, weight=i) for i, name in enumerate(names)])
    assert [term.name for term in reward.terms] == expected
    assert [term.weight for term in reward.terms] == list(range(len(names)))


def test_combining_combined_rewards_is_flat():
    pair = combine([text_reward(FakeEncoder(), name, RIGHT) for name in ("cat", "dog")])
    reward = combine([pair, pair])
    assert [term.name for term in reward.terms] == ["cat", "dog", "cat (2)", "dog (2)"]
    torch.testing.assert_close(reward(latents()), 2 * pair(latents()))


def test_reward_numbers_terms_of_one_name_itself():
    encoder, x = FakeEncoder(), latents()
    reward = Reward(
        (Term("cat", encoder, lambda f: f @ RIGHT, 2.0), Term("cat", encoder, lambda f: f @ UP), Term("cat (2)", encoder, lambda f: f @ UP)),
    )  # fmt: skip
    assert list(reward.evaluate(x)) == ["cat", "cat (2)", "cat (2) (2)"]
    features = encoder(x)
    torch.testing.assert_close(reward(x), 2 * features[:, 0] + 2 * features[:, 1])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(ValueError, match=r"Got the weight (nan|inf) for 'cat', expected a finite number"):
        text_reward(FakeEncoder(), "cat", RIGHT, weight=weight)


def test_reward_without_terms_is_refused():
    with pytest.raises(ValueError, match="without terms"):
        Reward(())


def test_nothing_to_combine_is_named():
    with pytest.raises(ValueError, match="Got no rewards to combine"):
        combine([])


UNNAMED = space_of_channels(4, 8)


@pytest.mark.parametrize(
    ("spaces", "common"),
    [([SDXL], SDXL), ([SDXL, SDXL], SDXL), ([UNNAMED, SDXL], SDXL), ([SDXL, UNNAMED], SDXL), ([UNNAMED, UNNAMED], UNNAMED)],
    ids=lambda value: "+".join(space.name for space in value) if isinstance(value, list) else value.name,
)  # fmt: skip
def test_rewards_on_one_space_share_it(spaces, common):
    assert common_space(spaces) == common
    assert combine([text_reward(FakeEncoder(space), "cat", RIGHT) for space in spaces]).space == common


@pytest.mark.parametrize(
    ("spaces", "names"),
    [([SDXL, FLUX], "sdxl and the flux"), ([SDXL, SD1], "sdxl and the sd1"), ([UNNAMED, FLUX], "flux and the 4-channel")],
    ids=lambda value: "+".join(space.name for space in value) if isinstance(value, list) else "",
)  # fmt: skip
def test_rewards_on_two_spaces_are_refused_by_name(spaces, names):
    with pytest.raises(LatentSpaceError, match=f"rewards on the {names} latent space, expected one space"):
        combine([text_reward(FakeEncoder(space), "cat", RIGHT) for space in spaces])


# What cannot be latents of the space


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ((1, 16, 8, 8), r"latents of the flux or sd3 space \(16 channels\)"),
        ((1, 3, 64, 64), r"pixel space \(3 channels\)"),
        ((1, 7, 8, 8), r"an unknown space \(7 channels\)"),
        ((1, 4, 5, 8, 8), "a video latent"),
        ((4, 8, 8), "3 dimensions"),
        ((0, 4, 8, 8), "an empty latent batch"),
        ((1, 4, 0, 8), "an empty latent batch"),
    ],
    ids=str,
)
def test_other_latents_are_refused_by_name(shape, got):
    reward = text_reward(FakeEncoder(), "cat", RIGHT)
    expected = r"expected \(batch, 4, height, width\) latents of the sdxl space"
    with pytest.raises(LatentSpaceError, match=f"Got .*{got}.*{expected}.*\\. [A-Z]"):
        reward.evaluate(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_overflowed_are_refused(value):
    x = latents()
    x[1, 2, 3, 4] = value
    with pytest.raises(LatentSpaceError, match="NaN or infinite values"):
        text_reward(FakeEncoder(), "cat", RIGHT)(x)


def test_good_latents_pass_unchanged():
    x = latents(16)
    assert check_raw_latents(x, FLUX) is x


def test_term_can_be_any_head():
    encoder = FakeEncoder()
    reward = Reward((Term("length", encoder, lambda features: features.norm(dim=-1), 3.0),))
    torch.testing.assert_close(reward(latents()), torch.full((3,), 3.0))


def test_judge_on_another_device_gives_its_values_where_the_latents_are():
    """A tower that lives on a second GPU, or was moved to the CPU in mid-run (fake tensors: no device is needed)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from latent_clip.models.latent_spaces import LATENT_SPACES

    class Elsewhere:
        space, reads_clips = LATENT_SPACES["sdxl"], False

        def __init__(self, device):
            self.weight = torch.empty(256, 16, device=device)

        def __call__(self, raw_latents, noise_level=None):
            return raw_latents.to(self.weight.device).flatten(1) @ self.weight

    with FakeTensorMode():
        latents = torch.empty(2, 4, 8, 8, device="cuda:0")
        terms = tuple(Term(device, Elsewhere(device), lambda f: f[:, 0]) for device in ("cuda:1", "cpu", "cuda:0"))
        reward = Reward(terms)
        value = reward.weigh(reward.evaluate(latents, check=False))
        assert value.device == latents.device
