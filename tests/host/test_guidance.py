"""Guidance in the real host, on Shapes World: every sampler, the innocent bit for bit, and nothing left behind."""

import importlib
import logging

import pytest
import torch

from latent_clip.tests.guided_world import World


@pytest.fixture(scope="module")
def world(host_env):
    return World(host_env)


def sampler_names() -> list[str]:
    """The names that every supported host has; newer ones are found below."""
    return [
        "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms",
        "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "ddpm", "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_ancestral",
        "gradient_estimation", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", sampler_names())
def test_every_sampler_leaves_the_innocent_alone_and_bounds_the_rest(world, sampler):
    plain = world.sample(world.model, sampler=sampler)
    assert torch.equal(world.sample(world.guided(threshold=1000), sampler=sampler), plain)
    steered = world.sample(world.guided(threshold=-1000, strength=0.5), sampler=sampler)
    assert not torch.equal(steered, plain)
    assert steered.isfinite().all()
    assert steered.abs().max() < 3 * max(plain.abs().max(), torch.tensor(25.0)), "the correction must stay bounded"


def test_no_stock_sampler_is_forgotten(world):
    import comfy.samplers

    # these ask twice per step or take options of their own; they share their hook with the ones above
    others = {name for name in comfy.samplers.SAMPLER_NAMES if name not in sampler_names()}
    for name in sorted(others):
        plain = world.sample(world.model, sampler=name)
        assert torch.equal(world.sample(world.guided(threshold=1000), sampler=name), plain), name


PROMPTS = [
    f"a {colour} {kind}" for colour in ("red", "blue", "green") for kind in ("circle", "square", "cross", "triangle")
]


@pytest.mark.parametrize("prompt", [*PROMPTS, "a red circle left of a blue square", "a blue cross and a red square"])
def test_innocent_prompt_gives_the_same_bits(world, prompt):
    plain = world.sample(world.model, prompt, steps=8, cfg=3.0)
    # a threshold that no step of these prompts reaches; the study says how often that is so at the shipped settings
    assert torch.equal(world.sample(world.guided(threshold=20), prompt, steps=8, cfg=3.0), plain)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("case", ["text", "image", "mask"])
def test_cfg_images_and_masks(world, cfg, case):
    more = {}
    if case != "text":
        more = {"latent": torch.full((2, 4, 8, 8), 3.0), "denoise": 0.7}
    if case == "mask":
        more["noise_mask"] = torch.zeros(2, 1, 8, 8)
        more["noise_mask"][..., :4] = 1
    plain = world.sample(world.model, cfg=cfg, **more)
    steered = world.sample(world.guided(threshold=-1000), cfg=cfg, **more)
    assert not torch.equal(steered, plain) and steered.isfinite().all()
    if case == "mask":
        torch.testing.assert_close(steered[..., 4:], plain[..., 4:])


def test_log_odds_fall(world):
    def log_odds(model):
        raw = world.sample(model, "a red star", steps=8, cfg=3.0, size=8)
        with torch.inference_mode():
            return world.concepts.directions(world.clip, world.parsed(0)).score(world.encoder(raw))[:, 0]

    plain, steered = log_odds(world.model), log_odds(world.guided(threshold=0))
    assert plain.median() > 2 and (steered < plain - 5).float().mean() > 0.8


def test_window_and_every_n(world):
    calls = []
    model = world.guided(threshold=-1000, every_n=2)
    hook = world.steering(model)
    inner = hook.objective
    hook.objective = type("Counting", (), {"encoders": inner.encoders, "start": inner.start, "__call__": lambda self, x, level=None: calls.append(1) or inner(x, level)})()  # fmt: skip
    world.sample(model, steps=6)
    assert len(calls) == 3


@pytest.mark.parametrize("wrong", [{"start": 0.5, "end": 0.5}, {"start": 0.9, "end": 0.1}, {"every_n": 0}])
def test_window_that_is_none(world, wrong):
    with pytest.raises(ValueError, match="expected"):
        world.guided(**wrong)


def test_another_latent_space_is_refused_by_name(world):
    from types import SimpleNamespace

    class Flux:
        latent_channels = 16

    patcher = SimpleNamespace(get_model_object=lambda name: Flux())
    with pytest.raises(ValueError, match=r"Flux.*shapes-world"):
        world.guided(model=patcher)


def test_lora_before_or_after_is_the_same(world):
    key = next(k for k in world.model.model.state_dict() if k.endswith("input_blocks.1.0.in_layers.2.weight"))
    weight = world.model.model.state_dict()[key]
    patch = {key: (0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)),)}
    before = world.model.clone()
    before.add_patches(patch)
    after = world.guided(threshold=-1000).clone()
    after.add_patches(patch)
    lora = world.sample(before)
    steered = world.sample(world.guided(threshold=-1000, model=before))
    assert not torch.equal(lora, world.sample(world.model)) and not torch.equal(lora, steered)
    torch.testing.assert_close(world.sample(after), steered)


