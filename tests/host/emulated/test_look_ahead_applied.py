"""Looking ahead under every guider, ControlNets, prompts for each item, short memory, and samplers that draw noise in their own way."""

from itertools import pairwise

import pytest
import torch

from latent_clip.tests.ahead_world import AheadWorld
from latent_clip.tests.host.emulated.test_guidance_applied import dual_cfg
from latent_clip.tests.search_world import control_net

ALWAYS, NEVER = -1000.0, 1000.0
INSTEAD = "a green circle"


@pytest.fixture(scope="module")
def world(host_env):
    return AheadWorld(host_env)


def same(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=3e-3, rtol=1e-3)


def check(world, sample) -> None:
    """`sample`: (MODEL, prompt) → raw latents."""
    plain = sample(world.model, "a red star")
    assert torch.equal(sample(world.looking(NEVER), "a red star"), plain)
    same(sample(world.looking(ALWAYS), "a red star"), sample(world.model, INSTEAD))


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("cfgs", [(1.0, 1.0), (2.0, 3.0)])
def test_dual_cfg_guider(world, cfgs, steps):
    check(world, lambda model, text: world.sample_with(dual_cfg(world, model, (text, text), cfgs, False), steps=steps))


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_dual_model_guider(world, cfg):
    nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    kind = getattr(nodes, "Guider_DualModel", None)
    if kind is None:
        pytest.skip("this host has no Dual Model CFG Guider")

    def sample(model, text):
        return world.sample_with(world.guider(model, text, cfg, lambda model: kind(model, world.model)), steps=7)

    check(world, sample)


def test_basic_and_perp_neg_guider(world):
    from comfy_extras.nodes_custom_sampler import Guider_Basic
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    def basic(model, text):
        guider = Guider_Basic(model)
        guider.set_conds(world.condition(text))
        return world.sample_with(guider, steps=7)

    def perp_neg(model, text):
        guider = Guider_PerpNeg(model)
        guider.set_conds(world.condition(text), world.condition("a blue cross"), world.condition(""))
        guider.set_cfg(3.0, 1.0)
        return world.sample_with(guider, steps=7)

    check(world, basic)
    check(world, perp_neg)


def by_reward(world, model):
    """Guide Model by Reward."""
    tower = world.clip
    with torch.inference_mode():
        features = tower.encode_text(["a blue circle"])[0]
    reward = world.rewards.text_reward(tower.encoder(), "text", features)
    settings, window = world.guidance.GuidanceSettings(1.0, 0.0), world.window(0.0, 1.0)
    return world.guide_model(model, world.guidance.ClimbReward(reward), settings, window)


@pytest.mark.parametrize("kind", ["reward", "push"])
@pytest.mark.parametrize("steps", [3, 7])
def test_another_guidance_on_the_same_model_whichever_comes_first(world, steps, kind):
    """A sampling of a few steps is its own draft, but for a second Safety Guidance, which drafts leave out."""

    def guided(model):
        return by_reward(world, model) if kind == "reward" else world.guided(-1000.0, model=model)

    pushed = world.sample(guided(world.model), steps=steps)
    same(world.sample(world.looking(NEVER, model=guided(world.model)), steps=steps), pushed)
    same(world.sample(guided(world.looking(NEVER)), steps=steps), pushed)
    assert not torch.allclose(pushed, world.sample(world.model, steps=steps), atol=0.05)


def test_a_guider_that_predicts_behind_our_back_is_an_error(world):
    import comfy.samplers

    class Shortcut(comfy.samplers.CFGGuider):
        def __call__(self, x, timestep, model_options=None, seed=None):
            conds = [self.conds["positive"]]
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]

    with pytest.raises(ValueError, match=r"Shortcut.*CFG Guider"):
        world.sample_with(world.guider(world.looking(NEVER), kind=Shortcut), steps=7)


def test_controlnet_is_part_of_the_draft_and_left_with_the_prompt(world):
    hint, net = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)), control_net(world)
    (cond, options), *_ = world.condition("a red star")

    def guider(model):
        made = world.guider(model)
        control = net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
        made.set_conds([[cond, {**options, "control": control, "control_apply_to_uncond": False}]], world.condition(""))
        return made

    plain, free = world.sample_with(guider(world.model), steps=7), world.sample_with(world.guider(world.model), steps=7)
    assert not torch.allclose(plain, free, atol=0.1)
    looks = world.looks.Verdicts()
    made = world.sample_with(guider(world.looking(NEVER, looks=looks)), steps=7)
    assert torch.equal(made, plain)
    without = world.sample_with(world.guider(world.looking(NEVER, looks=looks)), steps=7)
    assert looks.of(made)[0].scores != looks.of(without)[0].scores, "drafted with it"
    same(
        world.sample_with(guider(world.looking(ALWAYS)), steps=7),
        world.sample_with(world.guider(world.model, INSTEAD), steps=7),
    )


