"""Image tower conditioned on the noise level at which its latent, an x0 prediction, was made.

A diffusion model's early predictions are blurred, and a tower trained on finished images encodes them wrongly. The level becomes a
vector that is added to every token beside its position, and it may open a narrow branch beside every block. Both are
zero-initialised and zero at level 0, so finished images take the unchanged path: a tower whose other weights were left alone
encodes them exactly as before. On a small grid there may also be a reader: a plain network over all cells at once, which is
trained in seconds; its share of the features rises with the level.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NOISE_PATH = ("noise_projection", "noise_branches", "noise_reader")  # names of the modules that only noise-conditioned encoding uses
TAKES_OVER = 8  # power of the level that is the reader's share of the features


class NoiseBranch(nn.Module):
    """Branch beside a block that adds to every token; the noise level gates each hidden unit.

    Args:
        count: of bands. hidden: units of the branch.
    """

    def __init__(self, width: int, hidden: int, count: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)
        self.gate = nn.Linear(count, hidden, bias=False)
        with torch.no_grad():
            self.gate.weight.zero_()

    def forward(self, tokens: Tensor, level_bands: Tensor) -> Tensor:
        """Tokens (B, T, width), bands of their levels (B, count) → (B, T, width)."""
        read = F.gelu(self.down(F.layer_norm(tokens, tokens.shape[-1:])))
        return self.up(read * self.gate(level_bands)[:, None])


class NoiseReader(nn.Module):
    """Network from all cells of an x0 prediction to features.

    Args:
        cells: numbers in a latent. hidden: units of the two hidden layers. count: of bands. size: of the features.
    """

    scale: Tensor  # of raw latents to a standard deviation of about one; set where it is trained

    def __init__(self, cells: int, hidden: int, count: int, size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.cells, self.level = nn.Linear(cells, hidden), nn.Linear(count, hidden, bias=False)
        self.norm, self.mix, self.norm_mixed = nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.features = nn.Linear(hidden, size)

    def forward(self, latents: Tensor, level_bands: Tensor) -> Tensor:
        """Raw latents (B, C, grid, grid), bands of their levels (B, count) → (B, size)."""
        hidden = self.norm(F.gelu(self.cells(latents.flatten(1) * self.scale) + self.level(level_bands)))
        hidden = F.dropout(hidden, 0.1, self.training)
        return self.features(F.dropout(self.norm_mixed(hidden + F.gelu(self.mix(hidden))), 0.1, self.training))


class NoiseAwareTower(VisionTransformer):
    """open_clip's ViT with `noise_projection` (bands → width) and the modules that `make_noise_aware` added."""

    noise_projection: nn.Linear
    noise_branches: nn.ModuleList  # empty in a tower without them
    noise_reader: NoiseReader | None
    reads_noise_level = True

    def forward(self, x: Tensor, noise_level: float | Tensor | None = None) -> Tensor:
        """Encode latents to features (B, D).

        Args:
            x: raw latents (B, C, grid, grid).
            noise_level: share of noise, 0 to 1, one for all or (B,); None: a finished image.
        """
        if noise_level is None:
            return super().forward(x)
        levels = torch.as_tensor(noise_level, dtype=torch.float32, device=x.device).expand(len(x))
        level_bands = bands(levels, self.noise_projection.in_features).to(x.dtype)
        patches = self.conv1(x).flatten(2).movedim(1, 2)
        tokens = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), patches], dim=1)
        tokens = tokens + (self.positional_embedding.to(x.dtype) + self.noise_projection(level_bands)[:, None])
        pooled, _ = self._pool(self._blocks(self.ln_pre(self.patch_dropout(tokens)), level_bands))
        features = pooled @ self.proj
        if self.noise_reader is None:
            return features
        share = levels.pow(TAKES_OVER).to(x.dtype)[:, None]
        return torch.lerp(F.normalize(features, dim=-1), F.normalize(self.noise_reader(x, level_bands), dim=-1), share)

    def _blocks(self, tokens: Tensor, level_bands: Tensor) -> Tensor:
        branches = self.noise_branches or [None] * len(self.transformer.resblocks)
        for block, branch in zip(self.transformer.resblocks, branches):
            if self.transformer.grad_checkpointing:
                tokens = checkpoint(_step, block, branch, tokens, level_bands, use_reentrant=False)
            else:
                tokens = _step(block, branch, tokens, level_bands)
        return tokens


def _step(block: nn.Module, branch: nn.Module | None, tokens: Tensor, level_bands: Tensor) -> Tensor:
    after = block(tokens)
    return after if branch is None else after + branch(tokens, level_bands)


def bands(levels: Tensor, count: int) -> Tensor:
    """cos(π k level) - 1 for k = 1 … count: (B, count), all zero at level 0."""
    k = torch.arange(1, count + 1, device=levels.device, dtype=levels.dtype)
    return torch.cos(math.pi * k * levels[:, None]) - 1


def make_noise_aware(tower: VisionTransformer, count: int, hidden: int = 0, reader: int = 0) -> None:
    """Condition a tower on the noise level, in place; its other weights and their names stay.

    Args:
        count: of the cosines that describe a level. hidden: units of each block's branch; 0: none. reader: of the reader; 0: none.
    """
    width, device = tower.class_embedding.shape[0], tower.class_embedding.device
    tower.noise_projection = nn.Linear(count, width, bias=False, device=device)
    with torch.no_grad():
        tower.noise_projection.weight.zero_()
    blocks = range(len(tower.transformer.resblocks) if hidden else 0)
    tower.noise_branches = nn.ModuleList([NoiseBranch(width, hidden, count) for _ in blocks]).to(device)
    cells = tower.conv1.in_channels * tower.image_size[0] * tower.image_size[1]
    tower.noise_reader = NoiseReader(cells, reader, count, tower.proj.shape[1]).to(device) if reader else None
    tower.__class__ = NoiseAwareTower
