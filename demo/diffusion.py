"""v-prediction on the host's noise schedule, and the DDIM sampler that makes distillation pairs.

Everything is in the model's space: latents times 0.13025, with unit variance. With ab = alphas_cumprod[t]:
x_t = sqrt(ab) x0 + sqrt(1 - ab) noise, v = sqrt(ab) noise - sqrt(1 - ab) x0 (Salimans and Ho 2022, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

STEPS = 1000
LAST = STEPS - 1  # the timestep of pure noise, where the one-step generator lives

# Stable Diffusion's "scaled linear" betas, the host's default for discrete schedules
ALPHAS_CUMPROD = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2).cumprod(0).float()


def signal_and_noise(t: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(ab) and sqrt(1 - ab) for timesteps (B,), shaped (B, 1, 1, 1)."""
    ab = ALPHAS_CUMPROD[t][:, None, None, None]
    return ab.sqrt(), (1 - ab).sqrt()


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the velocity to predict, both shaped as x0 (B, C, H, W)."""
    signal, sigma = signal_and_noise(t)
    return signal * x0 + sigma * noise, signal * noise - sigma * x0


def x0_from_v(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The clean latents that a velocity implies, shaped as x_t."""
    signal, sigma = signal_and_noise(t)
    return signal * x_t - sigma * v


def ddim(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Deterministic DDIM from pure noise (B, C, H, W) to x0, timesteps evenly spaced and the last one included.

    Args:
        velocity: takes x_t and t (B,), returns v; apply guidance inside.
    """
    x = noise
    times = torch.linspace(LAST, 0, steps + 1).long()
    for now, after in pairwise(times):
        t = now.expand(len(x))
        x0 = x0_from_v(x, velocity(x, t), t)
        signal, sigma = signal_and_noise(t)
        next_signal, next_sigma = signal_and_noise(after.expand(len(x)))
        x = next_signal * x0 + next_sigma * (x - signal * x0) / sigma
    return x0
