"""Every node of the host that patches a MODEL, under Search Best Images and in the drafts of Safety Guidance."""

import asyncio

import pytest
import torch

from latent_clip.tests.ahead_world import AheadWorld
from latent_clip.tests.host.emulated import test_patching_nodes as reno
from latent_clip.tests.host.emulated.test_patching_nodes import patched
from latent_clip.tests.search_world import SearchWorld, winners_are_of_the_full_batch

SETTINGS = {**{name: settings for name, (settings, _) in reno.REFUSED.items()}, **reno.WORKS}
REFUSED = {"LazyCache", "SelfAttentionGuidance"}
# One number of theirs is of the whole batch, so that dropped images change the others a little: named in the help.
OF_THE_WHOLE_BATCH = {"EasyCache", "Mahiro"}
WORKS = [*sorted(set(SETTINGS) - REFUSED - OF_THE_WHOLE_BATCH), "APG with momentum"]
SETTINGS["APG with momentum"] = reno.REFUSED["APG"][0]
LOOKS = [{"look": "drafts"}, {"look": "cuts", "images_at_once": 2}]
STEPS = 12


@pytest.fixture(scope="module")
def world(host_env):
    import nodes

    asyncio.new_event_loop().run_until_complete(nodes.init_builtin_extra_nodes())
    return SearchWorld(host_env)


def guider(world, name: str, settings: dict | None = None):
    model = patched(world, name.removesuffix(" with momentum"), SETTINGS[name] if settings is None else settings)
    return world.guider(model, "a red circle")


@pytest.mark.parametrize("name", WORKS)
def test_winner_is_what_the_patched_model_makes_of_the_full_batch(world, name):
    for look in LOOKS:
        found = world.run(guider=guider(world, name), steps=STEPS, **look)
        winners_are_of_the_full_batch(world, found, guider=guider(world, name), steps=STEPS)


@pytest.mark.parametrize("look", LOOKS, ids=["drafts", "cuts"])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_by_name_before_anything_is_sampled(world, name, look):
    runs = []
    made = guider(world, name)
    made.model_patcher.set_model_sampler_post_cfg_function(lambda args: runs.append(1) or args["denoised"])
    with pytest.raises(ValueError, match=rf"{name}.*Bypass it for Search Best Images"):
        world.run(guider=made, steps=STEPS, **look)
    assert len(runs) <= 9, "no more than the check"


@pytest.mark.parametrize("threshold", [0.2, 0.01])
def test_lazycache_is_refused_whatever_its_settings(world, threshold):
    settings = {"reuse_threshold": threshold, "start_percent": 0.9, "end_percent": 0.95, "verbose": False}
    with pytest.raises(ValueError, match="LazyCache"):
        world.run(guider=guider(world, "LazyCache", settings), steps=STEPS)


@pytest.mark.parametrize("look", LOOKS, ids=["drafts", "cuts"])
@pytest.mark.parametrize("name", sorted(OF_THE_WHOLE_BATCH))
def test_what_asks_for_a_number_of_the_whole_batch_stays_near_its_images(world, name, look):
    found = world.run(guider=guider(world, name), steps=STEPS, **look)
    full = world.plain(world.empty(), guider=guider(world, name), steps=STEPS)[found.best["batch_index"]]
    assert (found.best["samples"] - full).square().mean().sqrt() < 0.15 * full.std()
    assert f"{name}" in help_of("Search"), "a user must know"


