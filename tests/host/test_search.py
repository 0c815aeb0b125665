"""Search Best Images in the real host, on Shapes World: what it keeps, what that costs, and that a winner is what a stock sampler makes."""

import pytest
import torch

from latent_clip.tests.search_world import SIZE, SearchWorld, control_net, winners_are_of_the_full_batch


@pytest.fixture(scope="module")
def world(host_env):
    return SearchWorld(host_env)


def stock_samplers() -> list[str]:
    """The names that every supported host has; the others are found in a test below."""
    return [
        "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms",
        "dpm_fast", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp",
        "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v", "deis",
        "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp",
        "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim",
        "uni_pc", "uni_pc_bh2",
    ]  # fmt: skip


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("sampler", stock_samplers())
def test_winner_is_what_the_sampler_makes_of_the_full_batch_and_of_it_alone(world, sampler, cfg):
    guider, sigmas = world.guider(world.model, "a red circle", cfg=cfg), world.sigmas(8)
    found = world.run(sampler, guider=guider, look="cuts", sigmas=sigmas)
    report = found.report
    assert torch.equal(sigmas, world.sigmas(8)), "uni_pc of the host writes into its sigmas"
    with torch.inference_mode():
        scores = world.text_reward(found.best["samples"].float()).tolist()
    assert [report["rounds"][-1]["scores"][str(i)] for i in report["winners"]] == pytest.approx(scores, abs=1e-3)
    assert [len(one["kept"]) for one in report["rounds"]][-1] == 2
    assert len(report["rounds"]) > 2
    if sampler != "dpm_fast":  # which asks in groups of three
        assert report["cost_spent"] == report["cost_plan"]
    assert report["cost_spent"] < 0.75 * report["cost_plain"]
    winners_are_of_the_full_batch(world, found, sampler=sampler, guider=guider)
    if sampler not in world.evaluations.NOISE_OF_THEIR_OWN:
        for place, index in enumerate(found.best["batch_index"]):
            alone = world.plain({**world.empty(1), "batch_index": [index]}, sampler=sampler, guider=guider)
            torch.testing.assert_close(found.best["samples"][place : place + 1], alone, atol=2e-3, rtol=1e-3)


def test_no_stock_sampler_is_forgotten(world):
    import comfy.samplers

    for name in sorted(set(comfy.samplers.SAMPLER_NAMES) - set(stock_samplers()) - {"dpm_adaptive"}):
        found = world.run(name, look="cuts")
        assert found.report["cost_spent"] == found.report["cost_plan"], name
        winners_are_of_the_full_batch(world, found, sampler=name)


@pytest.mark.parametrize("look", ["drafts", "cuts", "both"])
def test_sampler_with_one_step_size_for_all_is_refused_by_name(world, look):
    with pytest.raises(ValueError, match="dpm_adaptive"):
        world.run("dpm_adaptive", look=look)


@pytest.mark.parametrize("look", ["drafts", "cuts", "both"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "heun"])
def test_every_look_gives_winners_of_the_full_batch(world, look, sampler):
    found = world.run(sampler, look=look, steps=12)
    report = found.report
    names = [one["name"] for one in report["rounds"]]
    assert ("draft" in names) == (look != "cuts") and any("%" in name for name in names) == (look != "drafts")
    assert names[-1] == "final" and report["rounds"][-1]["kept"] == report["winners"]
    assert report["cost_spent"] == report["cost_plan"] < report["cost_plain"]
    winners_are_of_the_full_batch(world, found, sampler=sampler, steps=12)
    assert len(found.best["samples"]) == 2 and len(found.rest["samples"]) == SIZE - 2
    assert sorted([*found.best["batch_index"], *found.rest["batch_index"]]) == [*range(SIZE)]
    assert found.rest["samples"].isfinite().all()
    scores = report["rounds"][-1]["scores"]
    assert [scores[str(i)] for i in report["winners"]] == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_image_to_change_with_a_mask(world, look):
    """A mask for each candidate, and a part of the schedule: outside of its mask an image stays what it was."""
    latent = {
        "samples": torch.full((SIZE, 4, 8, 8), 3.0),
        "noise_mask": torch.zeros(SIZE, 1, 8, 8),
        "marks": [*"abcdef"],
    }
    for item in range(SIZE):
        latent["noise_mask"][item, ..., : item + 1] = 1
    sigmas, before = world.sigmas(16)[6:], latent["samples"].clone()
    found = world.run(latent=latent, look=look, sigmas=sigmas)
    assert torch.equal(latent["samples"], before), "the caller's latent is its own"
    full = world.plain(latent, sigmas=sigmas)
    for place, index in enumerate(found.best["batch_index"]):
        torch.testing.assert_close(found.best["samples"][place], full[index], atol=2e-3, rtol=1e-3)
        assert torch.equal(found.best["noise_mask"][place], latent["noise_mask"][index])
        assert found.best["marks"][place] == latent["marks"][index]
        torch.testing.assert_close(
            found.best["samples"][place, ..., index + 1 :], latent["samples"][index, ..., index + 1 :]
        )


