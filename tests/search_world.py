"""Shapes World in the test process with a search, and the stock sampler to compare it with."""

import importlib

import torch

from .guided_world import World

SIZE = 6


class SearchWorld(World):
    """Shapes World with a search."""

    def __init__(self, host_env):
        super().__init__(host_env)

        def module(name: str):
            return importlib.import_module(f"{host_env.pack.__name__}.{name}")

        self.search, self.active_items, self.evaluations = map(module, ("host.search.run", "host.sampling.active_items", "host.sampling.evaluations"))
        self.item_check = module("host.sampling.item_check")
        self.settings_of_search = module("host.search.state").SearchSettings
        self.rewards_of_texts = module("methods.rewards").text_reward
        with torch.inference_mode():
            self.text_reward = self.rewards_of_texts(
                self.clip.encoder(), "text", self.clip.encode_text(["a red circle"])[0]
            )

    def noise(self, seed: int = 5):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        return Noise_RandomNoise(seed)

    def run(
        self,
        sampler="euler",
        steps=8,
        guider=None,
        latent=None,
        sigmas=None,
        seed=5,
        reward=None,
        drafter=None,
        **settings,
    ):
        import comfy.samplers

        settings = {"candidates": SIZE, "keep": 2, "budget": 0.6, **settings}
        latent = {"samples": torch.zeros(1, 4, 8, 8)} if latent is None else latent
        sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        with torch.inference_mode():
            return self.search.run_search(
                self.noise(seed), guider or self.guider(self.model, "a red circle"), sampler,
                self.sigmas(steps) if sigmas is None else sigmas, latent, reward or self.text_reward,
                self.settings_of_search(**settings), drafter,
            )  # fmt: skip

    def plain(self, latent: dict, sampler="euler", steps=8, guider=None, sigmas=None, seed=5) -> torch.Tensor:
        """What SamplerCustomAdvanced makes of a LATENT."""
        import comfy.samplers
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        with torch.inference_mode():
            made = SamplerCustomAdvanced.execute(
                self.noise(seed), guider or self.guider(self.model, "a red circle"),
                comfy.samplers.sampler_object(sampler), self.sigmas(steps) if sigmas is None else sigmas, latent,
            )  # fmt: skip
        return made[0]["samples"]

    def empty(self, size=SIZE) -> dict:
        return {"samples": torch.zeros(size, 4, 8, 8)}


def winners_are_of_the_full_batch(world, found, **how) -> None:
    full = world.plain(world.empty(), **how)
    torch.testing.assert_close(found.best["samples"], full[found.best["batch_index"]], atol=2e-3, rtol=1e-3)


def control_net(world):
    """A ControlNet of the generator's own architecture with random weights."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {**world.model.model.model_config.unet_config}
    config.pop("out_channels", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return comfy.controlnet.ControlNet(network.train(False), load_device=torch.device("cpu"))


def pixel_reward(world):
    """A reward on decoded pictures, and a list that fills with how many are decoded at a time."""
    decoded: list[int] = []
    pixel_clip = importlib.import_module(world.search.__package__.removesuffix(".search") + ".scorers.pixel_clip")
    with torch.inference_mode():
        clip, vae = world.shapes_world.load_pixel_clip(), world.shapes_world.load_vae()
        direction = clip.text.encode(["a red circle"])[0]
    decode = vae.first_stage_model.decode
    vae.first_stage_model.decode = lambda latents: decoded.append(len(latents)) or decode(latents)
    return world.rewards_of_texts(pixel_clip.pixel_encoder(clip, vae), "pixels", direction), decoded
