"""Train the autoencoder: 64×64 px to raw latents (4, 8, 8) with SDXL's scale, and back.

1. All weights on crowded scenes (most shape per pixel), then on scenes as captions describe them: group norms see
   whole pictures, so crowds alone would leave the colours of sparse scenes wrong. The latents carry fixed Gaussian
   noise, so that near latents mean near pictures.
2. Each channel is shifted and scaled *inside the weights* to mean 0 and std 1 / 0.13025.
3. The decoder alone on noisier latents, because a generator's latents are never quite the encoder's.
4. When the generator is trained, the decoder alone again, on what the generator makes of latents with noise on them.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from ..host.scorers.shapes_world import LATENT_SCALE, build_vae
from .captions import THINGS
from .corpus import Corpus, pick_caption, tokenize_for_host
from .diffusion import add_noise, x0_from_v
from .scenes import Scene, render, sample_crowd, sample_scene, sample_things
from .train_generator import Generator
from .training import Draw, Recipe, cached, fit, initialise

NOISE = 0.2
CROWDS = Recipe("vae_crowds", steps=1100, lr=2e-3, seed=1)
SCENES = Recipe("vae_scenes", steps=400, lr=1.2e-3, seed=8)
DECODER = Recipe("vae_decoder", steps=300, lr=8e-4, seed=2)
FINISH = Recipe("vae_finish", steps=300, lr=6e-4, seed=12)
FINISH_UP_TO = 600  # timestep; with more noise the generator draws another picture than the one it was shown
EMPTY = 0.94  # grey level of the ground, about
BATCH = 8


def sample_mixed(rng: random.Random, count: int) -> list[Scene]:
    """Scenes as captions describe them: a third single, two thirds double, held-out pairs included (no text here)."""
    return [
        sample_scene(rng, (rng.choice(THINGS),) if rng.random() < 1 / 3 else sample_things(rng, None))
        for _ in range(count)
    ]


def picture_loss(got: Tensor, expected: Tensor) -> Tensor:
    """L1 on pixels plus L1 on their differences, which keeps edges sharp; images (B, 3, H, W) in [-1, 1]."""
    across = (got.diff(dim=-1) - expected.diff(dim=-1)).abs().mean()
    down = (got.diff(dim=-2) - expected.diff(dim=-2)).abs().mean()
    return (got - expected).abs().mean() + across + down


def mean_of(vae: nn.Module, images: Tensor) -> Tensor:
    """The posterior's mean: (B, 4, 8, 8) for images (B, 3, 64, 64) in [-1, 1]."""
    return vae.quant_conv(vae.encoder(images))[:, :4]


def normalise_latents(vae: nn.Module, images: Tensor) -> None:
    """Move every latent channel to mean 0 and std 1 / LATENT_SCALE by rewriting the 1×1 convolutions around it."""
    with torch.no_grad():
        latents = torch.cat([mean_of(vae, chunk) for chunk in images.split(100)])
        mean, gain = latents.mean((0, 2, 3)), 1 / (LATENT_SCALE * latents.std((0, 2, 3)))
        before, after = vae.quant_conv, vae.post_quant_conv
        # decode: post(z / gain + mean) needs the old kernel to absorb both
        after.bias += after.weight[:, :, 0, 0] @ mean
        after.weight /= gain[None, :, None, None]
        before.weight[:4] *= gain[:, None, None, None]
        before.bias[:4] = (before.bias[:4] - mean) * gain
        # the posterior is a fixed Gaussian with the training noise as its std
        before.weight[4:] = 0
        before.bias[4:] = 2 * torch.log(NOISE * gain)


def train_vae() -> nn.Module:
    """Run or resume all stages; returns the trained host AutoencoderKL in float32."""
    vae = build_vae()
    initialise(vae, seed=1, zero=("conv2", "proj_out"))

    def autoencode(draw: Draw, scenes: list[Scene]) -> tuple[Tensor, dict[str, float]]:
        images = render(scenes) * 2 - 1
        mean = mean_of(vae, images)
        got = vae.decode(mean + NOISE * draw.normal(*mean.shape))
        loss = picture_loss(got, images)
        return loss + 1e-3 * mean.square().mean(), {"picture": loss.item(), "std": mean.std().item()}

    fit(vae, CROWDS, lambda draw: autoencode(draw, [sample_crowd(draw.python) for _ in range(BATCH)]))
    fit(vae, SCENES, lambda draw: autoencode(draw, sample_mixed(draw.python, BATCH)))
    scenes = sample_mixed(random.Random("latent statistics"), 1000)
    normalise_latents(vae, render(scenes) * 2 - 1)
    vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)

    def decode_noisy(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        images = render(sample_mixed(draw.python, BATCH)) * 2 - 1
        with torch.no_grad():
            latents = mean_of(vae, images)
            noise = draw.normal(*latents.shape) * draw.uniform(BATCH, 1, 1, 1) * 0.4 / LATENT_SCALE
        loss = picture_loss(vae.decode(latents + noise), images)
        return loss, {}

    fit(vae, DECODER, decode_noisy)
    return vae


def finish_decoder(vae: nn.Module, generator: Generator, corpus: Corpus) -> nn.Module:
    """Run or resume the last stage: teach the decoder the flaws of this generator's latents, and what nothing looks like.

    An empty latent, which a gate puts in place of a blocked one, must decode to an empty field. The encoder stays.
    """
    empty = torch.full((1, 3, 64, 64), EMPTY * 2 - 1)
    generator.requires_grad_(False)
    vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)

    def decode_predicted(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows = corpus.rows(draw.python, 2 * BATCH, single=0.4)
        scenes = [corpus.scenes[row] for row in rows.tolist()]
        captions = [str(pick_caption(draw.python, scene, 0.5, reading_order=True)) for scene in scenes]
        with torch.no_grad():
            t = (draw.uniform(len(rows)) * FINISH_UP_TO).long()
            x_t, _ = add_noise(corpus.latents[rows] * LATENT_SCALE, draw.normal(len(rows), 4, 8, 8), t)
            x0 = x0_from_v(x_t, generator.velocity(x_t, t, generator.context(tokenize_for_host(captions))), t)
        latents, pictures = torch.cat([x0 / LATENT_SCALE, torch.zeros_like(x0[:1])]), render(scenes) * 2 - 1
        return picture_loss(vae.decode(latents), torch.cat([pictures, empty])), {}

    fit(vae, FINISH, decode_predicted)
    return vae


def encode_scenes(vae: nn.Module, name: str, scenes: list[Scene]) -> Tensor:
    """Raw latents (N, 4, 8, 8) of many scenes, from the cache folder after the first time."""

    def make() -> dict[str, Tensor]:
        with torch.no_grad():
            chunks = [scenes[i : i + 200] for i in range(0, len(scenes), 200)]
            return {"latents": torch.cat([mean_of(vae, render(chunk) * 2 - 1) for chunk in chunks])}

    return cached(name, make)["latents"]


def fit_preview(latents: Tensor, scenes: list[Scene]) -> Tensor:
    """Least-squares map from model-space latents and a constant to the 8×8 picture in [-1, 1]: (5, 3), for the latent format."""
    pictures = nn.functional.avg_pool2d(render(scenes) * 2 - 1, 8).movedim(1, -1).reshape(-1, 3)
    cells = (latents * LATENT_SCALE).movedim(1, -1).reshape(-1, 4)
    return torch.linalg.lstsq(nn.functional.pad(cells, (0, 1), value=1.0), pictures).solution