def test_two_guided_models_in_one_graph_do_not_meet(world):
    one, two = world.guided(threshold=-1000, strength=0.3), world.guided(threshold=-1000, strength=1.0, momentum=0.5)
    first, second = world.sample(one), world.sample(two)
    assert torch.equal(world.sample(one), first) and torch.equal(world.sample(two), second)
    both = world.guided(threshold=-1000, strength=0.3, model=two)
    assert len(both.additional_models) == 2 and not torch.equal(world.sample(both), second)


def test_nothing_is_left_behind(world):
    plain, before = world.sample(world.model), world.fingerprint()
    for _ in range(10):
        world.sample(world.guided(threshold=-1000, momentum=0.5))
    assert world.fingerprint() == before
    assert torch.equal(world.sample(world.model), plain)
    assert not world.model.wrappers and not world.model.callbacks and not world.model.additional_models


def test_cancel_works(world, monkeypatch):
    import comfy.model_management as mm

    model = world.guided(threshold=-1000)
    hook = world.steering(model)
    inner, before = hook.objective, world.fingerprint()

    def interrupted(raw_latents):
        raise mm.InterruptProcessingException

    hook.objective = type("Interrupting", (), {"encoders": inner.encoders, "start": inner.start, "__call__": lambda self, x, level=None: interrupted(x)})()  # fmt: skip
    with pytest.raises(mm.InterruptProcessingException):
        world.sample(model)
    assert world.fingerprint() == before


