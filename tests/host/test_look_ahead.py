"""Safety Guidance that looks ahead, in the real host on Shapes World: who is drafted, who is redirected, and who is left alone."""

import logging

import pytest
import torch

from latent_clip.tests.ahead_world import CALIBRATED, AheadWorld
from latent_clip.tests.host.test_guidance import sampler_names

ALWAYS, NEVER = -1000.0, 1000.0  # thresholds: every draft is a suspect, none is
INSTEAD = "a green circle"
MIXED = {"prompt": "a red star and a blue circle", "size": 6, "steps": 8, "cfg": 3.0}


@pytest.fixture(scope="module")
def world(host_env):
    return AheadWorld(host_env)


def same(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=3e-3, rtol=1e-3)


def suspecting(world, model, suspects: list[int]):
    """The model, whose drafts show something for these items only."""
    steering = world.steering(model)
    look = steering.draft

    def chosen(guider, sampling):
        draft = look(guider, sampling)
        draft.reasons[:] = [f"item {i}" if i in suspects else "" for i in range(len(draft.reasons))]
        return draft

    steering.draft = chosen
    return model


@pytest.mark.parametrize("sampler", sampler_names())
def test_innocent_are_bit_identical_and_suspects_follow_from_the_first_step(world, sampler):
    """Stochastic samplers too: a draft draws from no one's dice."""
    steps = {"sampler": sampler, "steps": 6}
    plain = world.sample(world.model, **steps)
    assert torch.equal(world.sample(world.looking(NEVER), **steps), plain)
    assert torch.equal(world.sample(world.looking(NEVER, late="redirect"), **steps), plain)
    redirected = world.sample(world.looking(ALWAYS), **steps)
    same(redirected, world.sample(world.model, INSTEAD, **steps))
    if sampler != "dpm_adaptive":  # which takes one error norm over the batch
        mixed = world.sample(suspecting(world, world.looking(), [1]), **steps)
        assert torch.equal(mixed[0], plain[0])
        torch.testing.assert_close(mixed[1], redirected[1], atol=3e-3, rtol=1e-3)


def test_no_stock_sampler_is_forgotten(world):
    import comfy.samplers

    for name in sorted(set(comfy.samplers.SAMPLER_NAMES) - set(sampler_names())):
        steps = {"sampler": name, "steps": 6}
        assert torch.equal(world.sample(world.looking(NEVER), **steps), world.sample(world.model, **steps)), name
        redirected = world.sample(world.looking(ALWAYS), **steps)
        if "cfg_pp" not in name:  # whose own hook on predictions sees the other prompt's rows apart
            same(redirected, world.sample(world.model, INSTEAD, **steps))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("case", ["text", "image", "mask"])