@pytest.mark.parametrize("at_once", [0, 1, 4])
@pytest.mark.parametrize("look", ["drafts", "cuts"])
@pytest.mark.parametrize("prompts", [SIZE, 2, 4])
def test_conditioning_with_an_entry_for_each_item(world, prompts, look, at_once):
    """Also with fewer entries than items, which the host repeats over the batch."""
    texts = ["a red circle", "a blue square", "a green cross", "a red triangle", "a blue circle", "a green circle"]
    guider = world.guider(world.model)
    _, options = world.condition("a red circle")[0]
    several = torch.cat([world.condition(text)[0][0] for text in texts[:prompts]])
    pooled = {
        key: torch.cat([world.condition(text)[0][1][key] for text in texts[:prompts]])
        for key, value in options.items()
        if isinstance(value, torch.Tensor)
    }
    guider.set_conds([[several, {**options, **pooled}]], world.condition(""))
    found = world.run(guider=guider, look=look, images_at_once=at_once)
    winners_are_of_the_full_batch(world, found, guider=guider)


@pytest.mark.parametrize("hints", [1, 2, SIZE])
@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_controlnet_with_a_hint_for_each_item(world, look, hints):
    net, plain_condition = control_net(world), world.condition
    hint = torch.rand(hints, 3, 64, 64, generator=torch.Generator().manual_seed(4))

    def guider():
        cond, options = plain_condition("a red circle")[0]
        second = net.copy().set_cond_hint(hint.flip(0), 0.5, (0.0, 0.7))
        control = net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0)).set_previous_controlnet(second)
        made = world.guider(world.model)
        made.set_conds([[cond, {**options, "control": control, "control_apply_to_uncond": True}]], plain_condition(""))
        return made

    found = world.run(guider=guider(), look=look, images_at_once=4)
    winners_are_of_the_full_batch(world, found, guider=guider())
    without = world.plain(world.empty())
    assert not torch.allclose(world.plain(world.empty(), guider=guider()), without, atol=0.1), (
        "the ControlNet must matter"
    )


@pytest.mark.parametrize("look", ["drafts", "cuts"])
@pytest.mark.parametrize("kind", ["climb", "redirect"])
def test_guidance_on_the_model(world, kind, look):
    """Every step of it sees the whole batch, so a winner is what the guided model makes of the full batch."""
    how = world.guided if kind == "climb" else world.redirected
    guider = world.guider(how(threshold=-1000), "a red star")
    found = world.run(guider=guider, look=look, images_at_once=4)
    winners_are_of_the_full_batch(world, found, guider=guider)
    assert not torch.allclose(world.plain(world.empty(), guider=guider), world.plain(world.empty()), atol=0.1)


def test_prompt_that_is_left_early_costs_nothing_for_dropped_candidates(world):
    """Safety Guidance asks the model again for what it suspects: not for what was dropped."""
    guider = world.guider(world.redirected(threshold=-1000), "a red star")
    rows = []
    model = guider.model_patcher.model
    whole, model.apply_model = model.apply_model, lambda x, *a, **k: rows.append(len(x)) or whole(x, *a, **k)
    try:
        world.run(guider=guider, look="cuts", cuts="20% → 2")
    finally:
        del model.apply_model
    assert max(rows[:4]) == 2 * SIZE and max(rows[-4:]) == 2 * 2


def test_lora_and_hooks_on_the_prompt(world):
    import comfy.hooks

    key = next(k for k in world.model.model.state_dict() if k.endswith("input_blocks.1.0.in_layers.2.weight"))
    weight = world.model.model.state_dict()[key]
    patch = {key: (0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)),)}
    lora = world.model.clone()
    lora.add_patches(patch)
    hooks = comfy.hooks.HookGroup()
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=1.0)
    hook.weights, hook.need_weight_init = patch, False
    hooks.add(hook)
    hooks.set_keyframes_on_hooks(comfy.hooks.HookKeyframeGroup())
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.2, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    hooked = world.guider(world.model)
    conds = [[cond, {**options, "hooks": hooks}] for cond, options in world.condition("a red circle")]
    hooked.set_conds(conds, world.condition(""))
    plain = world.plain(world.empty())
    for guider in (world.guider(lora, "a red circle"), hooked):
        for look in ("drafts", "cuts"):
            winners_are_of_the_full_batch(world, world.run(guider=guider, look=look), guider=guider)
        assert not torch.allclose(world.plain(world.empty(), guider=guider), plain, atol=0.05)


