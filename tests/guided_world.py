"""Shapes World in the test process, guided or redirected away from stars, and the stock ways to sample from it."""

import hashlib
import importlib

import torch

STAR, OTHERS = "star: a red star, a blue star", "neutral: a red circle, a blue circle, a red square, a blue square"


class World:
    """Shapes World and the stock way to sample from it."""

    def __init__(self, host_env):
        def module(name: str):
            return importlib.import_module(f"{host_env.pack.__name__}.{name}")

        self.shapes_world, self.host, self.concepts = map(
            module, ("host.scorers.shapes_world", "host.safety.redirect", "host.scorers.concepts")
        )
        self.push_model = module("host.safety.push").push_model
        self.guide_model, self.window = module("host.sampling.guide").guide_model, module("host.sampling.steering").Window
        self.guidance, self.rewards, self.reno = map(module, ("methods.guidance", "methods.rewards", "host.reno.run"))
        self.parse_concepts = module("models.concepts").parse_concepts
        self.settings = module("methods.reno").RenoSettings
        with torch.inference_mode():
            self.model, self.text = self.shapes_world.load_generator()
            self.clip = self.shapes_world.load_latent_clip()
            self.encoder = self.clip.window_encoder("tiles")

    def condition(self, text: str) -> list:
        return [[self.text.encode_from_tokens(self.text.tokenize(text)), {}]]

    def steering(self, model):
        """What a guided model carries."""
        (wrapper,) = model.wrappers["predict_noise"]["latent_clip_guidance"]
        return wrapper.__self__

    def watch(self, threshold: float = 0.0):
        return self.guidance.ConceptMonitor(self.encoder, self.concepts.directions(self.clip, self.parsed(threshold)))

    def parsed(self, threshold: float):
        return self.parse_concepts(f"{STAR}\n{OTHERS}").with_thresholds(str(threshold))

    def guided(self, threshold=0.0, strength=1.0, momentum=0.0, model=None, start=0.0, end=1.0, every_n=1):
        settings = self.guidance.GuidanceSettings(strength, momentum)
        objective, window = self.guidance.AvoidConcepts(self.watch(threshold)), self.window(start, end, every_n)
        return self.push_model(model or self.model, objective, settings, window)

    def redirected(self, threshold=0.0, instead="a green circle", model=None, start=0.0, end=1.0, every_n=1):
        window = self.window(start, end, every_n)
        return self.host.redirect_model(model or self.model, self.watch(threshold), self.condition(instead), window)

    def sample(self, model, prompt="a red star", sampler="euler", steps=5, cfg=2.0, size=2, **more) -> torch.Tensor:
        import comfy.sample

        noise = torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        latent = more.pop("latent", torch.zeros_like(noise))
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, steps, cfg, sampler, "normal", self.condition(prompt), self.condition(""), latent,
                disable_pbar=True, seed=5, **more,
            )  # fmt: skip

    def sample_with(self, guider, sampler="euler", steps=5, sigmas=None, latent=None, size=2) -> torch.Tensor:
        """As SamplerCustomAdvanced does; `sampler` is a name, or one of the host's sampler objects."""
        import comfy.samplers

        noise = torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        latent = torch.zeros_like(noise) if latent is None else latent
        if isinstance(sampler, str):
            sampler = comfy.samplers.sampler_object(sampler)
        with torch.inference_mode():
            return guider.sample(
                noise, latent, sampler, self.sigmas(steps) if sigmas is None else sigmas, seed=5, disable_pbar=True
            )

    def sigmas(self, steps: int) -> torch.Tensor:
        """Noise levels of the normal schedule, steps + 1 of them."""
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "normal", steps)

    def guider(self, model, prompt="a red star", cfg=2.0, kind=None):
        """The host's CFG Guider, or another class of guiders with its sockets."""
        import comfy.samplers

        guider = (kind or comfy.samplers.CFGGuider)(model)
        guider.set_conds(self.condition(prompt), self.condition(""))
        guider.set_cfg(cfg)
        return guider

    def fingerprint(self) -> list:
        networks = [self.model.model, self.clip.image.model]
        return [
            (name, id(p), p.requires_grad, hashlib.sha256(p.detach().float().cpu().numpy().tobytes()).hexdigest())
            for network in networks
            for name, p in network.named_parameters()
        ]
