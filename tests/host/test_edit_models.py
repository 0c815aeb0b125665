"""Reference latents (Flux Kontext, FLUX.2, Qwen-Image-Edit) and ControlNets on small transformers, by the stock nodes."""

import importlib
import re

import pytest
import torch

from latent_clip.tests.host.test_families import JUDGES, Lab

KINDS = ("flux-dev", "flux2", "qwen-image")


def same(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=2e-3 * two.std().item(), rtol=1e-2)


def winners_are_of_the_stock_batch(lab, judge: str, look: str) -> None:
    found = lab.search(lab.reward(judge), look=look, cuts="50% → 1" if look == "cuts" else "")
    same(found.best["samples"], lab.plain(lab.empty(3), 8)[found.best["batch_index"]])


def first_iteration_is_stock(lab, judge: str) -> None:
    stock = lab.plain(lab.empty(1), 1)
    results = [lab.reno(lab.reward(judge), memory=memory) for memory in ("fast", "low")]
    for state, _used in results:
        torch.testing.assert_close(state.first_latents, stock, atol=2e-4 * stock.std().item(), rtol=1e-3)
        assert state.iterations[0].gradient_norms[0] > 0 and state.rewards.item() >= state.iterations[0].rewards[0]
    torch.testing.assert_close(results[0][0].noise, results[1][0].noise, atol=1e-5, rtol=1e-4)
    assert results[1][1].checkpointed_blocks >= lab.family.blocks


def rise_is_the_gradient(lab, judge: str) -> None:
    """The reward of the stock sampler's image rises along the step as the gradient says."""
    reward = lab.reward(judge, weight=100.0)
    tiny = {"optimizer": "sgd", "prior_weight": 0.0, "gradient_clip": 1e9, "iterations": 2}
    norm = lab.reno(reward, learning_rate=1e-9, **tiny)[0].iterations[0].gradient_norms[0]
    rate = 0.02 / norm**2
    state, _ = lab.reno(reward, learning_rate=rate, **tiny)
    noise = lab.noise().generate_noise({"samples": lab.module("host.scorers.latents").latents_for(lab.model, lab.empty(1))})
    step = state.noise.cpu() - noise

    def value(at: torch.Tensor) -> float:
        latents = lab.plain(lab.empty(1), 1, noise=lab.module("host.sampling.noise").OptimizedNoise(at, seed=5))
        with torch.inference_mode():
            return reward.weigh(lab.module("host.scorers.scoring").score_frames(reward, latents)).item()

    assert (value(noise + step) - value(noise - step)) / 2 == pytest.approx(rate * norm**2, rel=0.1)


def without_guidance(prompt: list) -> list:
    """`instead` takes the Flux Guidance over."""
    ((text, options),) = prompt
    return [[text, {key: value for key, value in options.items() if key != "guidance"}]]


@pytest.fixture(scope="module", params=KINDS)
def editing(request, host_env, tmp_path_factory):
    """A model whose prompt holds two reference images, of which one is not square."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    lab = Lab(host_env, request.param, tmp_path_factory.mktemp("editing"))
    channels, *rest = lab.family.latent
    generator = torch.Generator().manual_seed(3)
    before = lab.plain(lab.empty(), 3)
    with torch.inference_mode():
        for shape in ((1, channels, *rest[:-2], 8, 8), (1, channels, *rest[:-2], 8, 12)):
            reference = {"samples": torch.randn(shape, generator=generator)}
            (lab.positive,) = ReferenceLatent.execute(lab.positive, reference).args
            (lab.other_with_reference,) = ReferenceLatent.execute(lab.other, reference).args
    assert not torch.equal(lab.plain(lab.empty(), 3), before), "the model sees the references"
    return lab


@pytest.mark.parametrize("judge", JUDGES)
def test_optimize_noise_with_references_starts_at_the_stock_image(editing, judge):
    first_iteration_is_stock(editing, judge)


def test_its_gradient_with_references_equals_finite_differences(editing):
    rise_is_the_gradient(editing, "latent")


@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_search_with_references_finds_winners_of_the_stock_batch(editing, look):
    winners_are_of_the_stock_batch(editing, "latent", look)


def test_guidance_with_references_steers_and_leaves_alone(editing):
    plain = editing.plain(editing.empty(), 3)
    off, on = (editing.guider(editing.guided(editing.reward("latent"), strength)) for strength in (0.0, 0.5))
    assert torch.equal(editing.plain(editing.empty(), 3, off), plain)
    steered = editing.plain(editing.empty(), 3, on)
    assert steered.isfinite().all() and not torch.equal(steered, plain)


@pytest.mark.parametrize("references", [False, True])
def test_instead_of_an_edit_is_what_its_own_prompt_gives(editing, references):
    """Without references of its own nothing of the first prompt's is left; with, the edit goes on from them."""
    instead = editing.other_with_reference if references else editing.other
    with torch.inference_mode():
        innocent, guilty = (editing.safe("latent", threshold, without_guidance(instead)) for threshold in (1000, -1000))
    plain = editing.plain(editing.empty(), 3)
    assert torch.equal(editing.plain(editing.empty(), 3, editing.guider(innocent)), plain)
    redirected = editing.plain(editing.empty(), 3, editing.guider(guilty))
    same(redirected, editing.following(instead, 3))
    assert not torch.equal(redirected, plain)


