"""What ReNO's loop costs over the bare forward and backward of its networks, and what latent and pixel rewards cost in it.

A U-Net of SDXL's blocks, small enough for a CPU, with Shapes World's own networks: ratios, not seconds.
"""

from __future__ import annotations

import torch

from .timing import alternate, device_name, use_cpu_host

ITERATIONS, BATCH = 6, 4


def run(rounds: int = 7) -> dict:
    """Medians of a whole run of ITERATIONS evaluations, the three contestants in turn."""
    use_cpu_host()
    from ..host import shapes_world
    from ..host.gradients import differentiable_attention, gradients
    from ..host.pixel_clip import pixel_encoder
    from ..methods.reno import RenoSettings, optimize_noise
    from ..methods.rewards import text_reward

    model, clip = shapes_world.load_generator()
    latent_clip, vae, pixel_clip = (
        shapes_world.load_latent_clip(),
        shapes_world.load_vae(),
        shapes_world.load_pixel_clip(),
    )
    prompt = "a blue star above a green square"
    context = clip.encode_from_tokens(clip.tokenize(prompt)).repeat(BATCH, 1, 1)
    latent_reward = text_reward(latent_clip.encoder("tiles"), "latent", latent_clip.encode_text([prompt])[0])
    pixel_reward = text_reward(pixel_encoder(pixel_clip, vae), "pixel", pixel_clip.text.encode([prompt])[0])
    network, sigma = model.model, model.model.model_sampling.sigma_max.view(1)
    options = {"optimized_attention_override": differentiable_attention}
    noise = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def generate(z, _items):
        x = z * (1 + sigma.item() ** 2) ** 0.5
        x0 = network.apply_model(x, sigma.expand(len(z)), c_crossattn=context[: len(z)], transformer_options=options)
        return network.process_latent_out(x0.float())

    def bare():
        for index in range(ITERATIONS):
            last = index == ITERATIONS - 1
            z = noise.clone().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                reward = latent_reward.values(generate(z, None))["latent"].sum()
            if not last:
                torch.autograd.grad(reward, z)

    settings = RenoSettings(iterations=ITERATIONS)
    modules = [network, latent_clip.image.model, pixel_clip.image.model, vae.first_stage_model]
    with gradients(modules):
        seconds = alternate(
            {
                "bare forward and backward": bare,
                "ReNO, latent reward": lambda: optimize_noise(generate, latent_reward, noise, settings),
                "ReNO, pixel reward": lambda: optimize_noise(generate, pixel_reward, noise, settings),
            },
            rounds,
        )
    return {
        "device": device_name(),
        "what": f"Shapes World, batch {BATCH}, {ITERATIONS} evaluations, median of {rounds}",
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "loop_over_bare": round(seconds["ReNO, latent reward"] / seconds["bare forward and backward"], 3),
        "pixel_over_latent": round(seconds["ReNO, pixel reward"] / seconds["ReNO, latent reward"], 2),
    }