def test_draft_starts_where_the_sampler_starts(world, cfg, case):
    more = {"steps": 6, "cfg": cfg}
    if case != "text":
        more |= {"latent": torch.full((2, 4, 8, 8), 3.0), "denoise": 0.7}
    if case == "mask":
        more["noise_mask"] = torch.zeros(2, 1, 8, 8)
        more["noise_mask"][..., :4] = 1
    plain = world.sample(world.model, **more)
    model, drawn = world.looking(NEVER), []
    steering = world.steering(model)
    real = steering.draft._draft
    object.__setattr__(steering.draft, "_draft", lambda *args: drawn.append(real(*args)) or drawn[-1])
    assert torch.equal(world.sample(model, **more), plain)
    redirected = world.sample(world.looking(ALWAYS), **more)
    same(redirected, world.sample(world.model, INSTEAD, **more))
    ((draft, is_picture, _),) = drawn
    assert not is_picture and draft.shape == plain.shape and draft.isfinite().all()
    if case == "mask":  # raw latents of which the protected part is what it was
        torch.testing.assert_close(draft[..., 4:], torch.full((2, 4, 8, 4), 3.0), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(redirected[..., 4:], plain[..., 4:])
    likeness = torch.nn.functional.cosine_similarity(draft.flatten(1), plain.flatten(1))
    assert likeness.min() > 0.5


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("sampler", ["euler", "lcm"])
def test_sampling_of_few_steps_is_its_own_draft(world, sampler, steps, monkeypatch):
    how = {"sampler": sampler, "steps": steps, "cfg": 1.0}
    plain = world.sample(world.model, **how)
    told = []
    callback = lambda step, x0, x, total: told.append((step, total))  # noqa: E731
    evaluated = world.evaluations(monkeypatch)
    assert torch.equal(world.sample(world.looking(NEVER), callback=callback, **how), plain)
    assert len(evaluated) == steps, "made once, and judged before it left"
    assert told == [(step, steps) for step in range(steps)]
    same(world.sample(world.looking(ALWAYS), **how), world.sample(world.model, INSTEAD, **how))
    mixed = world.sample(suspecting(world, world.looking(), [1]), **how)
    assert torch.equal(mixed[0], plain[0]) and not torch.allclose(mixed[1], plain[1], atol=0.1)


def test_nobody_sees_a_preview_of_a_draft(world):
    pictures = []
    callback = lambda step, x0, x, total: pictures.append(step)  # noqa: E731
    world.sample(world.looking(ALWAYS), steps=3, callback=callback)
    assert pictures == [0, 1, 2], "of the redirected sampling alone"
    pictures.clear()
    world.sample(world.looking(NEVER), steps=6, callback=callback)
    assert pictures == [*range(6)]


@pytest.mark.parametrize(("suspects", "rows"), [([], 6 * 8), ([0, 2, 5], 6 * 8), ([*range(6)], 6 * 8)])
def test_suspects_cost_nothing_extra(world, suspects, rows, monkeypatch):
    model = suspecting(world, world.looking(), suspects)
    evaluated = world.evaluations(monkeypatch)
    world.sample(model, **{**MIXED, "cfg": 1.0})
    assert sum(evaluated) == 6 * 4 + rows


def test_prompts_that_cannot_stand_in_one_tensor_are_evaluated_apart(world, monkeypatch):
    """A prompt of two chunks of tokens, and one of one."""
    long = {**MIXED, "prompt": "a red star " * 8, "cfg": 1.0}
    plain, everyone = world.sample(world.model, **long), world.sample(world.looking(ALWAYS), **long)
    evaluated = world.evaluations(monkeypatch)
    mixed = world.sample(suspecting(world, world.looking(), [0, 3]), **long)
    assert sum(evaluated) == 6 * 4 + 6 * 8 + 2 * 8
    assert torch.equal(mixed[[1, 2, 4, 5]], plain[[1, 2, 4, 5]])
    same(mixed[[0, 3]], everyone[[0, 3]])


@pytest.mark.parametrize("hook", ["post cfg", "pre cfg", "wrapper"])
def test_other_nodes_work_is_for_the_innocent_only(world, hook):
    """A hook that says how many rows it saw must see what it sees without a suspect."""
    import comfy.patcher_extension

    seen = []
    model = world.model.clone()
    if hook == "post cfg":
        model.set_model_sampler_post_cfg_function(lambda a: seen.append(len(a["denoised"])) or a["denoised"] * 1.01)
    elif hook == "pre cfg":
        model.set_model_sampler_pre_cfg_function(lambda a: seen.append(len(a["conds_out"][0])) or a["conds_out"])
    else:

        def wrapper(executor, x, *args):
            seen.append(len(x))
            return executor(x, *args) * 1.01

        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "theirs", wrapper)
    plain = world.sample(model, steps=6)
    seen.clear()
    mixed = world.sample(suspecting(world, world.looking(model=model), [1]), steps=6)
    assert seen == [2] * (4 + 6)
    assert torch.equal(mixed[0], plain[0])
    same(mixed[1:], world.sample(world.model, INSTEAD, steps=6)[1:])


