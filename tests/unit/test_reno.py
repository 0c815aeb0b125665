"""ReNO against a replay of the original's loop, and right where the original is wrong."""

import math

import pytest
import torch

from latent_clip.methods.reno import RenoSettings, norm_prior, optimize_noise
from latent_clip.methods.rewards import Reward, Term
from latent_clip.methods.sampling import euler
from latent_clip.models.latent_spaces import LATENT_SPACES

SHAPE = (4, 8, 8)


class Flat:
    """An encoder that reads the latent itself."""

    space, reads_clips = LATENT_SPACES["sdxl"], False

    def __call__(self, raw_latents, noise_level=None):
        return raw_latents.flatten(1)


def make_reward(seed: int = 0, scale: float = 1.0) -> Reward:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(math.prod(SHAPE), generator=generator) * scale
    encoder = Flat()
    return Reward((
        Term("cosine", encoder, lambda f: torch.cosine_similarity(f, direction, dim=1), 1.0),
        Term("size", encoder, lambda f: -(f.norm(dim=1) - 10).square() / 1000, 0.5),
    ))  # fmt: skip


def make_generator(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 4, 3, 3, generator=generator) / 6

    def generate(noise, items):
        return 3 * torch.tanh(torch.nn.functional.conv2d(noise, weight, padding=1)) + 0.5 * noise

    return generate


