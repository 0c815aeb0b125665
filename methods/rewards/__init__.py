"""Rewards: differentiable functions from raw latents to one number per image, higher is better."""

from .base import Encoder, Reward, Term, combine
from .similarity import latent_reward, text_reward

__all__ = ["Encoder", "Reward", "Term", "combine", "latent_reward", "text_reward"]
