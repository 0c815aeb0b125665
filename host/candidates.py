"""What a search starts from: the candidates, their noise, and the schedule and guider of their drafts."""

import copy

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..models.latent_spaces import LatentSpaceError

MAX_SCHEDULE = 1000  # steps of the schedule that a draft of an image-to-image sampling takes the end of


def draft_sigmas(model_sampling, scheduler: str, steps: int, first: float) -> Tensor:
    """Noise levels of a draft, (steps + 1,), from `first` to 0: the end of a scheduler's own for a longer sampling.

    Raises:
        ValueError: this scheduler has no so short a schedule.
    """
    for total in range(steps, MAX_SCHEDULE):
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, total)
        below = sigmas[sigmas < first * (1 - 1e-4)]
        if len(below) >= steps:
            return torch.cat([sigmas.new_tensor([first]), below[-steps:]])
    raise ValueError(
        f"Got the draft_scheduler {scheduler}, which has no {steps} steps below the noise level {first:.3g}. Use simple."
    )


def copy_of(guider, drafter):
    """The guider with a model of its own to hang wrappers on; with `drafter`, that model at cfg 1."""
    guider, model = copy.copy(guider), drafter or guider.model_patcher
    options = model.model_options if drafter is not None else guider.model_options
    guider.model_patcher = model.clone()
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    if drafter is not None and hasattr(guider, "cfg"):
        guider.cfg = 1.0
    return guider


def candidates_of(patcher, latent: dict, candidates: int) -> dict:
    """The LATENT with one item for each candidate and a `batch_index`; a batch of its own is taken as it is."""
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    if getattr(samples, "is_nested", False) or samples.ndim != 4:
        raise LatentSpaceError(
            f"Got a latent of shape {tuple(samples.shape)}, expected images (batch, channels, height, width)."
        )
    if len(samples) == 0:
        raise ValueError("Got an empty batch, expected one latent to draw candidates for, or a batch of candidates.")
    latent = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    indices = [int(index) for index in latent.get("batch_index") or range(len(samples))]
    if len(samples) == 1:
        samples = samples.repeat(candidates, 1, 1, 1)
        indices = [indices[0] + place for place in range(candidates)]
    return {**latent, "samples": samples, "batch_index": indices}


def noise_of(noise, latent: dict) -> Tensor:
    """The noise of every candidate: that of its `batch_index`, as a stock sampler takes it for this item alone.

    Raises:
        ValueError: none for some candidate, or the same for all where nothing else tells them apart.
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


def check_drafter(drafter, patcher) -> None:
    """Raises: LatentSpaceError: two MODELs that make latents of different spaces."""
    theirs, ours = (type(model.get_model_object("latent_format")).__name__ for model in (drafter, patcher))
    if theirs != ours:
        raise LatentSpaceError(
            f"Got a drafter that makes {theirs} latents for a model that makes {ours}. Use a drafter of the same VAE, such as the same "
            "model with a turbo or lightning LoRA, or leave it out."
        )