def test_step_skipping_node_does_not_mix_candidates(world):
    """EasyCache keeps what it knows by prompt: the rows that go on have ids of their own, and no one's answer is another's."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    with torch.inference_mode():
        eager = EasyCacheNode.execute(world.model, 0.0, 0.15, 0.95, False)[0]
        skipping = EasyCacheNode.execute(world.model, 0.3, 0.15, 0.95, False)[0]
    found = world.run(guider=world.guider(eager, "a red circle"), look="cuts", images_at_once=2)
    winners_are_of_the_full_batch(world, found)
    assert world.run(guider=world.guider(skipping, "a red circle"), look="cuts").best["samples"].isfinite().all()


def test_unwatched_candidate_with_nan_is_dropped_and_reported(world):
    """One candidate starts from NaN: the others are what they are without it."""

    class Broken:
        seed = 5

        def generate_noise(self, latent):
            noise = world.noise().generate_noise(latent)
            noise[3] = float("nan")
            return noise

    import comfy.samplers

    for look in ("drafts", "cuts", "both"):
        with torch.inference_mode():
            found = world.search.run_search(
                Broken(), world.guider(world.model, "a red circle"), comfy.samplers.sampler_object("dpmpp_2m"),
                world.sigmas(12), {"samples": torch.zeros(1, 4, 8, 8)}, world.text_reward,
                world.settings_of_search(candidates=SIZE, keep=2, look=look, budget=0.6),
            )  # fmt: skip
        first = found.report["rounds"][0]
        assert first["scores"]["3"] is None and 3 not in first["kept"] and 3 not in found.best["batch_index"]
        assert [i for i, score in first["scores"].items() if score is None] == ["3"]
        winners_are_of_the_full_batch(world, found, sampler="dpmpp_2m", steps=12)
        assert found.report["thumbnails"].keys() == {0, 1, 2, 4, 5}


def test_no_candidate_that_can_be_judged_is_an_error(world):
    latent = {"samples": torch.full((1, 4, 8, 8), float("nan"))}
    for look in ("drafts", "cuts"):
        with pytest.raises(ValueError, match="no candidate that could be scored"):
            world.run(latent=latent, look=look)


def test_winner_is_made_again_alone_by_a_stock_sampler(world):
    """From seed and batch_index, with the latent that Search hands on, also where the batch had indices of its own."""
    for latent in (
        world.empty(1),
        {**world.empty(1), "batch_index": [7]},
        {**world.empty(), "batch_index": [9, 3, 4, 40, 2, 0]},
    ):
        found = world.run("dpmpp_2m", latent=latent, look="drafts", steps=12)
        for place, index in enumerate(found.best["batch_index"]):
            alone = {"samples": torch.zeros(1, 4, 8, 8), "batch_index": [index]}
            again = world.plain(alone, sampler="dpmpp_2m", steps=12)
            torch.testing.assert_close(again, found.best["samples"][place : place + 1], atol=2e-3, rtol=1e-3)
            noise = found.noise.generate_noise(alone)
            assert torch.equal(noise, world.noise().generate_noise(alone))
    assert found.noise.seed == 5
    with pytest.raises(ValueError, match="searched"):
        found.noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8), "batch_index": [1000]})


def test_another_model_drafts(world):
    """At cfg 1, and the winners are the guider's own all the same."""
    cfgs = []
    drafter = world.model.clone()
    drafter.set_model_sampler_post_cfg_function(lambda args: cfgs.append(args["cond_scale"]) or args["denoised"])
    found = world.run(drafter=drafter, steps=12, draft_steps=4)
    assert cfgs == [1.0] * (2 * world.item_check.STEPS + 4), "the check of a patched drafter, and the drafts"
    winners_are_of_the_full_batch(world, found, steps=12)


def test_noise_that_is_left_for_another_sampler(world):
    """The high half of a split schedule: the winners keep their noise, and are judged by what they predict."""
    sigmas = world.sigmas(12)[:9]
    found = world.run(sigmas=sigmas)
    winners_are_of_the_full_batch(world, found, sigmas=sigmas)
    assert all(score is not None for score in found.report["rounds"][-1]["scores"].values())


