"""The VAE of the emoji study: the host's AutoencoderKL with 16 channels, trained on the five artists."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..demo.train_vae import picture_loss
from ..demo.training import Draw, Recipe, cached, fit
from ..training.leash import psnr
from .second_vae import CHANNELS, NOISE, mean_of, second_vae

VAE = Recipe("emoji/vae", steps=600, lr=1.2e-3, seed=31)
VAE_BATCH = 8


@torch.enable_grad()
def train_vae(pictures: Tensor) -> nn.Module:
    """Train or resume the host's AutoencoderKL on views uint8 (N, V, 3, 64, 64), from the second VAE of Shapes World on."""
    vae = second_vae().requires_grad_(True)

    def autoencode(draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rows, views = draw.rows(len(pictures), VAE_BATCH), draw.rows(pictures.shape[1], VAE_BATCH)
        images = pictures[rows, views].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            mean = mean_of(vae, images).float()
            got = vae.decode(mean + NOISE * draw.normal(*mean.shape)).float()
        loss = picture_loss(got, images)
        return loss + 1e-3 * mean.square().mean(), {"picture": loss.item(), "std": mean.std().item()}

    fit(vae, VAE, autoencode)
    vae.requires_grad_(False)
    # the posterior is a fixed Gaussian with the training noise as its std
    vae.quant_conv.weight[CHANNELS:] = 0
    vae.quant_conv.bias[CHANNELS:] = 2 * math.log(NOISE)
    return vae


@torch.no_grad()
def encode(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Raw latents (N, 16, 8, 8) of pictures uint8 (N, 3, 64, 64); computed in bfloat16, three times as fast here."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([mean_of(vae, part.float() / 127.5 - 1).float() for part in pictures.split(100)])


def latents_of(vae: nn.Module, pictures: Tensor, name: str) -> Tensor:
    """Raw latents float16 (N, V, 16, 8, 8) of views uint8 (N, V, 3, 64, 64), from the cache after the first time."""
    make = lambda: {"latents": encode(vae, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).half()}  # noqa: E731
    return cached(f"emoji/latents_{name}", make)["latents"]


@torch.no_grad()
def decoded(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures uint8 (N, 3, 64, 64) through the VAE: 0..1."""
    return torch.cat([((vae.decode(encode(vae, part)) + 1) / 2).clamp(0, 1) for part in pictures.split(100)])


def round_trips(vae: nn.Module, pictures: Tensor) -> Tensor:
    """PSNR in dB of pictures uint8 (N, 3, 64, 64) through the VAE: (N,)."""
    return psnr(decoded(vae, pictures), pictures.float() / 255)