def noise(batch: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def original_loop(generate, reward, start, settings) -> dict:
    """The published loop for one image: loss, regulariser, best, backward, clip, step, in its order."""
    latents = torch.nn.Parameter(start.clone())
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam([latents], lr=settings.learning_rate, eps=1e-2)
    else:
        optimizer = torch.optim.SGD(
            [latents], lr=settings.learning_rate, momentum=0.9, nesterov=settings.optimizer == "nesterov"
        )
    best: dict = {"loss": math.inf}
    losses = []
    for iteration in range(settings.iterations):
        optimizer.zero_grad()
        image = generate(latents, [0])
        loss = -reward(image).sum()
        norm = torch.linalg.vector_norm(latents)
        prior = 0.5 * norm**2 - (latents.numel() - 1) * torch.log(norm + 0.0)
        total = loss + settings.prior_weight * prior
        losses.append(loss.item())
        if loss.item() < best["loss"]:
            best = {
                "loss": loss.item(),
                "noise": latents.detach().clone(),
                "image": image.detach().clone(),
                "at": iteration,
            }
        if iteration < settings.iterations - 1:
            total.backward()
            torch.nn.utils.clip_grad_norm_(latents, settings.gradient_clip)
            optimizer.step()
    return best | {"losses": losses}


@pytest.mark.parametrize(
    "settings",
    [
        RenoSettings(iterations=25),
        RenoSettings(iterations=25, optimizer="sgd", learning_rate=2.0),
        RenoSettings(iterations=25, optimizer="adam", learning_rate=0.05),
        RenoSettings(iterations=25, prior_weight=0.0, gradient_clip=0.3),
        RenoSettings(iterations=1),
    ],
    ids=["defaults", "sgd", "adam", "no prior", "one evaluation"],
)
def test_one_image_replays_the_original(settings):
    start = noise(1)
    expected = original_loop(make_generator(), make_reward(), start, settings)
    state = optimize_noise(make_generator(), make_reward(), start, settings)
    rewards = [iteration.rewards[0] for iteration in state.iterations]
    assert rewards == pytest.approx([-loss for loss in expected["losses"]], abs=3e-5)
    assert torch.allclose(state.noise, expected["noise"], atol=3e-5)
    assert torch.allclose(state.latents, expected["image"], atol=3e-5)
    assert state.best_iteration == [expected["at"]]
    assert state.stop_reasons == ["iterations"]


def test_iteration_zero_is_the_untouched_noise_and_n_evaluations_take_n_minus_1_steps():
    calls = []
    inner = make_generator()

    def generate(z, items):
        calls.append((z.detach().clone(), torch.is_grad_enabled()))
        return inner(z, items)

    start = noise(1)
    state = optimize_noise(generate, make_reward(), start, RenoSettings(iterations=4))
    assert torch.equal(calls[0][0], start)
    assert [grad for _, grad in calls] == [True, True, True, False]
    assert torch.equal(state.first_latents, inner(start, [0]))


def test_batch_is_as_many_single_runs():
    settings = RenoSettings(iterations=15)
    start = noise(4) * torch.tensor([1.0, 0.5, 1.5, 1.0]).view(4, 1, 1, 1)  # different norms: one prior each
    together = optimize_noise(make_generator(), make_reward(), start, settings)
    for i in range(4):
        alone = optimize_noise(make_generator(), make_reward(), start[i : i + 1], settings)
        assert torch.allclose(together.noise[i], alone.noise[0], atol=1e-5)
        assert together.rewards[i].item() == pytest.approx(alone.rewards[0].item(), abs=1e-6)
        assert together.best_iteration[i] == alone.best_iteration[0]


def test_never_worse_than_no_optimisation_even_with_a_wild_learning_rate():
    start = noise(6)
    first = make_reward()(make_generator()(start, []))
    state = optimize_noise(make_generator(), make_reward(), start, RenoSettings(iterations=10, learning_rate=90.0))
    assert (state.rewards >= first).all()
    assert torch.allclose(make_reward()(make_generator()(state.noise, [])), state.rewards, atol=1e-6)


def test_finished_items_leave_the_batch():
    sizes = []
    inner = make_generator()

    def generate(z, items):
        sizes.append(len(items))
        return inner(z, items)

    reward = make_reward()
    first = reward(inner(noise(3), []))
    settings = RenoSettings(iterations=30, target=first.max().item())
    state = optimize_noise(generate, reward, noise(3), settings)
    assert sizes[0] == 3 and sizes[1] == 2 and sizes == sorted(sizes, reverse=True)
    assert state.stop_reasons[first.argmax()] == "target reached"
    assert state.best_iteration[first.argmax()] == 0


def test_patience_ends_an_item_that_does_not_improve():
    state = optimize_noise(
        make_generator(),
        make_reward(),
        noise(1),
        RenoSettings(iterations=50, learning_rate=1e-3, gradient_clip=1e-9, patience=5),
    )
    assert state.stop_reasons == ["patience"]
    assert len(state.iterations) < 50


def test_infinite_reward_is_never_the_best():
    inner, encoder, calls = make_generator(), Flat(), []

    def head(features):
        calls.append(len(features))
        values = features.mean(dim=1)
        return values + torch.inf if len(calls) == 3 else values

    state = optimize_noise(inner, Reward((Term("mean", encoder, head),)), noise(1), RenoSettings(iterations=9))
    assert state.stop_reasons == ["non-finite reward"] and state.best_iteration[0] < 2
    assert state.rewards.isfinite().all() and torch.allclose(inner(state.noise, [0]), state.latents, atol=1e-6)


def test_item_without_any_reward_keeps_its_first_latents():
    inner, encoder = make_generator(), Flat()

    def head(features):
        return features.mean(dim=1) * torch.tensor([torch.nan, 1.0])[-len(features) :]

    state = optimize_noise(inner, Reward((Term("mean", encoder, head),)), noise(2), RenoSettings(iterations=4))
    assert state.stop_reasons == ["non-finite reward", "iterations"]
    assert torch.equal(state.latents[0], state.first_latents[0]) and state.rewards[0] == -torch.inf


@pytest.mark.parametrize("what", ["reward", "gradient", "latents"])
def test_item_that_turns_non_finite_is_frozen_and_the_others_go_on(what):
    inner, reward = make_generator(), make_reward()
    calls = 0

    class Break(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            g = g.clone()
            g[0] = torch.nan
            return g

    def generate(z, items):
        nonlocal calls
        calls += 1
        x = inner(z, items)
        if calls > 3 and items[0] == 0:
            if what == "gradient":
                return Break.apply(x)
            factor = torch.ones(len(items), 1, 1, 1)
            factor[0] = torch.nan if what == "latents" else torch.inf
            return x * factor
        return x

    state = optimize_noise(generate, reward, noise(3), RenoSettings(iterations=12))
    assert state.stop_reasons == [
        f"non-finite {'gradient' if what == 'gradient' else 'reward'}",
        "iterations",
        "iterations",
    ]
    # momentum carries an item on for the OVERFLOW_TRIES iterations that a gradient may fail
    assert state.best_iteration[0] <= (6 if what == "gradient" else 3) < state.best_iteration[1]
    assert torch.isfinite(state.noise).all() and torch.isfinite(state.latents).all()
    alone = optimize_noise(inner, reward, noise(3)[1:], RenoSettings(iterations=12))
    assert torch.allclose(state.noise[1:], alone.noise, atol=1e-5)


def test_reward_that_is_never_finite_is_an_error():
    encoder = Flat()
    broken = Reward((Term("nan", encoder, lambda f: f.sum(1) * torch.nan),))
    with pytest.raises(ValueError, match="NaN or infinite for every item"):
        optimize_noise(make_generator(), broken, noise(2), RenoSettings(iterations=3))


def test_overflow_on_the_way_back_is_tried_again_with_a_smaller_cotangent():
    """A float16 generator whose backward overflows at first: the scale backs off and the item goes on."""
    seen = []

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            seen.append(g.abs().max().item())
            return (g.half() * 40000).float() / 40000

    inner = make_generator()
    state = optimize_noise(lambda z, i: Half.apply(inner(z, i)), make_reward(), noise(1), RenoSettings(iterations=6))
    assert state.stop_reasons == ["iterations"]
    assert seen[0] >= 1 and not math.isfinite(state.iterations[0].gradient_norms[0])
    assert seen[1] == pytest.approx(seen[0] / 256, rel=0.5) and math.isfinite(state.iterations[1].gradient_norms[0])


def test_on_step_can_end_the_run_and_keep_the_best():
    seen = []

    def stop_at_three(state):
        seen.append(state.iterations[-1].index)
        return len(seen) == 3

    state = optimize_noise(make_generator(), make_reward(), noise(2), RenoSettings(iterations=50), stop_at_three)
    assert seen == [0, 1, 2] and state.stop_reasons == ["stopped", "stopped"]


def test_what_on_step_raises_goes_through():
    def cancel(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimize_noise(make_generator(), make_reward(), noise(1), RenoSettings(), cancel)


def test_norm_prior_is_smallest_at_the_expected_norm():
    d = math.prod(SHAPE)
    radii = torch.linspace(0.5, 1.5, 101) * math.sqrt(d - 1)
    directions = torch.nn.functional.normalize(noise(1).flatten(), dim=0).view(1, *SHAPE)
    values = norm_prior(directions * radii.view(-1, 1, 1, 1))
    assert radii[values.argmin()].item() == pytest.approx(math.sqrt(d - 1), rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 0},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"gradient_clip": -1},
        {"prior_weight": -1},
        {"optimizer": "lbfgs"},
        {"patience": -1},
        {"patience": math.nan},
        {"iterations": 2.5},
        {"iterations": math.nan},
        {"learning_rate": math.inf},
        {"gradient_clip": math.nan},
        {"prior_weight": math.nan},
        {"target": math.nan},
        {"target": -math.inf},
    ],
)
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=r"Got .* expected"):
        RenoSettings(**change)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_caller_without_gradients_gets_the_same_run(mode):
    expected = optimize_noise(make_generator(), make_reward(), noise(1), RenoSettings(iterations=5))
    generator, reward = make_generator(), make_reward()
    with mode():
        state = optimize_noise(generator, reward, noise(1), RenoSettings(iterations=5))
    assert state.best_iteration == expected.best_iteration != [0]
    assert torch.equal(state.noise, expected.noise)


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (lambda z, items: z[:1], r"generator returned the shape \(1, .*expected \(2, .*one item per noise"),
        (lambda z, items: z[:, :1], "generator returned the shape"),
        (lambda z, items: z[..., ::2], "generator returned the shape"),
        (lambda z, items: z.detach(), "generator returned numbers without a gradient"),
    ],
    ids=["batch", "channels", "size", "detached"],
)
def test_generator_that_cannot_be_climbed_is_told_why(generate, message):
    with pytest.raises(ValueError, match=message):
        optimize_noise(generate, make_reward(), noise(2), RenoSettings(iterations=2))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda f: f.detach().flatten(1).mean(dim=1), "reward returned numbers without a gradient"),
        (lambda f: f.mean(), r"reward returned the shape \(\), expected \(2,\)"),
    ],
)
def test_reward_that_cannot_be_climbed_is_told_why(head, message):
    reward = Reward((Term("r", Flat(), head),))
    with pytest.raises(ValueError, match=message):
        optimize_noise(make_generator(), reward, noise(2), RenoSettings(iterations=2))


def test_euler_with_an_exact_denoiser_lands_on_the_data():
    data = noise(2, seed=5)
    sigmas = torch.tensor([14.0, 5.0, 1.0, 0.0])
    result = euler(lambda x, sigma: data, data + 14 * noise(2, seed=6), sigmas)
    assert torch.allclose(result, data, atol=1e-5)


def test_euler_ends_above_zero_on_the_straight_line():
    data, eps = noise(1, seed=5), noise(1, seed=6)
    result = euler(lambda x, sigma: data, data + 10 * eps, torch.tensor([10.0, 4.0]))
    assert torch.allclose(result, data + 4 * eps, atol=1e-5)
