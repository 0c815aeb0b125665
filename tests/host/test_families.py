"""Every kind of node on a small model of every layout that people use, with a latent judge in its space and a pixel judge.

The models come from files through the stock loader, the pixel judge decodes with a VAE of the family's layout.
"""

import hashlib
import importlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from latent_clip.tests.checkpoints import TINY_CONFIG, save_pixel_clip, tiny_latent_clip
from latent_clip.tests.tiny_vaes import tiny_state, tiny_vae

NAMES = ("sd15", "sd3", "flux-schnell", "flux-dev", "flux2", "z-image", "qwen-image", "wan21")
JUDGES = ("latent", "pixel")
VAES = {"sd1": "kl", "sd3": "flux", "flux": "flux", "flux2": "flux2", "wan21": "wan"}
CONCEPTS = "odd: a red star\nneutral: a blue circle, a green square"


class Lab:
    """One family, loaded, and the two judges for it."""

    def __init__(self, host_env, name: str, folder):
        import nodes

        def module(path: str):
            return importlib.import_module(f"{host_env.pack.__name__}.{path}")

        self.module = module
        self.family = importlib.import_module(f"{self._test_pack(host_env)}.families").FAMILIES[name]
        path = host_env.base / "models" / "diffusion_models" / f"{name}.safetensors"
        if not path.exists():
            self.family.save(path)
        with torch.inference_mode():
            (self.model,) = nodes.UNETLoader().load_unet(path.name, "default")
            self.positive, self.negative, self.other = (self.family.conditioning(seed) for seed in range(3))
            space = module("models.latent_spaces").LATENT_SPACES[self.family.space]
            vision = TINY_CONFIG["vision_cfg"] | {
                "image_size": 8 * space.downscale, "latent_factor": space.downscale, "latent_n_channels": space.channels, "patch_size": 2,
            }  # fmt: skip
            config = TINY_CONFIG | {"vision_cfg": vision}
            save_pixel_clip(folder / "pixel.safetensors")
            pixel = module("host.scorers.pixel_clip")
            read = module("models.pixel_clip").read_pixel_clip(folder / "pixel.safetensors")
            self.judges = {
                "latent": module("host.scorers.latent_clip").LoadedLatentCLIP(tiny_latent_clip(config=config), config, space, "tiny"),
                "pixel": pixel.PixelJudge(pixel.LoadedPixelCLIP(read), self._vae(space)),
            }
        self.rewards = module("methods.rewards")

    @staticmethod
    def _vae(space):
        """Of the family's layout; where a host takes the width of a decoder for given, as older ones do, a TAESD of its channels."""
        import comfy.sd

        try:
            return tiny_vae(VAES[space.name])
        except RuntimeError:
            state = tiny_state("taesd", space.channels)
            metadata = {"tae_latent_channels": 128} if space.channels == 128 else None
            return comfy.sd.VAE(sd=state, metadata=metadata)

    @staticmethod
    def _test_pack(host_env) -> str:
        return str(host_env.base / "custom_nodes" / "test_pack").replace(".", "_x_")

    def reward(self, judge: str, weight: float = 1.0):
        clip = self.judges[judge]
        with torch.inference_mode():
            direction = clip.encode_text(["a red circle"])[0]
        return self.rewards.text_reward(clip.encoder(), "match", direction, weight=weight)

    def empty(self, size: int = 2, frames: int = 1) -> dict:
        """What an Empty Latent node gives: of a model of videos also without the frames."""
        channels, *rest = self.family.latent
        shape = (size, channels, frames, *rest[1:]) if frames > 1 else (size, channels, *rest[-2:])
        return {"samples": torch.zeros(shape)}

    def noise(self, seed: int = 5):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        return Noise_RandomNoise(seed)

    def guider(self, model=None):
        import comfy.samplers
        from comfy_extras.nodes_custom_sampler import Guider_Basic

        cfg = self.family.cfg
        guider = Guider_Basic(model or self.model) if cfg == 1 else comfy.samplers.CFGGuider(model or self.model)
        if cfg == 1:
            guider.set_conds(self.positive)
        else:
            guider.set_conds(self.positive, self.negative)
            guider.set_cfg(cfg)
        return guider

    def sigmas(self, steps: int) -> torch.Tensor:
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", steps)

    def plain(self, latent: dict, steps: int, guider=None, noise=None) -> torch.Tensor:
        """What SamplerCustomAdvanced makes of a LATENT."""
        import comfy.samplers
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        with torch.inference_mode():
            made = SamplerCustomAdvanced.execute(
                noise or self.noise(), guider or self.guider(), comfy.samplers.sampler_object("euler"), self.sigmas(steps), latent
            )
        return made[0]["samples"]

    def reno(self, reward, steps: int = 1, memory: str = "fast", latent=None, **settings):
        settings = self.module("methods.reno").RenoSettings(**{"iterations": 2, **settings})
        with torch.inference_mode():
            return self.module("host.reno.run").run_reno(
                self.noise(), self.guider(), self.sigmas(steps), latent or self.empty(1), reward, settings, memory
            )

    def guided(self, reward, strength: float):
        guidance, window = self.module("methods.guidance"), self.module("host.sampling.steering").Window(0.0, 1.0)
        settings = guidance.GuidanceSettings(strength, 0.0)
        return self.module("host.sampling.guide").guide_model(self.model, guidance.ClimbReward(reward), settings, window)

    def concepts(self, threshold: float):
        return self.module("models.concepts").parse_concepts(CONCEPTS).with_thresholds(str(threshold))

    def safe(self, judge: str, threshold: float, instead=None):
        guidance, host, clip = self.module("methods.guidance"), self.module("host.safety.redirect"), self.judges[judge]
        directions = self.module("host.scorers.concepts").directions(clip, self.concepts(threshold))
        watch, window = guidance.ConceptMonitor(clip.window_encoder(), directions), self.module("host.sampling.steering").Window(0.0, 1.0)
        if instead is not None:
            return host.redirect_model(self.model, watch, instead, window)
        return self.module("host.safety.push").push_model(self.model, guidance.AvoidConcepts(watch), guidance.GuidanceSettings(1.0, 0.0), window)

    def looking(self, judge: str, draft: float, instead: list, late="ignore", threshold=1000.0, looks=None, suspects=None):
        """A MODEL that looks ahead in two steps: suspects drafts from `draft` log-odds on, or these items, and others late from
        `threshold` on."""
        guidance, ahead, clip = self.module("methods.guidance"), self.module("host.safety.look_ahead"), self.judges[judge]
        concepts = self.module("host.scorers.concepts")
        with torch.inference_mode():
            look = ahead.LookAhead((ahead.DraftScorer(clip.window_encoder(), concepts.directions(clip, self.concepts(draft))),), 2)
            watch = guidance.ConceptMonitor(clip.window_encoder(), concepts.directions(clip, self.concepts(threshold)))
            looks = looks or self.module("host.safety.verdicts").Verdicts()

        def chosen(guider, sampling):
            draft = look(guider, sampling)
            draft.reasons[:] = [f"item {i}" if i in suspects else "" for i in range(len(draft.reasons))]
            return draft

        chosen.drafter, chosen.scorers = None, look.scorers
        window = self.module("host.sampling.steering").Window(0.0, 1.0)
        return self.module("host.safety.redirect").redirect_model(
            self.model, watch, instead, window, look if suspects is None else chosen, late, looks
        )

    def gate(self, latent: dict, judge: str, threshold: float, on_block: str = "drop", cut_clips: bool = False, looks=None):
        gate = self.module("host.safety.gate")
        settings = gate.GateSettings(on_block, cut_clips=cut_clips)
        return gate.run_gate(latent, self.judges[judge], lambda: self.concepts(threshold), settings, looks)

    def search(self, reward, steps: int = 8, latent=None, **settings):
        import comfy.samplers

        settings = self.module("host.search.run").SearchSettings(**{"candidates": 3, "keep": 1, "draft_steps": 2, **settings})
        with torch.inference_mode():
            return self.module("host.search.run").run_search(
                self.noise(), self.guider(), comfy.samplers.sampler_object("euler"), self.sigmas(steps), latent or self.empty(1), reward,
                settings,
            )  # fmt: skip

    def following(self, prompt: list, steps: int, latent=None) -> torch.Tensor:
        """What the stock sampler makes of another prompt."""
        before, self.positive = self.positive, prompt
        try:
            return self.plain(latent or self.empty(), steps)
        finally:
            self.positive = before

    def fingerprint(self) -> list:
        networks = [self.model.model, *(p.model for j in self.judges.values() for p in j.encoder().patchers)]
        state = [
            (name, id(p), p.requires_grad, p.grad is None, hashlib.sha256(p.detach().float().numpy().tobytes()).hexdigest())
            for network in networks
            for name, p in network.named_parameters()
        ]
        return [*state, [m for network in networks for m in network.modules() if "forward" in m.__dict__]]


