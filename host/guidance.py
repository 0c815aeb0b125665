"""Guidance inside the host: what the guider predicts of the clean latent is changed before the sampler goes on.

`guide_model` adds a bounded step up a reward to it; `redirect_model` lets the sampler follow another prompt once the
prediction shows what is to be kept out.
"""

import copy
import uuid
from dataclasses import replace

import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..methods.guidance import AvoidConcepts, ConceptWatch, GuidanceSettings, Objective, correction
from ..methods.rewards import told
from .conditioning import cond_items
from .encoders import host_encoders
from .gradients import gradients
from .known_latents import ALIKE, KNOWN, LastPrediction, fingerprint, found_before
from .rows import alive_rows
from .steering import SAFETY, Prediction, Run, Steering, Window, steered

NOT_IN_A_PROMPT = (
    "control", "area", "mask", "gligen", "hooks", "start_percent", "clip_start_percent", "additional_models"
)  # fmt: skip
# other nodes' work on a prediction; some of it keeps the last batch in mind, and would be confused by the suspects alone
HOOKS_ON_PREDICTIONS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


def guide_model(patcher, objective: Objective, settings: GuidanceSettings, window: Window):
    """A copy of a MODEL that climbs an objective whenever it is sampled.

    Raises:
        LatentSpaceError: the model makes latents that the objective cannot read.
    """
    return steered(patcher, Climb(objective, settings, window))


def redirect_model(patcher, watch: ConceptWatch, instead: list, window: Window):
    """A copy of a MODEL whose sampler leaves an item's prompt for `instead` once its prediction shows a category.

    Nothing is pushed by a gradient, so the judge is not deceived: what comes out is what the model makes of `instead` from
    where the image stood.

    Args:
        instead: CONDITIONING of the same text encoder; the whole batch shares it.

    Raises:
        ValueError: `instead` holds more than one prompt, such as a ControlNet or a mask, or the model needs more than a prompt.
        LatentSpaceError: the model makes latents that the judge cannot read.
    """
    return steered(patcher, Redirect(watch, check_instead(patcher, instead), window))


def check_instead(patcher, instead: list | None) -> list[dict]:
    """The other prompt as the host's guiders hold it.

    Raises:
        ValueError: see `redirect_model`.
    """
    instead = instead or []
    extras = sorted({key for _, options in instead for key in NOT_IN_A_PROMPT if key in options})
    if any(cond is not None and len(cond) > 1 for cond, _ in instead):
        extras.append("a batch")
    if extras or not instead:
        raise ValueError(
            f"Got {', '.join(extras) or 'no prompt'} in `instead`, expected a plain prompt, which holds for the whole image. "
            "Connect a CLIP Text Encode."
        )
    if getattr(patcher.model, "concat_keys", ()):
        raise ValueError(
            "Got a model that needs an image beside its prompt (inpainting or editing), for which `instead` has none. "
            "Use a model without one and a latent noise mask, or Safety Gate alone."
        )
    return comfy.sampler_helpers.convert_cond(instead)


class Watching(Steering):
    """Steering that keeps to what it has seen of an image in an earlier sampling.

    Attributes:
        watch: None where nothing is kept out.
        carried: what was seen before of each item of the sampling that goes on now, (B, categories).
    """

    watch: ConceptWatch | None = None
    carried: Tensor | None = None

    def start(self) -> None:
        if self.watch is not None:
            self.watch.start(self.carried)

    def sampling(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **more
    ):  # fmt: skip
        """Wrapper of a whole sampling (the host's OUTER_SAMPLE)."""

        def sample(callback) -> Tensor:
            return super(Watching, self).sampling(
                executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more
            )

        if not self._carries(sampler, sigmas):
            return sample(callback)
        guider, whose, last, before = executor.class_obj, fingerprint(self.watch.concepts), LastPrediction(callback), self.carried
        earlier = found_before(whose, guider, noise, latent_image, sigmas)
        nothing = (False,) * len(self.watch.concepts.names)
        self.carried = torch.tensor([one or nothing for one in earlier]) if any(earlier) else None
        try:
            samples = sample(last)
            seen = self.watch.seen
            if seen is not None and len(seen) == len(samples):
                found = [tuple(row) if any(row) else None for row in seen.tolist()]
                remember(whose, guider, samples, sigmas, last, found, [ALIKE] * len(found))
            return samples
        finally:
            self.carried = before

    def _carries(self, sampler, sigmas: Tensor) -> bool:
        """Whether a sampling makes one image of each item, which another sampling may go on with."""
        return self.watch is not None and len(sigmas) > 1 and not getattr(sampler, "draws_again", False)


def remember(whose: bytes, guider, samples: Tensor, sigmas: Tensor, last: LastPrediction, found: list, least: list) -> None:
    """Keep what was found in the latents of a sampling, as the host hands them on: with the noise that is left, and without."""
    KNOWN.remember(whose, samples, found, least)
    denoised = last.raw(guider, sigmas)
    if denoised is not None and denoised.shape == samples.shape:
        KNOWN.remember(whose, denoised, found, least)


