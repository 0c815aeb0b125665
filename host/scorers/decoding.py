"""VAE decoder of the host for scorers of pixels: pictures in 0..1, differentiable if the decoder is."""

import inspect
from contextlib import nullcontext

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models.latent_spaces import LatentSpace, space_of_channels
from ..memory.gradients import checkpointed_blocks
from ..memory.oom import BatchLimit, is_oom

TILE = {2: 512, 3: 256}  # pixels along a side, as the host takes them for latents of so many dimensions
PROBE = 8  # latent cells along a side of the probe of a decoder's backward pass
PICTURE = 3  # channels; a fourth is opacity, which a CLIP does not read


class Decoder:
    """Decode raw latents to pictures with the host's own decoder.

    Call it with `vae.patcher` loaded. Where memory runs out, one picture is decoded in tiles, as the host itself does it.
    """

    backward_cost = 3  # times memory_per_item, with gradients and all activations kept: counted in bench/reno_memory.py

    def __init__(self, vae: comfy.sd.VAE):
        """Raises: ValueError: the VAE makes no pictures."""
        if vae.first_stage_model is None:
            raise ValueError(
                "Got a VAE without weights, expected one that decodes. The checkpoint may have none: use Load VAE."
            )
        if vae.latent_dim not in TILE or vae.output_channels not in (PICTURE, PICTURE + 1):
            raise ValueError(
                f"Got a VAE with {vae.latent_dim}-dimensional latents and {vae.output_channels} output channels, expected one for "
                "images or video. Use the VAE of the checkpoint that made the latents."
            )
        self.vae = vae
        self.limit = BatchLimit()
        self._has_backward = False  # known after the first time

    @property
    def name(self) -> str:
        return type(self.vae.first_stage_model).__name__

    @property
    def space(self) -> LatentSpace:
        return space_of_channels(
            self.vae.latent_channels, self.vae.spacial_compression_decode(), self.vae.latent_dim == 3
        )

    def memory_per_item(self, shape: torch.Size) -> int:
        """The host's own estimate for decoding one latent of (B, C, H, W) or (B, C, T, H, W)."""
        decoded = self._as_decoded(torch.empty(1, *shape[1:], device="meta"))
        return len(decoded) * int(self.vae.memory_used_decode((1, *decoded.shape[1:]), self.vae.vae_dtype))

    def fits(self, raw_latents: Tensor) -> bool:
        """Return True if all activations for the backward pass fit beside the present contents of the device."""
        need = len(raw_latents) * self.backward_cost * self.memory_per_item(raw_latents.shape)
        return need <= mm.get_free_memory(self.vae.device)

    def __call__(self, raw_latents: Tensor) -> Tensor:
        """Decode raw latents to pictures.

        Args:
            raw_latents: (B, C, H, W), or (B, C, T, H, W) for several frames.

        Returns:
            (B, F, 3, height, width) float32 in 0..1 on the VAE's device; F is 1 for an image.

        Raises:
            ValueError: a gradient is wanted and the decoder has none, or what it returns is no picture.
        """
        latents = self._as_decoded(raw_latents.to(device=self.vae.device, dtype=self.vae.vae_dtype))
        backward = torch.is_grad_enabled() and latents.requires_grad
        if backward:
            self._check_backward(latents)
        blocks = blocks_of(self.vae.first_stage_model) if backward and not self.fits(raw_latents) else set()
        with checkpointed_blocks(self.vae.first_stage_model, blocks) if blocks else nullcontext():
            pixels = self._whole_or_tiled(latents, backward, alone=len(raw_latents) == 1)
        if self.vae.latent_dim == 2:
            pixels = rearrange(pixels, "(b f) c h w -> b f c h w", b=len(raw_latents))
        else:
            pixels = pixels.movedim(2, 1)
        return pixels[:, :, :PICTURE]

    def _as_decoded(self, raw_latents: Tensor) -> Tensor:
        """Reshape latents for this VAE: frames are a dimension of their own in a video VAE, and images in any other."""
        if self.vae.latent_dim == 3:
            return raw_latents.unsqueeze(2) if raw_latents.ndim == 4 else raw_latents
        return raw_latents if raw_latents.ndim == 4 else rearrange(raw_latents, "b c t h w -> (b t) c h w")

    def _whole_or_tiled(self, latents: Tensor, backward: bool, alone: bool) -> Tensor:
        try:
            return self._picture(self._decode(latents))
        except (mm.OOM_EXCEPTION, RuntimeError) as error:
            if not alone or not is_oom(error):  # a batch is first tried item by item, by whoever called
                raise
        mm.soft_empty_cache()  # outside the handler, whose traceback keeps the activations alive
        return self._picture(self._in_tiles(latents, backward))

    def _decode(self, latents: Tensor) -> Tensor:
        decoded = self.vae.first_stage_model.decode(latents).float()
        if decoded.ndim != latents.ndim or decoded.shape[1] not in (PICTURE, PICTURE + 1):
            raise ValueError(
                f"Got a VAE ({self.name}) that decodes latents of shape {tuple(latents.shape)} to {tuple(decoded.shape)}, expected "
                "pictures. Use the VAE of the checkpoint that made the latents."
            )
        return decoded

    def _picture(self, decoded: Tensor) -> Tensor:
        # the host's process_output writes into its argument, which autograd may still need
        return self.vae.process_output(decoded.clone())

    def _in_tiles(self, latents: Tensor, backward: bool) -> Tensor:
        """Decode in the host's tiles, recomputed in the backward pass; norms see one tile, so pixels differ a little."""
        vae, dimensions = self.vae, self.vae.latent_dim
        side = TILE[dimensions] // vae.spacial_compression_decode()
        frames = latents.shape[2:-2]
        decode = (lambda tile: checkpoint(self._decode, tile, use_reentrant=False)) if backward else self._decode
        tiled_scale = inspect.unwrap(
            comfy.utils.tiled_scale_multidim
        )  # out of the inference mode that the host puts around it
        return tiled_scale(
            latents,
            decode,
            tile=(*frames, side, side),
            overlap=(*(1 for _ in frames), side // 4, side // 4),
            upscale_amount=vae.upscale_ratio,
            out_channels=vae.output_channels,
            index_formulas=vae.upscale_index_formula,
            output_device=vae.device,
        )

    def _check_backward(self, latents: Tensor) -> None:
        """Refuse a decoder through which no gradient passes; tried once, on a small latent."""
        if self._has_backward:
            return
        probe = torch.zeros_like(latents[:1, ..., :PROBE, :PROBE]).requires_grad_()
        try:
            torch.autograd.grad(self._decode(probe).sum(), probe)
        except RuntimeError as error:
            if is_oom(error):
                raise
            raise ValueError(
                f"Got a VAE ({self.name}) whose decoder has no gradient, so nothing can be optimised or steered through it. Score, "
                "Select and Search work with it; for Optimize Noise and Guide Model use a latent reward. PyTorch says: "
                f"{str(error).splitlines()[0][:200]}"
            ) from error
        self._has_backward = True


def blocks_of(network: nn.Module) -> set[nn.Module]:
    """Innermost modules with "block" in the name of their class: they hold most activations of a decoder."""

    def is_block(module: nn.Module) -> bool:
        return "block" in type(module).__name__.lower()

    return {
        m for m in network.modules() if is_block(m) and not any(is_block(part) for part in m.modules() if part is not m)
    }
