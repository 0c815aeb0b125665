"""Rewards: differentiable functions from raw latents to one number per image, higher is better."""

from .avoid import avoid_reward
from .base import Encoder, Reward, Term, WindowEncoder, combine, seen_by
from .similarity import latent_reward, log_odds_reward, text_reward

__all__ = [
    "Encoder",
    "Reward",
    "Term",
    "WindowEncoder",
    "avoid_reward",
    "combine",
    "latent_reward",
    "log_odds_reward",
    "seen_by",
    "text_reward",
]
