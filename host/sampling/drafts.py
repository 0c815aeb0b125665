"""Drafts: a whole batch finished in a few steps from its own noise, to be scored before anything is sampled in full."""

import copy

import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from ...models.latent_spaces import LatentSpaceError

DRAFT_SAMPLER = "euler"  # of the samplers whose end depends on the noise alone, the one whose short runs are most informative
DRAFT_SCHEDULER = "simple"  # of the schedulers, the one whose drafts are likest to the picture
MAX_SCHEDULE = 1000  # steps of the schedule that a draft of an image-to-image sampling takes the end of
KEY = "latent_clip_draft"


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
    """Copy a guider with a model of its own for wrappers; with `drafter`, that model at cfg 1."""
    guider, model = copy.copy(guider), drafter or guider.model_patcher
    options = model.model_options if drafter is not None else guider.model_options
    guider.model_patcher = model.clone()
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    if drafter is not None and hasattr(guider, "cfg"):
        guider.cfg = 1.0
    return guider


def drafting_copy(guider, drafter):
    """Copy a guider for drafts: guidance with a window may find no step of it in so few steps."""
    guider = copy_of(guider, drafter)
    guider.model_options.setdefault("transformer_options", {})[KEY] = True
    return guider


def is_draft(model_options: dict) -> bool:
    """Return True if a sampling with these options is that of a `drafting_copy`."""
    return model_options.get("transformer_options", {}).get(KEY, False)


def check_drafter(drafter, patcher) -> None:
    """Refuse two MODELs that make latents of different spaces."""
    theirs, ours = (type(model.get_model_object("latent_format")).__name__ for model in (drafter, patcher))
    if theirs != ours:
        raise LatentSpaceError(
            f"Got a drafter that makes {theirs} latents for a model that makes {ours}. Use a drafter of the same VAE, such as the same "
            "model with a turbo or lightning LoRA, or leave it out."
        )