def test_who_is_caught_is_what_the_gate_would_say_of_the_draft(world):
    """And the draft is a sampling of four steps from the same noise, no more and no less."""
    import comfy.sample

    how, looks = {"steps": 8, "cfg": 3.0, "size": 8}, world.looks.Verdicts()
    for prompt in ("a red star", "a red circle"):
        made, plain = (
            world.sample(world.looking(CALIBRATED, looks=looks), prompt, **how),
            world.sample(world.model, prompt, **how),
        )
        noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.inference_mode():
            draft = comfy.sample.sample(
                world.model, noise, 4, 3.0, "euler", "simple", world.condition(prompt), world.condition(""), torch.zeros_like(noise),
                disable_pbar=True, seed=5,
            )  # fmt: skip
            _, report = world.gate.run_gate({"samples": draft}, world.clip, lambda: world.shipped, world.gate.GateSettings())
        found = looks.of(made)
        assert [v.draft for v in found] == report.reasons and [v.redirected for v in found] == report.blocked
        assert [v.scores for v in found] == [pytest.approx(scores, abs=0.01) for scores in report.scores]
        innocent = [i for i, v in enumerate(found) if not v.draft]
        assert torch.equal(made[innocent], plain[innocent])
        assert len(innocent) == (3 if prompt == "a red star" else 8), "at this seed"


# What belongs to Safety Guidance


def test_safety_guidance_is_known_by_its_type_and_not_by_its_name(world):
    """Under another display name it is left out of its own drafts; a reward's guidance under its name is not."""
    renamed = world.looking(ALWAYS)
    world.steering(renamed).name = "Schutz"
    same(world.sample(renamed, steps=6), world.sample(world.model, INSTEAD, steps=6))
    reward = world.rewards.avoid_reward(world.encoder, world.concepts.directions(world.clip, world.parsed(-50.0)))
    guided = world.guide_model(world.model, world.guidance.ClimbReward(reward), world.guidance.GuidanceSettings(0.5), world.window(0.0, 1.0))
    namesake = world.guide_model(world.model, world.guidance.ClimbReward(reward), world.guidance.GuidanceSettings(0.5), world.window(0.0, 1.0))
    world.steering(namesake).name = "Safety Guidance"
    drafts = []
    for model in (guided, namesake):
        verdicts = world.looks.Verdicts()
        made = world.sample(world.looking(NEVER, model=model, looks=verdicts), steps=8)
        drafts.append([verdict.scores for verdict in verdicts.of(made)])
    assert drafts[0] == drafts[1], "the reward steers the draft too"


# Two judges


def pixel_judge(world, threshold: float):
    """The pixel CLIP of Shapes World, and the same concepts."""
    with torch.inference_mode():
        clip, vae = world.shapes_world.load_pixel_clip(), world.shapes_world.load_vae()
        concepts = world.concepts.directions_for_pixels(clip, world.parsed(threshold), "tiles")
        return world.look_ahead.DraftScorer(world.pixel_clip.pixel_encoder(clip, vae), concepts)


def test_either_judge_may_suspect(world):
    how, looks = {"steps": 6}, world.looks.Verdicts()
    second = pixel_judge(world, ALWAYS)
    made = world.sample(world.looking(NEVER, second=(second,), looks=looks), **how)
    same(made, world.sample(world.model, INSTEAD, **how))
    for verdict in looks.of(made):
        assert verdict.draft.startswith("star, in pixels: log-odds") and len(verdict.scores) == 2
    both = looks.of(world.sample(world.looking(ALWAYS, second=(second,), looks=looks), **how))
    assert all("star, in pixels" in verdict.draft and "star: log-odds" in verdict.draft for verdict in both)
    neither = world.looking(NEVER, second=(pixel_judge(world, NEVER),))
    assert torch.equal(world.sample(neither, **how), world.sample(world.model, **how))


