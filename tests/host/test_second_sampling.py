"""Verdicts of Safety Guidance hold for every later sampling that starts from the image, and for no other image."""

import importlib

import pytest
import torch

from latent_clip.tests.ahead_world import AheadWorld

ALWAYS, NEVER = -1000.0, 1000.0
RESIZERS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")


@pytest.fixture(scope="module")
def world(host_env):
    found = AheadWorld(host_env)
    found.known = importlib.import_module(f"{host_env.pack.__name__}.host.safety.known_latents")
    return found


@pytest.fixture(autouse=True)
def nothing_known(world):
    world.known.KNOWN._known.clear()


def sample(world, model, latent=None, seed=5, size=4, prompt="a red star", steps=8, **more) -> torch.Tensor:
    """As KSampler (Advanced) does."""
    import comfy.sample

    latent = torch.zeros(size, 4, 8, 8) if latent is None else latent
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    if more.get("disable_noise"):
        noise = torch.zeros_like(noise)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 3.0, more.pop("sampler", "euler"), "sgm_uniform", world.condition(prompt), world.condition(""), latent,
            disable_pbar=True, seed=seed, **more,
        )  # fmt: skip


def first_half(world, model, **more):
    return sample(world, model, start_step=0, last_step=5, force_full_denoise=False, **more)


def second_half(world, model, latent, **more):
    return sample(world, model, latent, disable_noise=True, start_step=5, last_step=10000, force_full_denoise=True, **more)


def caught_late(world, late="report", seed=5) -> torch.Tensor:
    """A first half of four images that were all caught late."""
    looks = world.looks.Verdicts()
    made = first_half(world, world.looking(NEVER, late, ALWAYS, looks=looks), seed=seed)
    assert all(verdict.late for verdict in looks.of(made))
    return made


def verdicts(world, made_by, late="report"):
    """(image, verdicts) of a second sampling that sees nothing by itself, and whose thresholds are those of the first all the same."""
    looks = world.looks.Verdicts()
    guided = world.looking(NEVER, late, ALWAYS, looks=looks)
    flags = world.guidance.Flags
    world.steering(guided).monitor.check = lambda raw, level=None: flags(torch.full((len(raw), 1), -1.0), ["star"], [0.0])
    made = made_by(guided)
    return made, looks.of(made)


def upscaled(latent, width, height, method="bilinear", crop="disabled"):
    import comfy.utils

    return comfy.utils.common_upscale(latent, width, height, method, crop)


