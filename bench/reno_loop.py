"""ReNO side by side: ours with a latent and with a pixel reward, the original's loop, and the bare networks.

A U-Net of SDXL's blocks, small enough for a CPU, with Shapes World's own networks: ratios, not seconds.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext

import torch
from torch import Tensor

from .original_reno import original_loop
from .timing import alternate, device_name, use_cpu_host

ITERATIONS, BATCH = 6, 4
PROMPT = "a blue star above a green square"


def run(rounds: int = 9) -> dict:
    """Medians of whole runs of ITERATIONS evaluations, the contestants in turn."""
    use_cpu_host()
    from ..host.memory.gradients import gradients
    from ..methods.reno import RenoSettings, optimize_noise

    world = _World()
    noise = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = RenoSettings(iterations=ITERATIONS)

    def ours(reward, count: int):
        return optimize_noise(world.generate, reward, noise[:count], settings)

    def original(checkpointing: bool):
        with world.checkpointed() if checkpointing else nullcontext():
            return original_loop(world.apply, world.pixel_loss, noise[:1], PROMPT, ITERATIONS)

    contestants = {
        "bare forward and backward, 4 images": lambda: world.bare(noise),
        "latent reward, 4 images": lambda: ours(world.latent_reward, BATCH),
        "pixel reward, 4 images": lambda: ours(world.pixel_reward, BATCH),
        "latent reward, 1 image": lambda: ours(world.latent_reward, 1),
        "pixel reward, 1 image": lambda: ours(world.pixel_reward, 1),
        "original as published, 1 image": lambda: original(True),
        "original without checkpointing, 1 image": lambda: original(False),
    }
    with gradients(world.modules):
        same = abs(original(False)[2] + ours(world.pixel_reward, 1).rewards[0].item())
        seconds = alternate(contestants, rounds)
        halves = [alternate({"a": contestants["latent reward, 4 images"]}, rounds)["a"] for _ in range(3)]
    original_seconds = seconds["original as published, 1 image"]
    return {
        "device": device_name(),
        "what": f"Shapes World, {ITERATIONS} evaluations, median of {rounds}, the contestants in turn",
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "loop_over_bare": round(seconds["latent reward, 4 images"] / seconds["bare forward and backward, 4 images"], 3),
        "pixel_over_latent": round(seconds["pixel reward, 4 images"] / seconds["latent reward, 4 images"], 2),
        "original_over_ours_per_image": {
            name: round(original_seconds / seconds[name] * (BATCH if name.endswith("4 images") else 1), 2)
            for name in contestants
            if "reward" in name
        },
        "noise": f"medians of the same run differ by {100 * (max(halves) / min(halves) - 1):.0f} %, "
        f"standard error of the mean of 3: {statistics.stdev(halves) / 3**0.5:.4f} s",
        "best_reward_differs_by": same,
    }


class _World:
    """Shapes World's networks, as both loops use them."""

    def __init__(self) -> None:
        from ..host.scorers import shapes_world
        from ..host.scorers.pixel_clip import pixel_encoder
        from ..methods.rewards import text_reward

        self.model, self.clip = shapes_world.load_generator()
        self.latent_clip, self.vae = shapes_world.load_latent_clip(), shapes_world.load_vae()
        self.pixel_clip = shapes_world.load_pixel_clip()
        self.network, self.sigma = self.model.model, self.model.model.model_sampling.sigma_max.view(1)
        self.context = self.encode_prompt(PROMPT).repeat(BATCH, 1, 1)
        text, pixel_text = self.latent_clip.encode_text([PROMPT])[0], self.pixel_clip.text.encode([PROMPT])[0]
        self.latent_reward = text_reward(self.latent_clip.encoder("tiles"), "latent", text)
        self.pixel_reward = text_reward(pixel_encoder(self.pixel_clip, self.vae), "pixel", pixel_text)

    @property
    def modules(self) -> list[torch.nn.Module]:
        towers = [self.latent_clip.image.model, self.pixel_clip.image.model, self.pixel_clip.text.patcher.model]
        return [self.network, self.vae.first_stage_model, self.clip.cond_stage_model, *towers]

    def encode_prompt(self, prompt: str) -> Tensor:
        return self.clip.encode_from_tokens(self.clip.tokenize(prompt))

    def generate(self, z: Tensor, _items: list[int], context: Tensor | None = None) -> Tensor:
        from ..host.memory.gradients import differentiable_attention

        x = z * (1 + self.sigma.item() ** 2) ** 0.5
        context = self.context[: len(z)] if context is None else context
        options = {"optimized_attention_override": differentiable_attention}
        sigma = self.sigma.expand(len(z))
        x0 = self.network.apply_model(x, sigma, c_crossattn=context, transformer_options=options)
        return self.network.process_latent_out(x0.float())

    def bare(self, noise: Tensor) -> None:
        """Lower bound for every loop: forward and backward, the last time only forward."""
        for index in range(ITERATIONS):
            last = index == ITERATIONS - 1
            z = noise.clone().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                reward = self.latent_reward.values(self.generate(z, []))["latent"].sum()
            if not last:
                torch.autograd.grad(reward, z)

    def checkpointed(self):
        from ..host.memory.gradients import checkpointed_blocks

        return checkpointed_blocks(self.network.diffusion_model)

    def apply(self, latents: Tensor, prompt: str) -> Tensor:
        """The original's pipeline: prompt, U-Net, decoder."""
        raw = self.generate(latents, [], self.encode_prompt(prompt))
        decoded = self.vae.first_stage_model.decode(raw)
        return ((decoded + 1) / 2).clamp(0, 1)

    def pixel_loss(self, picture: Tensor, prompt: str) -> Tensor:
        """The original's CLIP loss, with the text encoded here and now; minus our reward."""
        from ..methods.features import encode_pixels

        clip = self.pixel_clip
        features = encode_pixels(clip.image.model, picture, clip.image_size, clip.mean, clip.std)
        text = clip.text.patcher.model(clip.text.tokenizer([prompt])).float()
        return -(features @ torch.nn.functional.normalize(text, dim=-1).T).sum()