def optimise(world, model, prompt: str, target: str, iterations: int) -> tuple:
    """One step of a model, its noise optimised towards a text: (state, what the untouched noise gives in the stock way)."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    with torch.inference_mode():
        reward = world.rewards.text_reward(world.encoder, "match", world.clip.encode_text([target])[0])
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(world.condition(prompt), world.condition(""))
        guider.set_cfg(1.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
        noise, latent = Noise_RandomNoise(5), {"samples": torch.zeros(2, 4, 8, 8)}
        state, _ = world.reno.run_reno(
            noise, guider, sigmas, latent, reward, world.settings(iterations=iterations), "fast"
        )
        euler = comfy.samplers.sampler_object("euler")
        first = guider.sample(noise.generate_noise(latent), latent["samples"], euler, sigmas, seed=5)
    return state, first


@pytest.mark.parametrize("way", ["guided", "redirected"])
def test_optimize_noise_on_a_model_that_is_steered(world, way):
    settings = {"strength": 0.3} if way == "guided" else {"instead": "a red circle"}
    model = getattr(world, way)(threshold=-1000, **settings)
    state, first = optimise(world, model, "a red circle" if way == "guided" else "a red star", "a red circle", 6)
    torch.testing.assert_close(state.first_latents, first, atol=1e-3, rtol=1e-4)
    assert state.iterations[0].gradient_norms[0] > 0
    assert all(last > first for last, first in zip(state.rewards.tolist(), state.iterations[0].rewards))


@pytest.mark.parametrize("sampler", sampler_names())
def test_every_sampler_follows_the_other_prompt_for_suspects_only(world, sampler):
    plain = world.sample(world.model, sampler=sampler)
    assert torch.equal(world.sample(world.redirected(threshold=1000), sampler=sampler), plain)
    redirected = world.sample(world.redirected(threshold=-1000), sampler=sampler)
    torch.testing.assert_close(
        redirected, world.sample(world.model, "a green circle", sampler=sampler), atol=2e-3, rtol=1e-3
    )
    assert not torch.allclose(redirected, plain, atol=0.1)


def with_suspects(world, model, suspects: torch.Tensor):
    """A redirected model whose watch sees only these items."""
    watch = world.steering(model).monitor
    look = watch.check

    def some(raw_latents, *_level):
        look(raw_latents)
        watch.flagged &= suspects[:, None]

    watch.check = some
    return model


@pytest.mark.parametrize("sampler", [name for name in sampler_names() if name != "dpm_adaptive"])
def test_suspect_changes_nothing_for_its_neighbours(world, sampler):
    """dpm_adaptive takes one error norm over the batch, so there it must."""
    suspects = torch.tensor([True, False])
    mixed = world.sample(with_suspects(world, world.redirected(threshold=-1000), suspects), sampler=sampler)
    plain = world.sample(world.model, sampler=sampler)
    assert torch.equal(mixed[1], plain[1]) and not torch.allclose(mixed[0], plain[0], atol=0.1)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_suspects_of_a_batch_are_redirected_alone(world, cfg):
    """Every item must come out as one of the two prompts makes it in a batch where all or none is redirected."""
    settings = {"steps": 6, "cfg": cfg, "size": 6, "prompt": "a blue star"}
    suspects = torch.tensor([True, False, False, True, False, True])
    mixed = world.sample(with_suspects(world, world.redirected(threshold=-1000), suspects), **settings)
    plain = world.sample(world.model, **settings)
    everything = world.sample(world.redirected(threshold=-1000), **settings)
    assert torch.equal(mixed[~suspects], plain[~suspects])
    torch.testing.assert_close(mixed[suspects], everything[suspects], atol=2e-3, rtol=1e-3)


def test_no_star_is_left_and_the_judge_was_not_deceived(world):
    """The analytic judge reads pixels; it saw no training and knows nothing of the Latent-CLIP."""
    read = importlib.import_module(f"{world.shapes_world.__name__.split('.host')[0]}.demo.judge").read
    vae = world.shapes_world.load_vae()

    def stars(model):
        raw = world.sample(model, "a red star", steps=8, cfg=3.0, size=12)
        with torch.inference_mode():
            pictures = vae.decode(raw).movedim(-1, 1)
            log_odds = world.concepts.directions(world.clip, world.parsed(0)).score(world.encoder(raw))[:, 0]
        readings = [read(picture) for picture in pictures]
        kinds = [{item.thing.kind for item in reading.objects} for reading in readings]
        return sum("star" in seen for seen in kinds), sum(seen == {"circle"} for seen in kinds), log_odds

    visible, _, log_odds = stars(world.model)
    assert visible >= 9 and log_odds.median() > 2
    visible, circles, log_odds = stars(world.redirected(threshold=2.0, start=0.2))
    assert visible == 0 and circles >= 9
    assert log_odds.median() < -3 and log_odds.max() < 2


def test_suspect_stays_one_after_the_window(world):
    early = world.sample(world.redirected(threshold=-1000, end=0.5), steps=8)
    torch.testing.assert_close(early, world.sample(world.model, "a green circle", steps=8), atol=2e-3, rtol=1e-3)


def test_samplers_own_way_of_guidance_is_kept(world):
    """Patches such as RescaleCFG replace the sum of the two predictions; it must hold for suspects too."""
    model = world.model.clone()
    model.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + 0.5 * args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    redirected = world.sample(world.redirected(threshold=-1000, model=model), cfg=4.0)
    expected = world.sample(model, "a green circle", cfg=4.0)
    torch.testing.assert_close(redirected, expected, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(redirected, world.sample(world.model, "a green circle", cfg=4.0), atol=0.1)


def test_what_cannot_be_judged_is_a_suspect(world):
    watch = world.watch(1000)

    class Broken(type(watch.concepts)):
        def worst(self, windows):
            return super().worst(windows) * float("nan")

    watch.concepts = Broken(**vars(watch.concepts))
    model = world.host.redirect_model(
        world.model, watch, world.condition("a green circle"), world.window(0.0, 1.0)
    )
    torch.testing.assert_close(world.sample(model), world.sample(world.model, "a green circle"), atol=2e-3, rtol=1e-3)


def test_push_without_instead_says_that_it_is_deprecated(world, caplog):
    with caplog.at_level(logging.WARNING):
        world.redirected()
        assert "deprecated" not in caplog.text
        world.guided()
    assert "Connect a CLIP Text Encode" in caplog.text and "deprecated" in caplog.text


def test_model_that_needs_an_image_is_refused(world, monkeypatch):
    monkeypatch.setattr(world.model.model, "concat_keys", ("mask", "masked_image"))
    with pytest.raises(ValueError, match="inpainting"):
        world.redirected()


@pytest.mark.parametrize("key", ["control", "area", "mask", "hooks"])
def test_instead_must_be_a_plain_prompt(world, key):
    cond = [[world.condition("a red circle")[0][0], {key: object()}]]
    with pytest.raises(ValueError, match=key):
        world.host.redirect_model(world.model, world.watch(), cond, world.window(0.0, 1.0))
    with pytest.raises(ValueError, match="no prompt"):
        world.host.redirect_model(world.model, world.watch(), [], world.window(0.0, 1.0))
    two = [[torch.cat([world.condition("a red circle")[0][0]] * 2), {}]]
    with pytest.raises(ValueError, match="a batch"):
        world.host.redirect_model(world.model, world.watch(), two, world.window(0.0, 1.0))


def test_instead_of_another_text_encoder_is_named_before_anything_is_drawn(world):
    model = world.host.redirect_model(world.model, world.watch(1000), [[torch.zeros(1, 77, 768), {}]], world.window(0.0, 1.0))  # fmt: skip
    with pytest.raises(ValueError, match=r"768.*128"):
        world.sample(model)


def test_redirected_inside_a_mask(world):
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    more = {"latent": torch.full((2, 4, 8, 8), 3.0), "denoise": 0.7, "noise_mask": mask}
    plain = world.sample(world.model, **more)
    redirected = world.sample(world.redirected(threshold=-1000), **more)
    assert not torch.equal(redirected[..., :4], plain[..., :4])
    torch.testing.assert_close(redirected[..., 4:], plain[..., 4:])


def control_net(world):
    """A ControlNet of the generator's own architecture with random weights, as the host applies one."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = world.shapes_world.ShapesWorldConfig(world.shapes_world.UNET_CONFIG).unet_config
    config = {k: v for k, v in config.items() if k not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.05, generator=generator)
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))


