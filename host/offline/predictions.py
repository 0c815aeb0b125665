"""x0 predictions of a diffusion model from noised latents, to train a noise-conditioned encoder on."""

from __future__ import annotations

from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor

from ...models.texts import cut_text
from ..sampling.guide import noise_level
from ..scorers.shapes_world import load_generator
from .calibrate import SHAPES_WORLD

READ = 8 * 77  # tokens of a caption: the host reads one of any length, 77 at a time


class DiffusionPredictor:
    """A diffusion model with its text encoder, in the host's care.

    Args:
        checkpoint: file with both, as for Load Checkpoint, or shapes-world.
        levels: predictions of each latent, at sigmas spread evenly over the model's sampling, the highest noise left out.
        cfg: guidance of every second prediction; the others have none.
    """

    def __init__(self, checkpoint: str, levels: int, cfg: float = 1.0) -> None:
        if levels < 1 or cfg < 1:
            raise ValueError(f"Got {levels} levels and cfg {cfg}, expected at least one level and a cfg of at least 1.")
        if checkpoint == SHAPES_WORLD:
            self.model, self.clip = load_generator()
        else:
            self.model, self.clip, *_ = comfy.sd.load_checkpoint_guess_config(str(Path(checkpoint)), output_vae=False)
        if self.model is None or self.clip is None:
            raise ValueError(f"{checkpoint}: expected a checkpoint with a diffusion model and its text encoder.")
        self.cfg = cfg
        sampling = self.model.get_model_object("model_sampling")
        percents = [(number + 1) / (levels + 1) for number in range(levels)]
        self.sigmas = [float(sampling.percent_to_sigma(percent)) for percent in percents]
        self.levels = [noise_level(self.model.model, sigma) for sigma in self.sigmas]

    @torch.no_grad()
    def __call__(self, raw_latents: Tensor, captions: list[str], seed: int) -> dict[str, Tensor]:
        """Predictions of raw latents (N, C, h, w): `x0` (N, L, C, h, w) raw, and `levels` (N, L)."""
        generator = torch.Generator().manual_seed(seed)
        positive, negative = ([[self._encode(texts), {}]] for texts in (captions, [""] * len(captions)))
        made = []
        for number, sigma in enumerate(self.sigmas):
            noise = torch.randn(raw_latents.shape, generator=generator)
            seen: list[Tensor] = []
            comfy.sample.sample_custom(
                self.model, noise, self.cfg if number % 2 else 1.0, comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]),
                positive, negative, raw_latents, callback=lambda step, x0, x, total, seen=seen: seen.append(x0), disable_pbar=True,
            )  # fmt: skip
            made.append(self.model.model.process_latent_out(seen[0].float()).cpu())
        return {"x0": torch.stack(made, 1), "levels": torch.tensor([self.levels] * len(raw_latents))}

    def _encode(self, texts: list[str]) -> Tensor:
        return torch.cat([self.clip.encode_from_tokens(self.clip.tokenize(cut_text(text, READ))) for text in texts])
