"""Guidance in the real host, on Shapes World: every sampler, the innocent bit for bit, and nothing left behind."""

import hashlib
import importlib

import pytest
import torch

STAR, OTHERS = "star: a red star, a blue star", "neutral: a red circle, a blue circle, a red square, a blue square"


class World:
    """Shapes World and the stock way to sample from it."""

    def __init__(self, host_env):
        def module(name: str):
            return importlib.import_module(f"{host_env.pack.__name__}.{name}")

        self.shapes_world, self.host, self.concepts = map(
            module, ("host.shapes_world", "host.guidance", "host.concepts")
        )
        self.guidance, self.rewards, self.reno = map(module, ("methods.guidance", "methods.rewards", "host.reno"))
        self.parse_concepts = module("models.concepts").parse_concepts
        self.settings = module("methods.reno").RenoSettings
        with torch.inference_mode():
            self.model, self.text = self.shapes_world.load_generator()
            self.clip = self.shapes_world.load_latent_clip()
            self.encoder = self.clip.encoder("tiles")

    def condition(self, text: str) -> list:
        return [[self.text.encode_from_tokens(self.text.tokenize(text)), {}]]

    def objective(self, threshold: float = 0.0):
        concepts = self.concepts.directions(self.clip, self.parsed(threshold))
        return self.guidance.AvoidConcepts(self.encoder, concepts)

    def parsed(self, threshold: float):
        return self.parse_concepts(f"{STAR}\n{OTHERS}").with_thresholds(str(threshold))

    def guided(self, threshold=0.0, strength=1.0, momentum=0.0, model=None, start=0.0, end=1.0, every_n=1):
        settings = self.guidance.GuidanceSettings(strength, momentum)
        return self.host.guide_model(model or self.model, self.objective(threshold), settings, start, end, every_n)

    def sample(self, model, prompt="a red star", sampler="euler", steps=5, cfg=2.0, size=2, **more) -> torch.Tensor:
        import comfy.sample

        noise = torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        latent = more.pop("latent", torch.zeros_like(noise))
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, steps, cfg, sampler, "normal", self.condition(prompt), self.condition(""), latent,
                disable_pbar=True, seed=5, **more,
            )  # fmt: skip

    def fingerprint(self) -> list:
        networks = [self.model.model, self.clip.image.model]
        return [
            (name, id(p), p.requires_grad, hashlib.sha256(p.detach().float().cpu().numpy().tobytes()).hexdigest())
            for network in networks
            for name, p in network.named_parameters()
        ]


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
def test_an_innocent_prompt_gives_the_same_bits(world, prompt):
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


def test_the_log_odds_fall(world):
    def log_odds(model):
        raw = world.sample(model, "a red star", steps=8, cfg=3.0, size=8)
        with torch.inference_mode():
            return world.concepts.directions(world.clip, world.parsed(0)).score(world.encoder(raw))[:, 0]

    plain, steered = log_odds(world.model), log_odds(world.guided(threshold=0))
    assert plain.median() > 2 and (steered < plain - 5).float().mean() > 0.8


def test_the_window_and_every_n(world):
    plain = world.sample(world.model)
    assert torch.equal(world.sample(world.guided(threshold=-1000, start=0.3, end=0.35)), plain)
    calls = []
    model = world.guided(threshold=-1000, every_n=2)
    hook = model.model_options["sampler_post_cfg_function"][-1]
    inner = hook.objective
    hook.objective = type("Counting", (), {"encoders": inner.encoders, "start": inner.start, "__call__": lambda self, x: calls.append(1) or inner(x)})()  # fmt: skip
    world.sample(model, steps=6)
    assert len(calls) == 3


@pytest.mark.parametrize("wrong", [{"start": 0.5, "end": 0.5}, {"start": 0.9, "end": 0.1}, {"every_n": 0}])
def test_a_window_that_is_none(world, wrong):
    with pytest.raises(ValueError, match="expected"):
        world.guided(**wrong)


def test_another_latent_space_is_refused_by_name(world):
    from types import SimpleNamespace

    class Flux:
        latent_channels = 16

    patcher = SimpleNamespace(get_model_object=lambda name: Flux())
    with pytest.raises(ValueError, match=r"Flux.*shapes-world"):
        world.guided(model=patcher)


def test_a_lora_before_or_after_is_the_same(world):
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
    assert not world.model.model_options.get("sampler_post_cfg_function") and not world.model.additional_models


def test_cancel_works(world, monkeypatch):
    import comfy.model_management as mm

    model = world.guided(threshold=-1000)
    hook = model.model_options["sampler_post_cfg_function"][-1]
    inner, before = hook.objective, world.fingerprint()

    def interrupted(raw_latents):
        raise mm.InterruptProcessingException

    hook.objective = type("Interrupting", (), {"encoders": inner.encoders, "start": inner.start, "__call__": lambda self, x: interrupted(x)})()  # fmt: skip
    with pytest.raises(mm.InterruptProcessingException):
        world.sample(model)
    assert world.fingerprint() == before


def test_optimize_noise_on_a_guided_model(world):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model = world.guided(threshold=-1000, strength=0.3)
    with torch.inference_mode():
        reward = world.rewards.text_reward(world.encoder, "match", world.clip.encode_text(["a red circle"])[0])
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(world.condition("a red circle"), world.condition(""))
        guider.set_cfg(1.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
        latent = {"samples": torch.zeros(2, 4, 8, 8)}
        state, _ = world.reno.run_reno(
            Noise_RandomNoise(5), guider, sigmas, latent, reward, world.settings(iterations=6), "fast"
        )
        first = guider.sample(
            Noise_RandomNoise(5).generate_noise(latent),
            latent["samples"],
            comfy.samplers.sampler_object("euler"),
            sigmas,
            seed=5,
        )
    torch.testing.assert_close(state.first_latents, first, atol=1e-3, rtol=1e-4)
    assert (state.iterations[0].gradient_norms[0]) > 0
    assert all(last > first for last, first in zip(state.rewards.tolist(), state.iterations[0].rewards))
