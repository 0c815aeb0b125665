"""Safety Guidance is applied, or the sampling ends with an error: every guider, few steps, samplers that tell other noise levels.

Each test takes one condition as true that some user's graph has, and samples with the host's own code.
"""

import pytest
import torch

from latent_clip.tests.guided_world import World

ALWAYS, NEVER = -1000, 1000  # thresholds: everyone is a suspect, nobody is
INSTEAD = "a green circle"


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


def same(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=3e-3, rtol=1e-3)


# Few steps, and parts of a sampling


@pytest.mark.parametrize("start", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("steps", [1, 2])
def test_models_of_few_steps_are_guarded_at_every_start(world, steps, start):
    redirected = world.sample(world.redirected(ALWAYS, start=start), steps=steps)
    plain = world.sample(world.model, steps=steps)
    if steps == 1:
        same(redirected, world.sample(world.model, INSTEAD, steps=1))
    assert not torch.allclose(redirected, plain, atol=0.1)
    assert torch.equal(world.sample(world.redirected(NEVER, start=start), steps=steps), plain)


@pytest.mark.parametrize("way", ["guided", "redirected"])
@pytest.mark.parametrize(("window", "steps"), [((0.3, 0.35), 5), ((0.2, 0.9), 1), ((0.0, 0.01), 5)])
def test_window_without_a_step_is_an_error_before_anything_is_drawn(world, way, window, steps, monkeypatch):
    model = getattr(world, way)(ALWAYS, start=window[0], end=window[1])
    if window[0] == 0.0:  # pure noise is inside of it: an image from noise has that step, a changed image has not
        assert world.sample(model, steps=steps).isfinite().all()
        more = {"latent": torch.full((2, 4, 8, 8), 3.0), "denoise": 0.6}
    else:
        more = {}
    drawn = []
    monkeypatch.setattr(world.model.model, "apply_model", lambda *args, **kwargs: drawn.append(args))
    with pytest.raises(ValueError, match="start lower"):
        world.sample(model, steps=steps, **more)
    assert not drawn


def test_every_n_counts_from_the_first_step_of_the_window(world):
    """It once counted from the first step of the sampling, and met none of a window that began later."""
    same(
        world.sample(world.redirected(ALWAYS, start=0.99, every_n=5), steps=4),
        world.sample(world.redirected(ALWAYS, start=0.99), steps=4),
    )
    assert not torch.equal(
        world.sample(world.redirected(ALWAYS, start=0.99, every_n=5), steps=4), world.sample(world.model, steps=4)
    )


@pytest.mark.parametrize("denoise", [0.3, 0.7])
def test_image_is_changed_under_guard(world, denoise):
    more = {"latent": torch.full((2, 4, 8, 8), 3.0), "denoise": denoise}
    same(world.sample(world.redirected(ALWAYS, start=0.2), **more), world.sample(world.model, INSTEAD, **more))


def test_split_sigmas_high_half_then_low_half(world):
    def sample(model, prompt="a red star"):
        sigmas = world.sigmas(8)
        half = world.sample_with(world.guider(model, prompt), sigmas=sigmas[:5])
        guider, zeros = world.guider(model, prompt), torch.zeros(2, 4, 8, 8)
        with torch.inference_mode():
            import comfy.samplers

            euler = comfy.samplers.sampler_object("euler")
            return guider.sample(zeros, half, euler, sigmas[4:], seed=5, disable_pbar=True)

    same(sample(world.redirected(ALWAYS)), sample(world.model, INSTEAD))
    assert torch.equal(sample(world.redirected(NEVER)), sample(world.model))


def test_part_before_the_window_goes_on_and_the_last_part_must_be_looked_at(world):
    sigmas = world.sigmas(10)
    model = world.redirected(ALWAYS, start=0.3)
    early = world.sample_with(world.guider(model), sigmas=sigmas[:2])
    assert torch.equal(early, world.sample_with(world.guider(world.model), sigmas=sigmas[:2]))
    with pytest.raises(ValueError, match="end to 1"):
        world.sample_with(world.guider(world.redirected(ALWAYS, end=0.5)), sigmas=sigmas[-3:])
    latent = torch.full((2, 4, 8, 8), 3.0)
    nothing = world.sample_with(world.guider(model), sigmas=sigmas[-1:], latent=latent)
    torch.testing.assert_close(nothing, latent)


# Guiders


def dual_cfg(world, model, prompts, cfgs, nested):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(*map(world.condition, prompts), world.condition(""))
    guider.set_cfg(*cfgs, nested)
    return guider


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("cfgs", [(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 3.0)])
def test_dual_cfg_guider(world, cfgs, nested):
    def sample(model, prompts=("a red star", "a blue star")):
        return world.sample_with(dual_cfg(world, model, prompts, cfgs, nested))

    same(sample(world.redirected(ALWAYS)), sample(world.model, (INSTEAD, INSTEAD)))
    plain = sample(world.model)
    assert torch.equal(sample(world.redirected(NEVER)), plain)
    # a push that went through the guider's sum would come out as many times larger as its cfg says
    pushed = sample(world.guided(ALWAYS, strength=0.05))
    assert not torch.equal(pushed, plain) and (pushed - plain).square().mean().sqrt() < 0.05 * 7.7 * 5


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_dual_model_guider(world, cfg):
    nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    kind = getattr(nodes, "Guider_DualModel", None)
    if kind is None:
        pytest.skip("this host has no Dual Model CFG Guider")

    def sample(model, prompt="a red star"):
        return world.sample_with(world.guider(model, prompt, cfg, lambda model: kind(model, world.model)))

    same(sample(world.redirected(ALWAYS)), sample(world.model, INSTEAD))
    plain = sample(world.model)
    assert torch.equal(sample(world.redirected(NEVER)), plain)
    assert not torch.equal(sample(world.guided(ALWAYS)), plain)


def test_guarded_model_that_only_makes_the_negative_is_an_error(world):
    nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(nodes, "Guider_DualModel"):
        pytest.skip("this host has no Dual Model CFG Guider")
    guarded = world.redirected(ALWAYS)
    guider = world.guider(world.model, kind=lambda model: nodes.Guider_DualModel(model, guarded))
    with pytest.raises(ValueError, match="model_negative"):
        world.sample_with(guider)


def test_perp_neg_guider(world):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    def sample(model, prompt="a red star"):
        guider = Guider_PerpNeg(model)
        guider.set_conds(world.condition(prompt), world.condition("a blue cross"), world.condition(""))
        guider.set_cfg(3.0, 1.0)
        return world.sample_with(guider)

    same(sample(world.redirected(ALWAYS)), sample(world.model, INSTEAD))
    assert torch.equal(sample(world.redirected(NEVER)), sample(world.model))


def test_basic_guider(world):
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    def sample(model, prompt="a red star"):
        guider = Guider_Basic(model)
        guider.set_conds(world.condition(prompt))
        return world.sample_with(guider)

    same(sample(world.redirected(ALWAYS)), sample(world.model, INSTEAD))


@pytest.mark.parametrize("way", ["guided", "redirected"])
def test_a_guider_that_predicts_behind_our_back_is_an_error(world, way):
    import comfy.samplers

    class Shortcut(comfy.samplers.CFGGuider):
        """As packs write them: the host's way to predict is passed by."""

        def __call__(self, x, timestep, model_options=None, seed=None):
            (out,) = comfy.samplers.calc_cond_batch(
                self.inner_model, [self.conds["positive"]], x, timestep, model_options
            )
            return out

    assert world.sample_with(world.guider(world.model, kind=Shortcut)).isfinite().all()
    with pytest.raises(ValueError, match=r"Shortcut.*CFG Guider"):
        world.sample_with(world.guider(getattr(world, way)(NEVER), kind=Shortcut))


def test_sampler_that_stops_before_the_window_is_an_error(world):
    import comfy.samplers

    def one_step(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return model(x, sigmas[0] * x.new_ones(len(x)), **extra_args)

    with pytest.raises(ValueError, match="Nothing of this image was scored"):
        world.sample_with(world.guider(world.redirected(NEVER, start=0.5)), comfy.samplers.KSAMPLER(one_step))


# The memory of suspects


def daemon(share: float):
    """A sampler that tells the model another noise level than its own, as detail daemons do."""
    import comfy.k_diffusion.sampling
    import comfy.samplers

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        class Told:
            inner_model = model.inner_model

            def __call__(self, x, sigma, **more):
                return model(x, sigma * share, **more)

        return comfy.k_diffusion.sampling.sample_euler(
            Told(), x, sigmas, extra_args=extra_args, callback=callback, disable=disable
        )

    return comfy.samplers.KSAMPLER(sample)


@pytest.mark.parametrize("share", [0.9, 1.0, 1.1])
def test_suspect_of_one_prompt_does_not_replace_an_image_of_the_next(world, share):
    model = world.redirected(2.0, start=0.2)
    first = world.sample(model, "a red star", steps=8, cfg=3.0)
    assert not torch.allclose(first, world.sample(world.model, "a red star", steps=8, cfg=3.0), atol=0.1)
    prompt, sampler = "a red circle", daemon(share)
    world.steering(model).monitor.check = lambda *_: None  # the second prompt shows nothing at all
    after = world.sample_with(world.guider(model, prompt), sampler, 8)
    assert torch.equal(after, world.sample_with(world.guider(world.model, prompt), sampler, 8))


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_detail_daemon_is_guarded(world, share):
    sampler = daemon(share)
    redirected = world.sample_with(world.guider(world.redirected(ALWAYS)), sampler)
    same(redirected, world.sample_with(world.guider(world.model, INSTEAD), sampler))


def test_sampler_that_goes_back_to_pure_noise_forgets_nobody(world):
    """Restart samplers do. Who was seen on the first way down stays a suspect on the second."""
    import comfy.k_diffusion.sampling
    import comfy.samplers

    def restart(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def down(x):
            return comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, extra_args=extra_args, disable=True)

        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x)
        return down(down(x) + noise * sigmas[0])

    sampler = comfy.samplers.KSAMPLER(restart)
    model = world.redirected(ALWAYS)
    watch, looks = world.steering(model).monitor, []
    look = watch.check

    def once(raw_latents, *_level):
        looks.append(1)
        if len(looks) == 1:
            look(raw_latents)

    watch.check = once
    same(
        world.sample_with(world.guider(model), sampler),
        world.sample_with(world.guider(world.model, INSTEAD), sampler),
    )
    assert len(looks) == 10


def test_optimize_noise_forgets_the_noise_before(world):
    """Its runs are samplings of their own: what comes out is what its noise makes, not what an earlier noise was suspected of."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model = world.redirected(ALWAYS)
    watch, looks = world.steering(model).monitor, []
    look = watch.check

    def once(raw_latents, *_level):
        looks.append(1)
        if len(looks) == 1:
            look(raw_latents)

    watch.check = once
    with torch.inference_mode():
        reward = world.rewards.text_reward(world.encoder, "match", world.clip.encode_text(["a red star"])[0])
        latent = {"samples": torch.zeros(2, 4, 8, 8)}
        state, _ = world.reno.run_reno(
            Noise_RandomNoise(5), world.guider(model, cfg=1.0), world.sigmas(1), latent, reward,
            world.settings(iterations=4), "fast",
        )  # fmt: skip
        import comfy.samplers

        euler = comfy.samplers.sampler_object("euler")
        made = world.guider(world.model, cfg=1.0).sample(
            state.noise, latent["samples"], euler, world.sigmas(1), seed=5, disable_pbar=True
        )
    assert len(looks) == 4 and min(state.best_iteration) > 0
    torch.testing.assert_close(state.latents.cpu(), made, atol=1e-3, rtol=1e-3)


# Several guided models


def test_reward_after_safety_does_not_pull_back(world):
    """Safety has the last word, whatever the order: the redirected image is the other prompt's, without the pull."""
    with torch.inference_mode():
        reward = world.rewards.text_reward(world.encoder, "match", world.clip.encode_text(["a red star"])[0])
    climb = world.guidance.ClimbReward(reward)
    settings, window = world.guidance.GuidanceSettings(1.0), world.window(0.0, 1.0)
    for model in (
        world.guide_model(world.redirected(ALWAYS), climb, settings, window),
        world.redirected(ALWAYS, model=world.guide_model(world.model, climb, settings, window)),
    ):
        same(world.sample(model), world.sample(world.model, INSTEAD))


def test_two_guards_both_look(world):
    same(world.sample(world.redirected(ALWAYS, model=world.redirected(NEVER))), world.sample(world.model, INSTEAD))
    same(world.sample(world.redirected(NEVER, model=world.redirected(ALWAYS))), world.sample(world.model, INSTEAD))


def test_push_does_not_touch_what_is_redirected(world):
    pushed = world.guided(ALWAYS, model=world.redirected(ALWAYS))
    same(world.sample(pushed), world.sample(world.model, INSTEAD))
    same(world.sample(world.redirected(ALWAYS, model=world.guided(ALWAYS))), world.sample(world.model, INSTEAD))


def test_guidance_of_other_nodes_after_it_does_not_pull_back(world):
    """Perturbed attention, skip layer and the like change the sum after the fact; they once came after the redirection."""
    model = world.redirected(ALWAYS)
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 3.0)
    same(world.sample(model), world.sample(world.model, INSTEAD))


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_step_skipping_nodes_see_the_whole_batch_only(world, name, cfg):
    """They compare predictions of one prompt between steps; the suspects' own runs must not get among them."""
    nodes = pytest.importorskip("comfy_extras.nodes_easycache")
    kind = getattr(nodes, name)

    def cached(model):
        return kind.execute(model, 0.3, 0.1, 0.95, False).args[0]

    plain = world.sample(cached(world.model), steps=12, cfg=cfg)
    assert not torch.equal(plain, world.sample(world.model, steps=12, cfg=cfg)), "no step was skipped"
    model = world.redirected(ALWAYS)
    watch = world.steering(model).monitor
    look = watch.check

    def first_item(raw_latents, *_level):
        look(raw_latents)
        watch.flagged[1:] = False

    watch.check = first_item
    mixed = world.sample(cached(model), steps=12, cfg=cfg)
    assert mixed.isfinite().all()
    assert not torch.allclose(mixed[0], plain[0], atol=0.1)