class Climb(Watching):
    """What `guide_model` does. It returns the prediction itself, bit for bit, wherever nothing needs to be corrected."""

    gradient = True

    def __init__(self, objective: Objective, settings: GuidanceSettings, window: Window):
        super().__init__(objective, window)
        self.objective, self.settings = objective, settings
        safety = isinstance(objective, AvoidConcepts)
        self.watch = objective.watch if safety else None
        self.rank, self.name = (1, SAFETY) if safety else (0, "Guide Model by Reward")

    def steer(self, prediction: Prediction, run: Run, look: bool) -> Tensor:
        denoised, model = prediction.denoised, prediction.model
        if not look:
            return denoised
        if run.direction is not None and run.direction.shape != denoised.shape:
            run.direction = None
        networks = [network.model for encoder in host_encoders(self.objective) for network in encoder.patchers]
        with gradients(networks, model.latent_format):
            change, run.direction = correction(
                self.objective,
                denoised,
                model.process_latent_out,
                noise_level(model, prediction.sigma.flatten()[0].item()),
                self.settings,
                run.direction,
            )
        # additive and without a gradient of its own: Optimize Noise differentiates through the prediction
        return denoised if change is None else denoised + change.to(denoised)


class Redirect(Watching):
    """What `redirect_model` does. Items that never showed anything get their prediction itself, bit for bit."""

    name = SAFETY
    rank = 2

    def __init__(self, watch: ConceptWatch, instead: list[dict], window: Window):
        super().__init__(watch, window)
        self.watch, self.instead = watch, instead

    def check(self, guider) -> None:
        theirs = {
            cond["cross_attn"].shape[-1] for conds in guider.conds.values() for cond in conds if "cross_attn" in cond
        }
        ours = {cond["cross_attn"].shape[-1] for cond in self.instead if "cross_attn" in cond}
        if theirs and not ours <= theirs:
            raise ValueError(
                f"Got `instead` from a text encoder of width {ours}, expected {theirs} as in the sampler's prompt. "
                "Encode both with the CLIP of the same checkpoint."
            )

    def steer(self, prediction: Prediction, run: Run, look: bool) -> Tensor:
        denoised, model = prediction.denoised, prediction.model
        if look:
            level = noise_level(model, prediction.sigma.flatten()[0].item())
            with torch.no_grad():
                told(self.watch, self.watch.look, level)(model.process_latent_out(denoised.detach()))
        seen = self.watch.seen
        if seen is None or len(seen) != len(denoised) or not bool(seen.any()):
            return denoised
        going_on = alive_rows(prediction.model_options, len(denoised))
        suspects = [row for row in seen.any(dim=1).nonzero().flatten().tolist() if row in going_on]
        if not suspects:
            return denoised
        redirected = denoised.clone()
        redirected[suspects] = self._predict(prediction, suspects).to(denoised)
        return redirected

    def _predict(self, prediction: Prediction, suspects: list[int]) -> Tensor:
        """What the same guider makes of the suspects with `instead` as its prompt, and its own negative prompt and cfg."""
        x, size = prediction.x[suspects], len(prediction.x)
        conds = {
            name: cond_items(_without_control(conds), suspects, size)
            if "negative" in name
            else comfy.samplers.encode_model_conds(
                prediction.model.extra_conds, _as_strong(self.instead, conds), x, x.device, "positive"
            )
            for name, conds in prediction.guider.conds.items()
        }
        options = {key: value for key, value in prediction.model_options.items() if key not in HOOKS_ON_PREDICTIONS}
        asked = replace(prediction, x=x, sigma=prediction.sigma[suspects])
        return self._with_conds(asked, conds, options)

    def _with_conds(self, prediction: Prediction, conds: dict, options: dict) -> Tensor:
        """What the same guider predicts with other prompts."""
        guider = copy.copy(prediction.guider)
        guider.conds = conds
        return guider.predict_noise(prediction.x, prediction.sigma, options, prediction.seed)


def _as_strong(instead: list[dict], conds: list[dict]) -> list[dict]:
    """`instead` with the guidance of the prompt that it replaces, on models that are told it with the prompt (Flux Guidance)."""
    strengths = [{"guidance": cond["guidance"]} for cond in conds if "guidance" in cond]
    return [{**(strengths[0] if strengths else {}), **cond} for cond in instead]


def _without_control(conds: list[dict]) -> list[dict]:
    """Negative prompts without their ControlNet, which `instead` has left: it would push away from its hint.

    They get ids of their own, by which step-skipping nodes file what they remember of each prompt's whole batch.
    """
    kept = [{key: value for key, value in cond.items() if key != "control"} for cond in conds]
    return [{**cond, "uuid": uuid.uuid5(cond["uuid"], "suspects")} for cond in kept]


def noise_level(model, sigma: float) -> float:
    """Share of noise in what the network sees: sigma itself for flow models, else against unit-variance latents."""
    if isinstance(model.model_sampling, comfy.model_sampling.CONST):
        return min(1.0, sigma)
    if isinstance(model.model_sampling, comfy.model_sampling.COSMOS_RFLOW):  # a flow whose levels are those of EDM
        return sigma / (1 + sigma)
    return sigma / (1 + sigma * sigma) ** 0.5