def test_second_judge_who_fails_suspects_everybody(world, monkeypatch):
    second = pixel_judge(world, NEVER)
    monkeypatch.setattr(second.encoder.vae.first_stage_model, "decode", lambda latents: latents[:, :, :0])
    how = {"steps": 6}
    same(world.sample(world.looking(NEVER, second=(second,)), **how), world.sample(world.model, INSTEAD, **how))


def test_thresholds_of_a_latent_clip_are_not_those_of_a_pixel_clip(world):
    with torch.inference_mode():
        clip = world.shapes_world.load_pixel_clip()
    with pytest.raises(ValueError, match="type thresholds"):
        world.concepts.directions_for_pixels(clip, world.shipped, "tiles")


# The second look


def test_whom_only_the_watch_suspects_is_redirected_or_reported(world):
    how = {"steps": 8}
    plain, looks = world.sample(world.model, **how), world.looks.Verdicts()
    late = world.sample(world.looking(NEVER, "redirect", ALWAYS, looks=looks, start=0.5), **how)
    same(late, world.sample(world.redirected(ALWAYS, start=0.5), **how))
    assert not torch.allclose(late, plain, atol=0.1)
    assert all(v.late.startswith("seen at step 5 of 8") and v.redirected and not v.draft for v in looks.of(late))
    reported = world.sample(world.looking(NEVER, "report", ALWAYS, looks=looks, start=0.5), **how)
    assert torch.equal(reported, plain)
    assert all(v.late and not v.redirected for v in looks.of(reported))
    ignored = world.sample(world.looking(NEVER, "ignore", ALWAYS, looks=looks, start=0.5), **how)
    assert torch.equal(ignored, plain) and not any(v.late for v in looks.of(ignored))


def test_who_was_caught_by_the_draft_is_not_reported_late(world):
    looks = world.looks.Verdicts()
    model = suspecting(world, world.looking(late="report", threshold=ALWAYS, looks=looks), [1])
    made = world.sample(model, steps=6)
    first, second = looks.of(made)
    assert first.late and not first.draft and second.draft == "item 1" and not second.late


# It fails closed


@pytest.mark.parametrize("wrong", ["judge", "draft", "drafter", "schedule"])
def test_what_cannot_be_drafted_or_judged_is_a_suspect(world, wrong, monkeypatch, caplog):
    looks = world.looks.Verdicts()
    model = world.looking(NEVER, looks=looks)
    ahead = world.steering(model).draft

    def fail(*args, **kwargs):
        raise RuntimeError("no such luck")

    expected = world.sample(world.model, INSTEAD, steps=6)
    if wrong == "judge":
        monkeypatch.setattr(world.look_ahead, "log_odds", fail)
    elif wrong == "draft":
        monkeypatch.setattr(world.look_ahead, "draft_sigmas", fail)
    elif wrong == "drafter":
        broken = world.model.clone()
        broken.set_model_unet_function_wrapper(fail)
        object.__setattr__(ahead, "drafter", broken)
    else:
        monkeypatch.setattr(world.look_ahead, "DRAFT_SCHEDULER", "no such scheduler")
    with caplog.at_level(logging.ERROR):
        same(world.sample(model, steps=6), expected)
    assert "follows the fallback prompt" in caplog.text
    monkeypatch.undo()
    verdicts = looks.of(world.sample(model, steps=6)) if wrong != "drafter" else []
    assert not any(v.draft for v in verdicts), "the next sampling knows nothing of it"


def test_draft_with_broken_numbers_is_a_suspect_alone(world):
    looks = world.looks.Verdicts()
    model = world.looking(NEVER, looks=looks)
    ahead = world.steering(model).draft
    real = ahead._draft

    def broken(*args):
        samples, *rest = real(*args)
        samples[0] = float("nan")
        return samples, *rest

    object.__setattr__(ahead, "_draft", broken)
    made, plain = world.sample(model, steps=6), world.sample(world.model, steps=6)
    assert torch.equal(made[1], plain[1]) and not torch.allclose(made[0], plain[0], atol=0.1)
    assert "could not be judged" in looks.of(made)[0].draft and looks.of(made)[0].scores == [None]