def help_of(node: str) -> str:
    from latent_clip.tools.comfy_server import PACK_ROOT

    return (PACK_ROOT / "js" / "docs" / f"LatentCLIP{node}.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------- patches of other packs, by what they do


def residual_cache(world):
    """As TeaCache and its kin: the last answer to each kind of prompt, given again where the input has hardly changed."""
    kept: dict = {}

    def function(apply_model, args):
        key = (tuple(args["cond_or_uncond"]), args["input"].shape)
        time, output = kept.get(key, (None, None))
        now = float(args["timestep"][0])
        if time is not None and 0 < time - now < 0.05 * time:
            return output
        output = apply_model(args["input"], args["timestep"], **args["c"])
        kept[key] = (now, output)
        return output

    model = world.model.clone()
    model.set_model_unet_function_wrapper(function)
    return model


def prediction_skipper(world):
    """Another pack's LazyCache: every third prediction is the one before."""
    kept = []

    def wrapper(executor, x, timestep, model_options, seed=None):
        kept.append(kept[-1] if len(kept) % 3 == 2 else executor(x, timestep, model_options, seed))
        return kept[-1]

    model = world.model.clone()
    model.add_wrapper_with_key("predict_noise", "skipper", wrapper)
    return model


def shape_keeper(world):
    """A hook on the batch that adds what the network was last asked."""
    seen = []

    def function(apply_model, args):
        seen[:] = [args["input"]]
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = world.model.clone()
    model.set_model_unet_function_wrapper(function)
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 0.1 * seen[0][: len(args["denoised"])])
    return model


@pytest.mark.parametrize("make", [residual_cache, prediction_skipper, shape_keeper], ids=lambda make: make.__name__)
def test_what_mixes_images_is_refused_by_what_it_does(world, make):
    for look in LOOKS:
        with pytest.raises(ValueError, match=rf"{make.__name__}.*Bypass it for Search Best Images"):
            world.run(guider=world.guider(make(world), "a red circle"), steps=STEPS, **look)


def test_drafter_is_checked_too(world):
    with pytest.raises(ValueError, match="residual_cache"):
        world.run(drafter=residual_cache(world), steps=STEPS, draft_steps=4)


def test_patch_that_adds_noise_of_its_own_is_no_mixture(world):
    model = world.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + torch.randn_like(args["denoised"]))
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    world.item_check.check_items(world.guider(model), None, *two_rows(), seed=5)
    assert torch.equal(torch.rand(2), expected), "the check leaves the global generator where it was"


def two_rows() -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return noise, torch.zeros_like(noise)


def test_plain_model_pays_for_no_check_and_a_patched_one_says_its_price(world):
    assert world.run(steps=STEPS).report["cost_check"] == 0
    assert world.run(steps=STEPS, guider=guider(world, "FreeU")).report["cost_check"] == 12


def test_two_rows_that_have_no_room_are_checked_one_by_one(world, monkeypatch):
    real, asked = world.model.model.apply_model, []

    def apply(x, *args, **kwargs):
        asked.append(len(x))
        if len(x) > 2:  # positive and negative prompt of one row
            raise torch.OutOfMemoryError("out of memory")
        return real(x, *args, **kwargs)

    monkeypatch.setattr(world.model.model, "apply_model", apply)
    world.item_check.check_items(guider(world, "FreeU"), None, *two_rows(), seed=5)
    assert asked == [4] + 9 * [2]
    with pytest.raises(ValueError, match="SelfAttentionGuidance"):
        world.item_check.check_items(guider(world, "SelfAttentionGuidance"), None, *two_rows(), seed=5)


# ------------------------------------------------------------------------- drafts of Safety Guidance


@pytest.fixture(scope="module")
def ahead(host_env, world):
    return AheadWorld(host_env)


@pytest.mark.parametrize("name", WORKS + sorted(REFUSED) + sorted(OF_THE_WHOLE_BATCH))
def test_draft_of_safety_guidance_is_what_the_patched_model_drafts_of_the_batch(ahead, name, monkeypatch):
    """Also where there is room for one image only: a patched model is asked about all at once, as the sampler asks it."""
    looks = ahead.looks.Verdicts()

    def scores() -> list[float]:
        made = patched(ahead, name.removesuffix(" with momentum"), SETTINGS[name])
        ahead_of = ahead.looking(1000.0, looks=looks, model=made)
        return [verdict.scores[0] for verdict in looks.of(ahead.sample(ahead_of, size=3, steps=7))]

    plenty = scores()
    monkeypatch.setattr(ahead.active_items, "room_beside", lambda *_: 0)
    assert scores() == pytest.approx(plenty, abs=1e-3)
