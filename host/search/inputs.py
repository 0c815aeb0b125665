"""Inputs of a search: the candidates and their noise."""

from torch import Tensor

from ...models.latent_spaces import LatentSpaceError
from ..scorers.latents import latents_for


def candidates_of(patcher, latent: dict, candidates: int) -> dict:
    """Return the LATENT with one item per candidate and a `batch_index`; a batch of several is taken as it is."""
    samples = latents_for(patcher, latent)
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
        raise LatentSpaceError(
            f"Got a latent of shape {tuple(samples.shape)}, expected images (batch, channels, height, width) or clips of frames, "
            "without sound. Sample several seeds and use Select Best Latents, which scores the picture part."
        )
    if len(samples) == 0:
        raise ValueError("Got an empty batch, expected one latent to draw candidates for, or a batch of candidates.")
    latent = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    indices = [int(index) for index in latent.get("batch_index") or range(len(samples))]
    if len(samples) == 1:
        samples = samples.repeat(candidates, *[1] * (samples.ndim - 1))
        indices = [indices[0] + place for place in range(candidates)]
    return {**latent, "samples": samples, "batch_index": indices}


def noise_of(noise, latent: dict) -> Tensor:
    """Noise of every candidate: that of its `batch_index`, as a stock sampler takes it for this item alone.

    Raises:
        ValueError: none for some candidate, or the same for all where nothing else distinguishes them.
    """
    samples = latent["samples"]
    start = noise.generate_noise(latent)
    if start.shape != samples.shape:
        raise ValueError(
            f"Got noise of shape {tuple(start.shape)} for {len(samples)} candidates of shape {tuple(samples.shape[1:])}, expected one for each."
        )
    alike = bool((start == start[:1]).all()) and bool((samples == samples[:1]).all())
    if alike:
        raise ValueError(
            f"Got the same noise and the same latent for all {len(samples)} candidates, as from Disable Noise. Connect Random Noise."
        )
    return start