@pytest.fixture(scope="module", params=NAMES)
def lab(request, host_env, tmp_path_factory):
    return Lab(host_env, request.param, tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def made(lab) -> SimpleNamespace:
    """A batch that the stock sampler made, before any of our nodes touched the model."""
    before = lab.fingerprint()
    latent = {"samples": lab.plain(lab.empty(3), 2), "batch_index": [4, 5, 6]}
    return SimpleNamespace(latent=latent, fingerprint=before)


def test_it_is_the_layout_that_it_is_named_after(lab, made):
    spaces = lab.module("models.latent_spaces")
    latent_format = lab.model.get_model_object("latent_format")
    assert type(latent_format).__name__ in spaces.LATENT_SPACES[lab.family.space].formats
    assert made.latent["samples"].shape == (3, *lab.family.latent) and made.latent["samples"].isfinite().all()


@pytest.mark.parametrize("judge", JUDGES)
def test_score_select_classify_and_gate(lab, made, judge):
    reports, select = lab.module("host.scorers.reports"), lab.module("methods.select")
    with torch.inference_mode():
        report = reports.score_report(made.latent, lab.reward(judge))
        best, rest = select.keep_best(report.scores, 1)
        picked = lab.module("host.scorers.latents").select_items(made.latent, best)
        labels = reports.classify_report(made.latent, lab.judges[judge], ["a cat", "a dog"], ["{}"], "tiles")
        safe, passing = lab.gate(made.latent, judge, 1000)
        blocked, stopped = lab.gate(made.latent, judge, -1000, "grey")
    assert len({*report.scores.tolist()}) == 3 and report.scores.abs().max() <= 1
    if lab.judges[judge].space.formats:  # else nobody knows its colours
        assert all(picture.startswith("data:image/jpeg") for picture in report.thumbnails)
    assert picked["samples"].shape == (1, *lab.family.latent) and picked["batch_index"] == [4 + best[0]]
    assert sorted(best + rest) == [0, 1, 2]
    torch.testing.assert_close(labels.table.sum(dim=1), torch.ones(3))
    assert safe is made.latent and not any(passing.blocked)
    assert all(stopped.blocked) and not blocked["samples"].any() and blocked["samples"].shape == (3, *lab.family.latent)
    assert "frames" not in report.as_dict() and "frames" not in stopped.as_dict()  # one frame is an image
    json.dumps([report.as_ui(), labels.as_ui(), stopped.as_ui()], allow_nan=False)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("judge", JUDGES)
def test_first_iteration_is_the_stock_sampling_and_none_is_worse(lab, judge, steps):
    reward = lab.reward(judge)
    state, _ = lab.reno(reward, steps, iterations=3)
    stock = lab.plain(lab.empty(1), steps)
    torch.testing.assert_close(state.first_latents, stock, atol=2e-4 * stock.std().item(), rtol=1e-3)
    first = state.iterations[0].rewards[0]
    with torch.inference_mode():
        (alone,) = lab.module("host.scorers.scoring").score_frames(reward, stock).values()
    assert abs(first - alone.item()) < 1e-3
    assert state.rewards.item() >= first and state.iterations[0].gradient_norms[0] > 0


@pytest.mark.parametrize("judge", JUDGES)
def test_gradient_equals_finite_differences(lab, judge):
    """One small step of plain gradient ascent gives the gradient; the stock sampler and a fresh score check its length."""
    reward = lab.reward(judge, weight=100.0)
    tiny = {"optimizer": "sgd", "prior_weight": 0.0, "gradient_clip": 1e9}
    norm = lab.reno(reward, iterations=2, learning_rate=1e-9, **tiny)[0].iterations[0].gradient_norms[0]
    rate = 0.02 / norm**2  # the reward is to rise by about 0.02 of its hundred: random decoders curve it strongly
    state, _ = lab.reno(reward, iterations=2, learning_rate=rate, **tiny)
    assert state.best_iteration == [1], "a small step up the gradient must raise the reward"
    samples = lab.module("host.scorers.latents").latents_for(lab.model, lab.empty(1))
    noise = lab.noise().generate_noise({"samples": samples})
    step = state.noise.cpu() - noise
    torch.testing.assert_close(step.norm().item(), rate * norm, rtol=1e-2, atol=0)

    def value(at: torch.Tensor) -> float:
        held = lab.module("host.sampling.noise").OptimizedNoise(at, seed=5)
        latents = lab.plain(lab.empty(1), 1, noise=held)
        with torch.inference_mode():
            return reward.weigh(lab.module("host.scorers.scoring").score_frames(reward, latents)).item()

    rise = (value(noise + step) - value(noise - step)) / 2
    assert rise == pytest.approx(rate * norm**2, rel=0.1)


def peak_of(run, folder) -> tuple[int, object]:
    """The most bytes that PyTorch held at once while something ran, beyond what it held before, and its result."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    return max(held) - held[0], result


def test_blocks_are_found_and_keep_less_for_the_same_result(lab, tmp_path):
    reward, results, peaks = lab.reward("latent"), {}, {}
    channels, *rest = lab.family.latent
    large = {"samples": torch.zeros(1, channels, *rest[:-2], 32, 32)}
    for memory in ("fast", "low"):
        peaks[memory], (results[memory], used) = peak_of(lambda m=memory: lab.reno(reward, memory=m, latent=large), tmp_path)
        assert used.checkpointed_blocks == (lab.family.blocks if memory == "low" else 0)
    torch.testing.assert_close(results["low"].noise, results["fast"].noise, atol=1e-5, rtol=1e-4)
    assert peaks["low"] < 0.9 * peaks["fast"], peaks  # of two blocks, one is alive at a time


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("look", ["drafts", "cuts"])
def test_search_finds_winners_of_the_stock_batch(lab, judge, look):
    found = lab.search(lab.reward(judge), look=look, cuts="50% → 1" if look == "cuts" else "")
    full = lab.plain(lab.empty(3), 8)
    winner = found.best["batch_index"]
    tolerance = 2e-3 * full.std().item()
    torch.testing.assert_close(found.best["samples"], full[winner], atol=tolerance, rtol=1e-2)
    assert found.rest["samples"].shape == (2, *lab.family.latent)
    assert len(found.report["rounds"]) == 2


@pytest.mark.parametrize("judge", JUDGES)
def test_guidance_steers_and_leaves_alone(lab, judge):
    latent, plain = lab.empty(), lab.plain(lab.empty(), 3)
    reward = lab.reward(judge)
    assert torch.equal(lab.plain(latent, 3, lab.guider(lab.guided(reward, 0.0))), plain)
    steered = lab.plain(latent, 3, lab.guider(lab.guided(reward, 0.5)))
    assert steered.isfinite().all() and steered.shape == plain.shape and not torch.equal(steered, plain)


@pytest.mark.parametrize("judge", JUDGES)
def test_safety_guidance_leaves_the_innocent_and_needs_nothing_that_the_model_lacks(lab, judge):
    latent, plain = lab.empty(), lab.plain(lab.empty(), 3)
    with torch.inference_mode():
        ((text, options),) = lab.other  # without Flux Guidance, which it takes over from the prompt that it replaces
        instead = [[text, {key: value for key, value in options.items() if key != "guidance"}]]
        innocent, guilty = (lab.safe(judge, threshold, instead) for threshold in (1000, -1000))
        pushed = lab.safe(judge, -1000)
    assert torch.equal(lab.plain(latent, 3, lab.guider(innocent)), plain)
    redirected = lab.plain(latent, 3, lab.guider(guilty))
    wanted = lab.following(lab.other, 3)
    torch.testing.assert_close(redirected, wanted, atol=1e-3 * wanted.std().item(), rtol=1e-3)
    assert not torch.equal(lab.plain(latent, 3, lab.guider(pushed)), plain)


def test_empty_latent_of_another_vae_gets_the_size_and_channels_of_the_model(lab):
    """As the stock samplers take it: 128 pixels are 8 × 8 cells to Flux.2."""
    empty = {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 8}
    stock = lab.plain(empty, 1)
    state, _ = lab.reno(lab.reward("latent"), latent=empty, iterations=1)
    torch.testing.assert_close(state.first_latents, stock, atol=2e-4 * stock.std().item(), rtol=1e-3)
    candidates = lab.module("host.search.inputs").candidates_of(lab.model, empty, 2)
    assert candidates["samples"].shape == (2, *stock.shape[1:])


def test_judge_of_another_space_is_refused_by_name(lab):
    other = "sdxl" if lab.family.space != "sdxl" else "flux"
    space = lab.module("models.latent_spaces").LATENT_SPACES[other]
    encoder = lab.judges["latent"].encoder()
    stranger = replace(encoder, clip=type("Other", (), {"space": space, "image": lab.judges["latent"].image})())
    reward = lab.rewards.text_reward(stranger, "match", torch.ones(32))
    name = type(lab.model.get_model_object("latent_format")).__name__
    with pytest.raises(ValueError, match=f"{name} latents.*those of the {other} space.*Load Pixel Judge"):
        lab.guided(reward, 0.5)


def test_nothing_is_left_behind(lab, made):
    """The last of this family: the same weights, and the same batch again from the stock sampler."""
    assert lab.fingerprint() == made.fingerprint
    assert torch.equal(lab.plain(lab.empty(3), 2), made.latent["samples"])