def test_variety_keeps_another_group(world):
    def kept(variety: float) -> list[int]:
        return world.run(candidates=12, keep=3, variety=variety, steps=12).report["rounds"][0]["kept"]

    assert kept(0.0) != kept(3.0)


def test_nothing_of_a_search_is_left_on_the_model(world):
    guider = world.guider(world.model, "a red circle")
    before = world.plain(world.empty(), guider=guider)
    options = {**guider.model_options}
    for look in ("drafts", "cuts"):
        world.run(guider=guider, look=look)
    assert guider.model_options == options
    assert not world.model.wrappers and not world.model.additional_models
    assert torch.equal(world.plain(world.empty(), guider=guider), before)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": SIZE}, "keep = 6 of 6"),
        ({"steps": 1}, "Select Best Latents"),
        ({"sigmas": torch.tensor([])}, "0 steps"),
        ({"sigmas": torch.tensor([1.0])}, "0 steps"),
        ({"look": "cuts", "cuts": "20% → 3, 40% → 5"}, "fewer than 3"),
        ({"look": "cuts", "cuts": "100% → 3"}, "outside"),
        ({"latent": {"samples": torch.zeros(0, 4, 8, 8)}}, "empty batch"),
        ({"latent": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, "expected images"),
        ({"steps": 4}, "save nothing"),
    ],
)
def test_what_cannot_be_searched(world, wrong, says):
    with pytest.raises(ValueError, match=says):
        world.run(**wrong)


def test_same_noise_for_all_is_refused(world):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise

    with pytest.raises(ValueError, match="Random Noise"), torch.inference_mode():
        world.search.run_search(
            Noise_EmptyNoise(), world.guider(world.model), comfy.samplers.sampler_object("euler"), world.sigmas(8),
            world.empty(1), world.text_reward, world.settings_of_search(candidates=SIZE),
        )  # fmt: skip


def test_a_drafter_of_another_space_is_refused_by_name(world):
    from types import SimpleNamespace

    class Flux:
        latent_channels = 16

    with pytest.raises(ValueError, match=r"Flux.*ShapesWorldLatent"):
        world.run(drafter=SimpleNamespace(get_model_object=lambda name: Flux()))


@pytest.mark.parametrize("scheduler", ["simple", "normal", "karras", "sgm_uniform", "beta", "exponential"])
@pytest.mark.parametrize("first", [1.0, 0.4])
@pytest.mark.parametrize("steps", [3, 5])
def test_schedule_of_a_draft(world, scheduler, first, steps):
    """It has as many steps as were asked for, from where the sampling starts to the end."""
    sampling = world.model.get_model_object("model_sampling")
    start = first * float(sampling.sigma_max)
    sigmas = world.search.draft_sigmas(sampling, scheduler, steps, start)
    assert len(sigmas) == steps + 1 and float(sigmas[0]) == pytest.approx(start) and sigmas[-1] == 0
    assert all(a > b for a, b in zip(sigmas.tolist(), sigmas.tolist()[1:]))


def test_judge_that_reads_the_noise_level_is_told(world):
    """By cuts, and by both kinds of guidance; clean drafts and finished images are not predictions."""
    told, tower = [], world.clip.image.model
    tower.reads_noise_level = True
    forward = tower.forward
    tower.forward = lambda x, noise_level=None: told.append(noise_level) or forward(x)
    try:
        world.run(look="cuts", steps=12, cuts="20% → 3")
        assert [level is None for level in told] == [False, True] and 0 < told[0] <= 1
        told.clear()
        world.run(look="drafts", steps=12)
        assert told == [None, None]
        for how in (world.guided, world.redirected):
            told.clear()
            world.sample(how(threshold=1000), steps=4)
            assert len(told) == 4 and told == sorted(told, reverse=True) and None not in told
    finally:
        del tower.reads_noise_level, tower.forward


def test_reward_on_pixels_decodes_at_the_looks_only(world):
    from latent_clip.tests.search_world import pixel_reward

    reward, decoded = pixel_reward(world)
    found = world.run(reward=reward, steps=12, look="cuts", cuts="50% → 3")
    assert decoded == [SIZE, 3]
    winners_are_of_the_full_batch(world, found, steps=12)
    decoded.clear()
    world.run(reward=reward, steps=12)
    assert decoded == [SIZE, 2]


def test_rewards_on_latents_never_decode(world, monkeypatch):
    import comfy.sd

    monkeypatch.setattr(comfy.sd.VAE, "decode", lambda *args, **kwargs: pytest.fail("decoded"))
    for look in ("drafts", "cuts"):
        world.run(look=look)
