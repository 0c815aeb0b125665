"""Latent-CLIP (arXiv 2503.08455): open_clip's CLIP whose image tower reads a VAE latent.

The towers and the tokenizer are open_clip's. What differs is the patch convolution, which takes the latent's channels,
and the grid: `image_size` of a config is in pixels, so the tower sees `image_size / latent_factor` latent cells.
"""

import copy
import hashlib

import torch
from open_clip.model import CustomTextCLIP
from torch import nn

from .config import NOISE_BANDS, NOISE_HIDDEN, NOISE_READER, latent_grid
from .noise_level import NOISE_PATH, make_noise_aware

SAMPLED = 1024  # values of each tensor that go into its identity: training changes all of them


class LatentCLIP(CustomTextCLIP):
    """CLIP over raw latents.

    `encode_image` takes raw latents (B, C, grid, grid), the VAE's posterior sample, *not* multiplied by the scale of
    the latent space. `encode_text` takes token ids (B, context_length). Both return features (B, embed_dim).

    Args:
        config: open_clip model config with `latent_factor` and `latent_n_channels` in its `vision_cfg`, see
            `models/configs/`; with `latent_noise_bands`, `visual` is conditioned on a noise level (`models.noise_level`).
    """

    def __init__(self, config: dict):
        vision_cfg = copy.deepcopy(config["vision_cfg"])
        noise = [vision_cfg.pop(key, 0) for key in (NOISE_BANDS, NOISE_HIDDEN, NOISE_READER)]
        own = ("latent_encoder_name", "latent_factor", "latent_n_channels", "latent_n_decoding_layers")
        for key in own:
            vision_cfg.pop(key, None)
        vision_cfg["image_size"] = latent_grid(config)
        super().__init__(config["embed_dim"], vision_cfg, config["text_cfg"], config.get("quick_gelu", False))
        width, patch_size = vision_cfg["width"], vision_cfg["patch_size"]
        self.visual.conv1 = nn.Conv2d(
            config["vision_cfg"]["latent_n_channels"], width, patch_size, stride=patch_size, bias=False
        )
        if noise[0]:
            make_noise_aware(self.visual, *noise)


def load_latent_clip(config: dict, state_dict: dict[str, torch.Tensor]) -> LatentCLIP:
    """Build a frozen LatentCLIP around the tensors of `state_dict` without copying or initialising a weight.

    Args:
        config: architecture; `state_dict`: exactly its tensors, checked by `models.checkpoint`.
    """
    with torch.device("meta"):
        model = LatentCLIP(config)
    model.load_state_dict(state_dict, strict=True, assign=True)
    # the causal mask is a non-persistent buffer, so it is still on the meta device
    with torch.device("cpu"):
        model.text.attn_mask = model.text.build_causal_mask()
    return model.train(False).requires_grad_(False)


def identity(model: LatentCLIP) -> str:
    """Identity of a Latent-CLIP: 16 hex digits, the same for every file format and for fp32 and fp16 weights.

    A hash of names, shapes and evenly spaced values, in float16, of every weight. A bfloat16 copy has another identity: its
    cosines may differ by 0.01, at CLIP's usual scale of 100 a whole log-odd, so that thresholds do not carry over. Weights that
    only noise-conditioned encoding uses are left out: thresholds are of finished images, which are encoded without them.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith(tuple(f"visual.{part}." for part in NOISE_PATH)):
            continue
        values = weight.flatten()[:: max(1, weight.numel() // SAMPLED)]
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]