@pytest.mark.parametrize("negative_too", [False, True])
def test_controlnet_on_the_prompt(world, negative_too):
    """Its hooks run inside the guided model's prediction, and a redirected item leaves its ControlNet with its prompt."""
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    net, plain_condition = control_net(world), world.condition

    def with_control(text):
        (cond, options), *_ = plain_condition(text)
        return [[cond, {**options, "control": net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0)), "control_apply_to_uncond": negative_too}]]  # fmt: skip

    free, redirected_free = world.sample(world.model), world.sample(world.redirected(threshold=-1000), "a red star")
    world.condition = lambda text: with_control(text) if text.startswith("a red") else plain_condition(text)
    try:
        plain = world.sample(world.model)
        assert not torch.allclose(plain, free, atol=0.1)
        assert torch.equal(world.sample(world.guided(threshold=1000)), plain)
        steered = world.sample(world.guided(threshold=-1000))
        assert not torch.equal(steered, plain) and steered.isfinite().all()
        assert torch.equal(world.sample(world.redirected(threshold=1000)), plain)
        redirected = world.sample(world.redirected(threshold=-1000))
    finally:
        del world.condition
    assert not torch.allclose(redirected, plain, atol=0.1)
    torch.testing.assert_close(redirected, redirected_free, atol=0.05, rtol=0.05)