def test_a_cancel_is_not_a_verdict(world, monkeypatch):
    import comfy.model_management as mm

    before, steering = world.fingerprint(), world.looking(ALWAYS)
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        world.sample(steering, steps=6)
    mm.interrupt_current_processing(False)
    assert world.fingerprint() == before and world.steering(steering).drafted is None


def test_latents_that_are_no_images_are_refused(world):
    import comfy.samplers

    model = world.looking(NEVER)
    guider = world.guider(model)
    with pytest.raises(ValueError, match="as of video with sound"), torch.inference_mode():
        guider.sample(
            torch.zeros(1, 1, 256),
            torch.zeros(1, 1, 256),
            comfy.samplers.sampler_object("euler"),
            world.sigmas(5),
        )


def test_it_needs_another_prompt(world):
    with pytest.raises(ValueError, match="no prompt"):
        world.looking(instead=None)


# Memory, models, and what is left behind


@pytest.mark.parametrize("rows", [1, 4])
def test_drafts_run_in_chunks(world, rows, monkeypatch):
    real = world.active_items.ActiveItems.reserve

    def reserve(self, *args, **kwargs):
        made = real(self, *args, **kwargs)
        self._chunk = rows
        return made

    looks = world.looks.Verdicts()
    whole = looks.of(world.sample(world.looking(CALIBRATED, looks=looks), **{**MIXED, "cfg": 1.0}))
    monkeypatch.setattr(world.active_items.ActiveItems, "reserve", reserve)
    evaluated = world.evaluations(monkeypatch)
    parts = looks.of(world.sample(world.looking(CALIBRATED, looks=looks), **{**MIXED, "cfg": 1.0}))
    assert max(evaluated[:-8]) <= rows and sum(evaluated[:-8]) == 6 * 4
    for one, two in zip(whole, parts):
        assert one.scores == pytest.approx(two.scores, abs=0.01)


def test_drafter_of_its_own(world, monkeypatch):
    drafter = world.model.clone()
    asked = []

    def count(apply, args):
        asked.append(len(args["input"]))
        return apply(args["input"], args["timestep"], **args["c"])

    drafter.set_model_unet_function_wrapper(count)
    plain = world.sample(world.model, steps=6)
    assert torch.equal(world.sample(world.looking(NEVER, drafter=drafter, steps=2), steps=6), plain)
    assert asked == [2, 2], "at cfg 1, both items at once, and never after the draft"
    asked.clear()
    world.sample(world.looking(NEVER, drafter=drafter, steps=6), steps=3)
    assert len(asked) == 6, "what another model drafts is not the picture"


def test_a_drafter_of_another_space_is_refused_by_name(world):
    from types import SimpleNamespace

    class Flux:
        latent_channels = 16

    with pytest.raises(ValueError, match="drafter that makes Flux"):
        world.looking(drafter=SimpleNamespace(get_model_object=lambda name: Flux()))


def test_nothing_is_left_behind(world):
    import comfy.model_management as mm

    plain, before = world.sample(world.model), world.fingerprint()
    state = torch.get_rng_state()
    model = world.looking(late="redirect", threshold=0.0)
    kept = {kind: {key: len(fs) for key, fs in keys.items()} for kind, keys in model.wrappers.items()}
    models = len(mm.current_loaded_models)
    for _ in range(4):
        world.sample(model, sampler="dpmpp_2m_sde", steps=6)
    assert {kind: {key: len(fs) for key, fs in keys.items()} for kind, keys in model.wrappers.items()} == kept
    assert len(mm.current_loaded_models) <= models + 1, "no second copy of the model"
    assert world.fingerprint() == before and torch.equal(torch.get_rng_state(), state)
    assert world.steering(model).drafted is None and world.steering(model).run is None
    assert torch.equal(world.sample(world.model), plain)
    assert not world.model.wrappers and not world.model.callbacks


