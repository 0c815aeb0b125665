"""Latent-CLIP's forward pass from its formulas, on the names of an original checkpoint: what the pack is held against.

Plain tensor arithmetic in float64, without open_clip, torch.nn or any code of the pack.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def image_features(weights: Weights, raw_latents: Tensor, heads: int) -> Tensor:
    """Raw latents (B, C, H, W) → (B, D), not normalised."""
    w = {
        key.removeprefix("visual.latent_vit."): value.double() for key, value in weights.items() if "latent_vit" in key
    }
    kernel = w["conv1.weight"]
    width, channels, patch, _ = kernel.shape
    batch, _, height, _ = raw_latents.shape
    rows = height // patch
    patches = raw_latents.double().reshape(batch, channels, rows, patch, rows, patch)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * rows, channels * patch * patch)
    tokens = patches @ kernel.reshape(width, -1).T
    x = torch.cat([w["class_embedding"].expand(batch, 1, width), tokens], dim=1) + w["positional_embedding"]
    x = blocks(w, layer_norm(w, "ln_pre", x), heads)
    return layer_norm(w, "ln_post", x[:, 0]) @ w["proj"]


def text_features(weights: Weights, ids: Tensor, heads: int) -> Tensor:
    """Token ids (B, L) → (B, D), not normalised."""
    w = {key: value.double() for key, value in weights.items() if not key.startswith(("visual.", "token_embedding."))}
    x = weights["token_embedding.weight"][ids].double() + w["positional_embedding"]
    x = layer_norm(w, "ln_final", blocks(w, x, heads, causal=True))
    return x[torch.arange(len(ids)), ids.argmax(dim=1)] @ w["text_projection"]


def blocks(w: Weights, x: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Every pre-norm block of a tower in turn."""
    layers = sum(key.startswith("transformer.resblocks.") and key.endswith("ln_1.weight") for key in w)
    for i in range(layers):
        name = f"transformer.resblocks.{i}"
        x = x + attention(w, f"{name}.attn", layer_norm(w, f"{name}.ln_1", x), heads, causal)
        x = x + linear(w, f"{name}.mlp.c_proj", gelu(linear(w, f"{name}.mlp.c_fc", layer_norm(w, f"{name}.ln_2", x))))
    return x


def attention(w: Weights, name: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    """softmax(q kᵀ / √d) v, head by head."""
    batch, length, width = x.shape
    q, k, v = (x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]).chunk(3, dim=-1)
    q, k, v = (t.reshape(batch, length, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.transpose(-2, -1) / math.sqrt(width // heads)
    if causal:
        logits = logits.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
    mixed = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width)
    return linear(w, f"{name}.out_proj", mixed)


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """(x − mean) / √(variance + 1e-5), scaled and shifted."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """X Wᵀ + b."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """The exact one, by the error function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