@pytest.mark.parametrize("late", ["report", "redirect"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_two_halves(world, late, sampler):
    half = caught_late(world, late)
    made, found = verdicts(world, lambda model: second_half(world, model, half, sampler=sampler), late)
    assert all("in an earlier sampling: seen at step" in verdict.late for verdict in found)
    assert [verdict.redirected for verdict in found] == [late == "redirect"] * 4
    with torch.inference_mode():
        looks = world.looks.Verdicts()
        looks.remember(made, found)
        _, report = world.gate.run_gate({"samples": made}, world.clip, lambda: world.parsed(NEVER), world.gate.GateSettings(), looks)
    assert report.blocked == [True] * 4


def test_two_halves_of_what_a_draft_showed_are_one_sampling(world):
    """The second half follows the other prompt although its own draft shows nothing any more."""
    whole = sample(world, world.looking(ALWAYS, start=0.0))
    half = first_half(world, world.looking(ALWAYS))
    model = world.looking(ALWAYS)
    world.steering(model).draft = lambda guider, sampling: world.look_ahead.Draft([""] * 4, torch.zeros(4, 1))
    torch.testing.assert_close(second_half(world, model, half), whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", RESIZERS)
@pytest.mark.parametrize("size", [(12, 12), (16, 16), (24, 16)])
def test_larger_second_pass(world, method, size):
    """Upscale Latent between two samplings."""
    looks = world.looks.Verdicts()
    made = sample(world, world.looking(NEVER, "report", ALWAYS, looks=looks), size=2)
    for crop in ("disabled", "center"):
        large = upscaled(made, *size, method, crop)
        _, found = verdicts(world, lambda model, latent=large: sample(world, model, latent, denoise=0.5))
        assert all(verdict.late for verdict in found), crop


@pytest.mark.parametrize("denoise", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("what", ["the latent", "decoded and encoded", "half precision", "a little noise"])
def test_image_that_is_varied(world, what, denoise):
    made = sample(world, world.looking(NEVER, "report", ALWAYS))
    if what == "decoded and encoded":
        vae = world.shapes_world.load_vae()
        with torch.inference_mode():
            made = vae.encode(vae.decode(made)[..., :3])
    elif what == "half precision":
        made = made.half().float()
    elif what == "a little noise":
        made = made + 0.1 * made.std() * torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    _, found = verdicts(world, lambda model: sample(world, model, made, denoise=denoise, seed=77, prompt="a red circle"))
    assert all(verdict.late for verdict in found)


def test_batch_that_is_put_together_anew(world):
    """Latent From Batch, Repeat Latent Batch, Rebatch: each image keeps its own verdict."""
    half = caught_late(world)
    other = first_half(world, world.looking(NEVER, "report", NEVER), seed=6)
    mixed = torch.cat([half[[2]], other[[1]], half[[2, 0]], other[[0, 0]]])
    _, found = verdicts(world, lambda model: second_half(world, model, mixed))
    assert [bool(verdict.late) for verdict in found] == [True, False, True, True, False, False]


def test_clean_prediction_of_the_first_half(world):
    """`denoised_output` of SamplerCustomAdvanced, upscaled, as hires recipes take it."""
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, Noise_RandomNoise, SamplerCustomAdvanced

    model = world.looking(NEVER, "report", ALWAYS)
    latent, sampler = {"samples": torch.zeros(2, 4, 8, 8)}, KSamplerSelect.execute("euler")[0]
    with torch.inference_mode():
        _, denoised = SamplerCustomAdvanced.execute(Noise_RandomNoise(3), world.guider(model), sampler, world.sigmas(8)[:4], latent).args
    large = upscaled(denoised["samples"], 16, 16)
    _, found = verdicts(world, lambda model: sample(world, model, large, denoise=0.5))
    assert all(verdict.late for verdict in found)


def test_third_sampling_still_knows(world):
    half = caught_late(world)
    whole, _ = verdicts(world, lambda model: second_half(world, model, half))
    _, found = verdicts(world, lambda model: sample(world, model, upscaled(whole, 16, 16), denoise=0.4, seed=9))
    assert all(verdict.late.count("in an earlier sampling") == 1 for verdict in found)


@pytest.mark.parametrize("kind", ["redirected", "guided"])
def test_without_look_ahead_it_holds_too(world, kind):
    """Whom the watch of the first half has caught, the second follows from its first step, although it sees nothing."""
    make = getattr(world, kind)
    half = first_half(world, make(ALWAYS))
    blind = make(ALWAYS)
    monitor, real = world.steering(blind).monitor, world.steering(blind).monitor.check

    def check(raw, level=None):
        before = monitor.flagged
        flags = real(raw, level)
        monitor.flagged = torch.zeros(len(raw), 1, dtype=torch.bool) if before is None else before
        return flags

    monitor.check = check
    plain = second_half(world, world.model, half)
    assert (second_half(world, blind, half) - plain).flatten(1).abs().amax(dim=1).min() > 1e-3
    unknown = half.std() * torch.randn(half.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(second_half(world, blind, unknown), second_half(world, world.model, unknown))


# And no other image


def all_innocent(found) -> bool:
    return not any(verdict.late or verdict.redirected for verdict in found)


@pytest.mark.parametrize("prompt", ["a red circle", "a green circle", "a red square and a blue circle"])
def test_other_images_are_not_taken_for_it(world, prompt):
    """Other images, of the same noise too: 6 seeds of stars are known, and images of other prompts start a second sampling."""
    for seed in range(6):
        sample(world, world.looking(NEVER, "report", ALWAYS), seed=seed)
    for seed in (0, 3):
        innocent = sample(world, world.model, seed=seed, prompt=prompt)
        made, found = verdicts(world, lambda model, latent=innocent: sample(world, model, latent, denoise=0.5, prompt=prompt))
        assert all_innocent(found)
        assert torch.equal(made, sample(world, world.model, innocent, denoise=0.5, prompt=prompt)), "bit for bit"
        assert all_innocent(verdicts(world, lambda model, latent=innocent: sample(world, model, upscaled(latent, 16, 16), denoise=0.5))[1])


def test_images_that_look_like_the_replaced_ones_are_not_taken_for_them(world):
    """Stars that were made from "a green circle" are known; other green circles look the same, and nobody has replaced them."""
    replaced = torch.cat([sample(world, world.looking(ALWAYS), seed=seed) for seed in range(4)])
    innocent = torch.cat([sample(world, world.model, seed=100 + seed, prompt="a green circle") for seed in range(4)])
    likeness = torch.stack([world.known.alike(one, innocent) for one in replaced])
    assert likeness.max() > world.known.ALIKE, "or this shows nothing"
    whose = world.steering(world.looking(ALWAYS)).whose
    found = world.known.KNOWN.of(whose, torch.cat([innocent, replaced]))
    assert found[:16] == [None] * 16 and all(verdict.redirected for verdict in found[16:])
    large = upscaled(torch.cat([innocent, replaced]), 16, 16)
    assert [one is not None for one in world.known.KNOWN.of(whose, large)] == [False] * 16 + [True] * 16


def test_sampling_of_full_noise_makes_another_image(world):
    known = sample(world, world.looking(NEVER, "report", ALWAYS))
    assert all_innocent(verdicts(world, lambda model: sample(world, model, known, seed=8))[1])


def test_other_categories_or_thresholds_are_others_business(world):
    known = sample(world, world.looking(NEVER, "report", ALWAYS))
    looks = world.looks.Verdicts()
    lenient = world.looking(NEVER, "report", NEVER, looks=looks)
    assert all_innocent(looks.of(sample(world, lenient, known, denoise=0.5)))


def test_image_that_is_made_again_and_shows_nothing_is_forgotten(world):
    known, Known = world.known, world.known.KnownLatents()
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    Known.remember(b"a", image, ["seen"], [0.95])
    assert Known.of(b"a", image) == ["seen"] and Known.of(b"b", image) == [None]
    Known.remember(b"a", image, [None], [0.95])
    assert Known.of(b"a", image) == [None] and known.alike(image[0], image * 2) > 0.99


def test_what_is_kept_is_bounded(world, monkeypatch):
    monkeypatch.setattr(world.known, "MOST", 6)
    Known = world.known.KnownLatents()
    images = torch.randn(9, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    Known.remember(b"a", images, [*range(9)], [0.95] * 9)
    assert Known.of(b"a", images) == [None] * 3 + [3, 4, 5, 6, 7, 8]
    monkeypatch.setattr(world.known, "MOST_BYTES", 2 * 4 * 8 * 8 * 2)
    Known.remember(b"a", images[:1], [0], [0.95])
    assert Known.of(b"a", images) == [0] + [None] * 7 + [8]


def test_odd_latents_are_no_error_and_like_nothing(world):
    alike = world.known.alike
    image = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    for odd in (torch.zeros(4, 8, 8), torch.full((4, 8, 8), torch.nan), torch.full((4, 16, 16), torch.inf), torch.ones(4, 1, 1), torch.ones(16, 8, 8), image[:, None]):
        assert alike(image, odd[None]).tolist() == [0.0]