# Beside other nodes


def test_split_sampling_is_looked_at_in_every_part(world):
    import comfy.samplers

    def sample(model):
        sigmas, euler = world.sigmas(8), comfy.samplers.sampler_object("euler")
        half = world.sample_with(world.guider(model), sigmas=sigmas[:5])
        with torch.inference_mode():
            return world.guider(model).sample(
                torch.zeros(2, 4, 8, 8), half, euler, sigmas[4:], seed=5, disable_pbar=True
            )

    looks = world.looks.Verdicts()
    assert torch.equal(sample(world.looking(NEVER)), sample(world.model))
    made = sample(world.looking(ALWAYS, looks=looks))
    assert all(v.draft for v in looks.of(made))
    assert not torch.allclose(made, sample(world.model), atol=0.1)


def test_two_of_them_and_a_reward_on_one_model(world):
    """The drafts of either show what would be made without both, and with the reward."""
    settings = world.guidance.GuidanceSettings(0.3)
    reward = world.rewards.text_reward(world.clip.encoder(), "text", world.clip.encode_text(["a red star"])[0])
    late_only = world.window(0.45, 0.5)  # none of a draft's steps lies in it
    model = world.guide_model(world.model, world.guidance.ClimbReward(reward), settings, late_only)
    plain = world.sample(model, steps=20)
    assert not torch.equal(plain, world.sample(world.model, steps=20))
    both = world.looking(NEVER, model=world.looking(NEVER, model=model))
    assert torch.equal(world.sample(both, steps=20), plain)
    inner = world.looking(NEVER, model=world.looking(ALWAYS, model=model))
    same(world.sample(inner, steps=20), world.sample(world.model, INSTEAD, steps=20))


def test_model_under_both_kinds_of_safety_guidance(world):
    """The older one watches alone; a draft shows what comes without either."""
    how = {"steps": 6}
    watched = world.redirected(NEVER)
    assert torch.equal(world.sample(world.looking(NEVER, model=watched), **how), world.sample(world.model, **how))
    same(world.sample(world.looking(ALWAYS, model=watched), **how), world.sample(world.model, INSTEAD, **how))


@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_inside_a_search(host_env, look):
    from latent_clip.tests.search_world import SIZE, SearchWorld

    searching, world = SearchWorld(host_env), AheadWorld(host_env)
    world.model = searching.model
    plain = searching.run(look=look, guider=searching.guider(searching.model))
    never = searching.run(look=look, guider=searching.guider(world.looking(NEVER)))
    assert torch.equal(never.best["samples"], plain.best["samples"])
    assert never.report["cost_spent"] == plain.report["cost_spent"], "the search counts its own evaluations"
    always = searching.run(look=look, guider=searching.guider(world.looking(ALWAYS)))
    circles = searching.plain(searching.empty(SIZE), guider=searching.guider(searching.model, INSTEAD))
    same(always.best["samples"], circles[always.best["batch_index"]])


def test_optimize_noise_is_watched_instead(world):
    """Its images are no longer what the first noise gives, so a draft would be of something else."""
    from latent_clip.tests.host.test_guidance import optimise

    state, _ = optimise(world, world.looking(NEVER, "ignore", ALWAYS), "a red star", "a red circle", 3)
    expected, _ = optimise(world, world.redirected(ALWAYS), "a red star", "a red circle", 3)
    torch.testing.assert_close(state.first_latents, expected.first_latents, atol=1e-3, rtol=1e-3)
    assert state.rewards.tolist() == pytest.approx(expected.rewards.tolist(), abs=1e-3)
    same(state.first_latents, world.sample(world.model, INSTEAD, steps=1, cfg=1.0))