def test_every_item_is_drafted_under_its_own_prompt_and_noise(world):
    """Also in another order, where its verdict goes with it."""
    texts = ["a red star", "a blue circle", "a green star", "a red square"]
    together = torch.cat([world.condition(text)[0][0] for text in texts])
    looks = world.looks.Verdicts()

    def scores(order):
        guider = world.guider(world.looking(NEVER, looks=looks))
        guider.set_conds([[together[order], {}]], world.condition(""))
        noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(5))[order]
        with torch.inference_mode():
            import comfy.samplers

            euler = comfy.samplers.sampler_object("euler")
            made = guider.sample(noise, torch.zeros_like(noise), euler, world.sigmas(7), seed=5, disable_pbar=True)
        return [verdict.scores[0] for verdict in looks.of(made)]

    first, turned = scores([0, 1, 2, 3]), scores([3, 0, 2, 1])
    assert [turned[i] for i in (1, 3, 2, 0)] == pytest.approx(first, abs=0.02)
    assert len({round(score, 2) for score in first}) == 4


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("MPS backend out of memory")])
def test_drafts_that_do_not_fit_are_made_in_parts(world, monkeypatch, error):
    """The draft's own reservation may be too hopeful; the sampling itself is the host's own affair."""
    real, sizes = world.model.model.apply_model, []
    looks = world.looks.Verdicts()
    whole = looks.of(world.sample(world.looking(NEVER, looks=looks), size=3, cfg=1.0, steps=6))

    def apply(x, *args, **kwargs):
        sizes.append(len(x))
        if len(x) > 1 and len(sizes) < 14:
            raise error
        return real(x, *args, **kwargs)

    monkeypatch.setattr(world.model.model, "apply_model", apply)
    parts = looks.of(world.sample(world.looking(NEVER, looks=looks), size=3, cfg=1.0, steps=6))
    assert sizes[0] == 3 and set(sizes[1:13]) == {1} and not any(verdict.draft for verdict in parts)
    assert [v.scores[0] for v in parts] == pytest.approx([v.scores[0] for v in whole], abs=0.01)


def test_judge_who_runs_out_of_memory_looks_at_one_draft_at_a_time(world, monkeypatch):
    tower, sizes, looks = world.clip.image.model, [], world.looks.Verdicts()
    forward = tower.forward

    def run_out(x):
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("x")
        return forward(x)

    monkeypatch.setattr(tower, "forward", run_out)
    made = world.sample(world.looking(NEVER, looks=looks), size=3, steps=6)
    assert sizes[:4] == [3, 1, 1, 1] and not any(verdict.draft for verdict in looks.of(made))


def test_noise_of_the_hosts_own_dice_is_not_touched(world):
    """A sampler that takes its noise from the global generator gets what it would have got."""
    import comfy.samplers

    def dice(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for here, there in pairwise(sigmas):
            x0 = model(x, here * x.new_ones(len(x)), **extra_args)
            x = x0 + there * torch.randn_like(x)
        return x

    sampler = comfy.samplers.KSAMPLER(dice)

    def sample(model, steps):
        torch.manual_seed(11)
        return world.sample_with(world.guider(model), sampler, steps), torch.rand(3)

    for steps in (3, 7):  # a draft of its own, and one by another sampler
        (looked, after), (plain, next_dice) = sample(world.looking(NEVER), steps), sample(world.model, steps)
        assert torch.equal(looked, plain) and torch.equal(after, next_dice)


def test_search_that_dropped_some_drafts_only_the_others(host_env, monkeypatch):
    from latent_clip.tests.search_world import SIZE, SearchWorld

    searching, world = SearchWorld(host_env), AheadWorld(host_env)
    world.model = searching.model
    asked = []
    real = world.look_ahead.log_odds
    monkeypatch.setattr(
        world.look_ahead, "log_odds", lambda samples, *a, **k: asked.append(len(samples)) or real(samples, *a, **k)
    )
    evaluated = world.evaluations(monkeypatch)
    guider = searching.guider(world.looking(NEVER), cfg=1.0)
    found = searching.run(look="drafts", guider=guider, draft_steps=3)
    kept = len(found.report["rounds"][0]["kept"])
    assert kept < SIZE and asked == [SIZE, SIZE]
    looked_at = sum(evaluated) - found.report["cost_spent"]
    assert looked_at == 4 * SIZE + 4 * kept, "a draft of each candidate, and one of each that is sampled in full"
