"""Rewards: differentiable functions from raw latents to one number per image, higher is better."""

from .avoid import avoid_reward
from .base import Encoder, Reward, Term, combine
from .similarity import latent_reward, text_reward

__all__ = ["Encoder", "Reward", "Term", "avoid_reward", "combine", "latent_reward", "text_reward"]