def test_look_ahead_with_references_redirects_the_suspect_alone(editing):
    """One prompt with references beside one without cannot be one evaluation; each item is still what it would be alone."""
    instead = without_guidance(editing.other)
    plain = editing.plain(editing.empty(), 3)
    innocent, mixed = (editing.looking("latent", 1000, instead, suspects=suspects) for suspects in (None, [1]))
    assert torch.equal(editing.plain(editing.empty(), 3, editing.guider(innocent)), plain)
    made = editing.plain(editing.empty(), 3, editing.guider(mixed))
    assert torch.equal(made[0], plain[0])
    same(made[1], editing.following(editing.other, 3)[1])


def test_memory_is_counted_for_the_references_too(editing, monkeypatch):
    """64 cells of the image, 64 and 96 of its references: fewer candidates fit, and more is asked for."""
    rows, reservation = editing.module("host.sampling.active_items"), editing.module("host.sampling.reservation")
    references = {"positive": [{"reference_latents": editing.positive[0][1]["reference_latents"]}], "negative": [{}]}
    shape, model = (1, *editing.family.latent), editing.model
    assert reservation.prompt_factor(model.model, shape, {"positive": [{}], "negative": None}) == 1
    assert reservation.prompt_factor(model.model, shape, references) == pytest.approx((64 + 64 + 96) / 64)
    room = 7.1 * rows.SLACK * model.model.memory_required([*shape])
    monkeypatch.setattr(rows, "room_beside", lambda *args: room)
    seen = []
    monkeypatch.setattr(model.model, "apply_model", lambda x, *a, f=model.model.apply_model, **k: seen.append(len(x)) or f(x, *a, **k))
    editing.search(editing.reward("latent"), candidates=6)
    assert max(seen) == 2, "7 images alone"
    asked = []

    def prepare(model, noise_shape, conds):
        asked.append(noise_shape[0])

    for conds in ({"positive": [{}]}, references):
        ask = reservation.Reservation("low", editing.reward("latent"), 1, 1, editing.guider())
        ask(prepare, model, (1, *shape[1:]), conds)
    assert asked[1] > 1.5 * asked[0]


# ControlNets


def flux_controlnet() -> torch.nn.Module:
    """Of XLabs' layout, which takes a picture."""
    from comfy import ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    return ControlNetFlux(
        in_channels=16, out_channels=16, vec_in_dim=64, context_in_dim=64, hidden_size=128, mlp_ratio=4.0, num_heads=1, depth=1,
        depth_single_blocks=0, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
        dtype=torch.float32, device="cpu", operations=ops.disable_weight_init,
    )  # fmt: skip


@pytest.fixture(scope="module")
def controlled(host_env, tmp_path_factory):
    """A model of Flux's layout under a ControlNet from a file."""
    import nodes
    from safetensors.torch import save_file

    lab = Lab(host_env, "flux-dev", tmp_path_factory.mktemp("controlled"))
    seeded_state = importlib.import_module(f"{lab._test_pack(host_env)}.tiny_sdxl").seeded_state
    path = host_env.base / "models" / "controlnet" / "tiny-flux-controlnet.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = seeded_state(flux_controlnet(), "", torch.Generator().manual_seed(4))
    # by the name that such files have for it, and newer hosts no more
    save_file({re.sub(r"(key|query)_norm\.weight$", r"\1_norm.scale", name): value for name, value in state.items()}, str(path))
    before = lab.plain(lab.empty(), 3)
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        (net,) = nodes.ControlNetLoader().load_controlnet(path.name)
        lab.uncontrolled = lab.positive
        lab.positive, _ = nodes.ControlNetApplyAdvanced().apply_controlnet(lab.positive, lab.negative, net, hint, 1.0, 0.0, 1.0)
    assert not torch.equal(lab.plain(lab.empty(), 3), before), "the model feels it"
    return lab


@pytest.mark.parametrize("judge", JUDGES)
def test_optimize_noise_under_a_controlnet_starts_at_the_stock_image(controlled, judge):
    first_iteration_is_stock(controlled, judge)


def test_its_gradient_under_a_controlnet_equals_finite_differences(controlled):
    rise_is_the_gradient(controlled, "latent")


@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_search_under_a_controlnet_finds_winners_of_the_stock_batch(controlled, look):
    winners_are_of_the_stock_batch(controlled, "latent", look)


def test_instead_under_a_controlnet_leaves_it_out_and_may_have_none_itself(controlled):
    instead = without_guidance(controlled.other)
    with torch.inference_mode():
        innocent, guilty = (controlled.safe("latent", threshold, instead) for threshold in (1000, -1000))
        with pytest.raises(ValueError, match="control in `instead`, expected a plain prompt"):
            controlled.safe("latent", 1000, controlled.positive)
    plain = controlled.plain(controlled.empty(), 3)
    assert torch.equal(controlled.plain(controlled.empty(), 3, controlled.guider(innocent)), plain)
    redirected = controlled.plain(controlled.empty(), 3, controlled.guider(guilty))
    same(redirected, controlled.following(controlled.other, 3))
