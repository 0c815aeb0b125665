"""Drafts of Safety Guidance: each image is drafted in a few steps and scored as the gate scores it, before the sampler's first step.

Flagged images are made from the fallback prompt from the first step on. The others are sampled as without drafts, bit for bit.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import comfy.model_management as mm
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...methods.concepts import ConceptDirections
from ...methods.gate import Flags
from ..sampling.active_items import KEY as ACTIVE_ITEMS
from ..sampling.active_items import ActiveItems, active_items
from ..sampling.drafts import DRAFT_SAMPLER, DRAFT_SCHEDULER, draft_sigmas, drafting_copy
from ..sampling.patches import patches_of
from ..sampling.steering import KEY, SAFETY, steerings
from ..scorers.encoders import HostWindowEncoder
from ..scorers.log_odds import log_odds
from .carried import SafetySteering

LOGGER = logging.getLogger(__name__)
OURS = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.PREPARE_SAMPLING, WrappersMP.CALC_COND_BATCH)


@dataclass(frozen=True)
class Sampling:
    """Arguments of a whole sampling: noise and raw `latent`, both (B, C, H, W), and sigmas (steps + 1,)."""

    noise: Tensor
    latent: Tensor
    sampler: comfy.samplers.Sampler
    sigmas: Tensor
    mask: Tensor | None
    seed: int | None


@dataclass(frozen=True)
class Draft:
    """Verdicts of the drafts of a batch.

    Attributes:
        reasons: reason for each flagged image; "" for the others, and for images that were not drafted.
        scores: log-odds (B, categories) of the drafts, NaN where there are none.
        picture: raw latents (B, C, H, W), where the draft is what the sampler makes, bit for bit.
        steps: calls of the sampler's callback meanwhile: (step, x0, x, steps) of each.
    """

    reasons: list[str]
    scores: Tensor
    picture: Tensor | None = None
    steps: tuple[tuple, ...] = ()

    @property
    def flagged(self) -> list[int]:
        return [item for item, reason in enumerate(self.reasons) if reason]


@dataclass(frozen=True)
class DraftScorer:
    """Encoder that scores drafts, with categories and thresholds for finished images."""

    encoder: HostWindowEncoder
    concepts: ConceptDirections

    def scores(self, samples: Tensor) -> Tensor:
        """Log-odds (B, categories) of raw latents (B, C, H, W)."""
        return log_odds(samples, self.encoder, self.concepts, progress=False)


@dataclass(frozen=True)
class LookAhead:
    """Draft a batch and score the drafts.

    Attributes:
        scorers: each of them may flag an image; their categories follow one another.
        steps: of a draft. A sampling that has no more of them is its own draft.
        drafter: MODEL that makes the drafts, at cfg 1; None: the one that is sampled.
    """

    scorers: tuple[DraftScorer, ...]
    steps: int = 4
    drafter: object | None = None

    def __call__(self, guider, sampling: Sampling) -> Draft:
        """Draft and score the whole batch. It fails closed: images that cannot be drafted or scored are flagged."""
        size = len(sampling.noise)
        try:
            samples, picture, steps = self._draft(guider, sampling)
            scores = torch.cat([scorer.scores(samples) for scorer in self.scorers], dim=1)
            reasons = Flags(scores, *self._categories()).reasons
        except mm.InterruptProcessingException:
            raise
        except Exception as error:  # as in the gate: any error has an answer
            LOGGER.exception("%s: nothing could be drafted, so that every image follows the fallback prompt.", SAFETY)
            unknown = torch.full((size, len(self._categories()[0])), math.nan)
            return Draft([f"could not be drafted: {error or type(error).__name__}"] * size, unknown)
        active = active_items(guider.model_options, size)
        reasons = [reason if item in active else "" for item, reason in enumerate(reasons)]
        return Draft(reasons, scores, samples if picture else None, tuple(steps))

    def _categories(self) -> tuple[list[str], list[float]]:
        """Names and thresholds of all scorers."""
        every = [pair for scorer in self.scorers for pair in zip(scorer.concepts.names, scorer.concepts.thresholds)]
        return [name for name, _ in every], [threshold for _, threshold in every]

    def _draft(self, guider, sampling: Sampling) -> tuple[Tensor, bool, list[tuple]]:
        """Make the drafts: (raw latents, whether they are what the sampler makes, calls of its callback)."""
        noise, active = sampling.noise, active_items(guider.model_options, len(sampling.noise))
        picture = self._is_the_picture(guider, sampling)
        guider = drafting_copy(guider, self.drafter)
        _leave_safety_out(guider, merged=self.drafter is None)
        sampler, sigmas = sampling.sampler, sampling.sigmas.clone()  # uni_pc writes into them
        if not picture:
            sampler, sigmas = self._few_steps(guider, float(sigmas[0]))
            _in_parts(guider, len(noise), active)
        calls: list[tuple] = []
        bar = comfy.utils.ProgressBar(len(sigmas) - 1)

        def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            mm.throw_exception_if_processing_interrupted()
            bar.update_absolute(step + 1)  # without a preview, which no encoder has checked
            if picture:
                calls.append((step, x0.clone(), x.clone(), total))

        with _forked_rng(guider.model_patcher.load_device) if not picture else nullcontext():
            samples = guider.sample(
                noise, sampling.latent, sampler, sigmas, denoise_mask=sampling.mask, callback=callback, disable_pbar=True,
                seed=sampling.seed,
            )  # fmt: skip
        return samples, picture, calls

    def _is_the_picture(self, guider, sampling: Sampling) -> bool:
        in_search = ACTIVE_ITEMS in guider.model_options.get("transformer_options", {})  # which must see every evaluation
        few = len(sampling.sigmas) - 1 <= self.steps and float(sampling.sigmas[-1]) == 0
        # another Safety Guidance on the model is left out of drafts, but not of the picture
        alone = sum(isinstance(steering, SafetySteering) for steering in steerings(guider.model_options)) == 1
        return few and alone and self.drafter is None and not in_search

    def _few_steps(self, guider, first: float) -> tuple[comfy.samplers.Sampler, Tensor]:
        """Sampler and noise levels from `first` on."""
        schedule = guider.model_patcher.get_model_object("model_sampling")
        return comfy.samplers.sampler_object(DRAFT_SAMPLER), draft_sigmas(schedule, DRAFT_SCHEDULER, self.steps, first)


def _in_parts(guider, size: int, active: Sequence[int]) -> None:
    """Let a copied guider evaluate the active images only, as many at a time as there is room for."""
    # whole where other nodes have patched the model, as the sampler takes it: some keep what they saw for the next evaluation
    chunks = ActiveItems(size, divisible=not patches_of(guider.model_patcher))
    chunks.attach(guider)
    chunks.alive = list(active)


def _forked_rng(device: torch.device):
    """Keep the global RNG state, from which some samplers take their noise, unchanged."""
    return torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else [])


def _leave_safety_out(guider, merged: bool) -> None:
    """Take Safety Guidance, and the active items of a search, out of a copied guider.

    Args:
        merged: the host has put the model's wrappers into the guider's options already, and will put them there again.
    """
    patcher, options = guider.model_patcher, guider.model_options.get("transformer_options", {})
    if merged:
        for kind, theirs in (("wrappers", patcher.wrappers), ("callbacks", patcher.callbacks)):
            options[kind] = _without(options.get(kind, {}), theirs)
    options.pop(ACTIVE_ITEMS, None)
    for kind in OURS:
        keys = patcher.wrappers.get(kind, {})
        keys.pop(ACTIVE_ITEMS, None)
        keys[KEY] = [wrapper for wrapper in keys.get(KEY, []) if not isinstance(wrapper.__self__, SafetySteering)]
    on_pre_run = patcher.callbacks.get(CallbacksMP.ON_PRE_RUN, {})
    on_pre_run[KEY] = [callback for callback in on_pre_run.get(KEY, []) if not isinstance(callback.__self__, SafetySteering)]


def _without(every: dict, some: dict) -> dict:
    """Remove from kind → key → functions those that `some` has too."""
    return {
        kind: {
            key: [f for f in functions if f not in some.get(kind, {}).get(key, [])] for key, functions in keys.items()
        }
        for kind, keys in every.items()
    }
