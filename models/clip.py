"""CLIP's two transformers (Radford et al. 2021), in open_clip's custom-text layout: the same names, shapes and numbers.

Only what the checkpoints of this field need: a plain ViT over patches and a causal text transformer. Written here, because
open_clip wants a timm of its own choosing, and an upgraded timm breaks other packs. The tests compare the two.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VisionConfig:
    """open_clip's `vision_cfg`. `image_size` and `patch_size` in the tower's own cells: pixels, or latent cells."""

    image_size: int = 224
    layers: int = 12
    width: int = 768
    patch_size: int = 16
    head_width: int = 64
    mlp_ratio: float = 4.0
    channels: int = 3


@dataclass(frozen=True)
class TextConfig:
    """open_clip's `text_cfg`."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the activation of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); x (B, L, width)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: type[nn.Module]):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", activation()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, activation: type[nn.Module]):
        super().__init__()
        blocks = [ResidualAttentionBlock(width, heads, mlp_ratio, activation) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """Images (B, channels, image_size, image_size) → features (B, embed_dim), not normalised."""

    def __init__(self, config: VisionConfig, embed_dim: int, activation: type[nn.Module]):
        super().__init__()
        width, patch, scale = config.width, config.patch_size, config.width**-0.5
        self.conv1 = nn.Conv2d(config.channels, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((config.image_size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        heads = width // config.head_width
        self.transformer = Transformer(width, config.layers, heads, config.mlp_ratio, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x)[:, 0] @ self.proj


class TextTransformer(nn.Module):
    """Token ids (B, L) → features (B, embed_dim), read at the end-of-text token, which has the highest id."""

    attn_mask: Tensor

    def __init__(self, config: TextConfig, embed_dim: int, activation: type[nn.Module]):
        super().__init__()
        width = config.width
        self.context_length, self.vocab_size = config.context_length, config.vocab_size
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_ratio, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.register_buffer("attn_mask", self.build_causal_mask(), persistent=False)
        self._initialise(width, config.layers)

    def build_causal_mask(self) -> Tensor:
        """(L, L): 0 on and below the diagonal, -inf above."""
        return torch.full((self.context_length, self.context_length), -math.inf).triu(1)

    def _initialise(self, width: int, layers: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        residual = width**-0.5 * (2 * layers) ** -0.5
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.token_embedding(ids)
        x = x + self.positional_embedding[:length].to(x.dtype)
        x = self.transformer(x, self.attn_mask[:length, :length].to(x.dtype))
        return self.ln_final(x)[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)] @ self.text_projection


class CLIP(nn.Module):
    """Both towers and the learned temperature.

    Args:
        embed_dim, vision_cfg, text_cfg, quick_gelu: as in open_clip's model configs.

    Raises:
        TypeError: a key that is not one of `VisionConfig` or `TextConfig`.
    """

    def __init__(self, embed_dim: int, vision_cfg: dict, text_cfg: dict, quick_gelu: bool = False):
        super().__init__()
        activation = QuickGELU if quick_gelu else nn.GELU
        self.visual = VisionTransformer(VisionConfig(**vision_cfg), embed_dim, activation)
        self.text = TextTransformer(TextConfig(**text_cfg), embed_dim, activation)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def context_length(self) -> int:
        return self.text.context_length

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """See `VisionTransformer`; of unit length where `normalize` is true."""
        features = self.visual(images)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        """See `TextTransformer`; of unit length where `normalize` is true."""
        features = self.text(ids)
        return F.normalize(features, dim=-1) if normalize else features
