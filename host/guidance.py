"""Guidance inside the host: post-CFG hooks on the prediction of the clean latent.

`guide_model` adds a bounded step up a reward to it; `redirect_model` lets the sampler follow another prompt once the
prediction shows what is to be kept out.
"""

import logging
import uuid
from dataclasses import dataclass

import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..methods.guidance import ConceptWatch, GuidanceSettings, Objective, correction
from ..models.latent_spaces import LatentSpaceError, common_space
from .encoders import Judge, host_encoders
from .gradients import gradients
from .latents import check_model_space

NOT_IN_A_PROMPT = (
    "control", "area", "mask", "gligen", "hooks", "start_percent", "clip_start_percent", "additional_models"
)  # fmt: skip

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """When to steer: the part of the sampling from `start`, 0 (pure noise), to `end`, 1 (clean), at every n-th step.

    Raises:
        ValueError: an empty window, or every_n below 1.
    """

    start: float
    end: float
    every_n: int = 1

    def __post_init__(self):
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"Got the window {self.start} to {self.end}, expected 0 ≤ start < end ≤ 1.")
        if self.every_n < 1:
            raise ValueError(f"Got every_n = {self.every_n}, expected at least 1.")

    def holds(self, sigma: float, step: int, sampling) -> bool:
        """Whether to steer at this noise level and step."""
        inside = sampling.percent_to_sigma(self.end) < sigma <= sampling.percent_to_sigma(self.start)
        return inside and step % self.every_n == 0

    def warn_if_empty(self, sigmas: Tensor, sampling) -> None:
        """Say so where no step of a sampling falls into the window: one-step models sample at pure noise only."""
        if not any(self.holds(sigma, 0, sampling) for sigma in sigmas[:-1].tolist()):
            LOGGER.warning("Guidance looks at no step of this sampling: none lies between start %g and end %g. For models of one step set start to 0.", self.start, self.end)  # fmt: skip


def guide_model(patcher, objective: Objective, settings: GuidanceSettings, window: Window):
    """A copy of a MODEL that climbs an objective whenever it is sampled.

    Raises:
        LatentSpaceError: the model makes latents that the objective cannot read.
    """
    return _hooked(patcher, _Climb(objective, settings, window), objective)


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
    return _hooked(patcher, _Redirect(watch, comfy.sampler_helpers.convert_cond(instead), window), watch)


def _hooked(patcher, hook, judge: Judge):
    check_model_space(patcher, common_space([encoder.space for encoder in judge.encoders]))
    patcher = patcher.clone()
    patcher.set_model_sampler_post_cfg_function(hook)
    # a key of its own, so that several guided nodes in one graph keep their networks
    patcher.set_additional_models(f"latent_clip_guide_{uuid.uuid4().hex}", _networks(judge))
    return patcher


class _Climb:
    """The hook of `guide_model`. It returns the prediction itself, bit for bit, wherever nothing needs to be corrected."""

    def __init__(self, objective: Objective, settings: GuidanceSettings, window: Window):
        self.objective, self.settings, self.window = objective, settings, window
        self.direction: Tensor | None = None

    def __call__(self, args: dict) -> Tensor:
        denoised, model = args["denoised"], args["model"]
        sigma, step, first = _moment(args)
        if first:
            self.direction = None
            self.objective.start()
            self.window.warn_if_empty(_sigmas(args), model.model_sampling)
        if not self.window.holds(sigma, step, model.model_sampling):
            return denoised
        _check_images(denoised)
        if self.direction is not None and self.direction.shape != denoised.shape:
            self.direction = None
        with gradients([network.model for network in _networks(self.objective)]):
            change, self.direction = correction(
                self.objective,
                denoised,
                model.process_latent_out,
                _noise_level(model, sigma),
                self.settings,
                self.direction,
            )
        # additive and without a gradient of its own: Optimize Noise differentiates through the prediction
        return denoised if change is None else denoised + change.to(denoised)


class _Redirect:
    """The hook of `redirect_model`. Items that never showed anything get their prediction itself, bit for bit."""

    def __init__(self, watch: ConceptWatch, instead: list[dict], window: Window):
        self.watch, self.instead, self.window = watch, instead, window

    def __call__(self, args: dict) -> Tensor:
        denoised, model = args["denoised"], args["model"]
        sigma, step, first = _moment(args)
        if first:
            self.watch.start()
            self._check_sampler(args["cond"])
            self.window.warn_if_empty(_sigmas(args), model.model_sampling)
        if self.window.holds(sigma, step, model.model_sampling):
            _check_images(denoised)
            with torch.no_grad():
                self.watch.look(model.process_latent_out(denoised.detach()))
        seen = self.watch.seen
        if seen is None or len(seen) != len(denoised) or not bool(seen.any()):
            return denoised
        suspects = seen.any(dim=1).to(denoised.device)
        redirected = denoised.clone()
        redirected[suspects] = self._predict(args, suspects).to(denoised)
        return redirected

    def _predict(self, args: dict, suspects: Tensor) -> Tensor:
        """What the model makes of the suspects under `instead`, with the sampler's own negative prompt and cfg."""
        x, sigma, model, scale = args["input"][suspects], args["sigma"][suspects], args["model"], args["cond_scale"]
        options = {key: value for key, value in args["model_options"].items() if key != "sampler_post_cfg_function"}
        conds = comfy.samplers.encode_model_conds(model.extra_conds, list(self.instead), x, x.device, "positive")
        uncond, negative = args["uncond"], args["uncond_denoised"]
        if uncond is None or scale == 1:  # there the host has no prediction for the negative prompt
            (predicted,) = comfy.samplers.calc_cond_batch(model, [conds], x, sigma, options)
            return predicted
        if any("control" in cond for cond in uncond):
            # `instead` leaves the ControlNet; a negative that keeps it would push away from its hint
            uncond = [{key: value for key, value in cond.items() if key != "control"} for cond in uncond]
            predicted, negative = comfy.samplers.calc_cond_batch(model, [conds, uncond], x, sigma, options)
        else:
            (predicted,), negative = (
                comfy.samplers.calc_cond_batch(model, [conds], x, sigma, options),
                negative[suspects],
            )
        return comfy.samplers.cfg_function(model, predicted, negative, scale, x, sigma, options, conds, uncond)

    def _check_sampler(self, positive: list[dict] | None) -> None:
        """Say at once, and not when the first suspect comes, what would not work.

        Raises:
            ValueError: `instead` is of another text encoder; or the guider adds its prompt behind this hook's back.
        """
        if any(cond.get("prompt_type") == "negative" for cond in positive or ()):
            raise ValueError(
                "Got a Dual CFG Guider of style regular, which adds its first prompt after Safety Guidance. "
                "Set its style to nested, or use CFG Guider."
            )
        theirs = {cond["cross_attn"].shape[-1] for cond in positive or () if "cross_attn" in cond}
        ours = {cond["cross_attn"].shape[-1] for cond in self.instead if "cross_attn" in cond}
        if theirs and not ours <= theirs:
            raise ValueError(
                f"Got `instead` from a text encoder of width {ours}, expected {theirs} as in the sampler's prompt. "
                "Encode both with the CLIP of the same checkpoint."
            )


def _check_images(denoised: Tensor) -> None:
    if denoised.ndim != 4:
        raise LatentSpaceError(
            f"Got predictions of shape {tuple(denoised.shape)}, but a Latent-CLIP reads images (batch, channels, height, width)."
        )


def _moment(args: dict) -> tuple[float, int, bool]:
    """Noise level, index of the sampling step that asks at it, and whether this opens a sampling.

    Samplers of second order also ask between two steps; those for flow models start a little below the first level.
    """
    sigma, sigmas = args["sigma"].flatten()[0].item(), _sigmas(args)
    step = max(0, int((sigmas[:-1] >= sigma * (1 - 1e-5)).sum()) - 1)
    return sigma, step, sigma >= sigmas[0].item() * (1 - 2e-4)


def _sigmas(args: dict) -> Tensor:
    """Noise levels of the sampling; where the sampler does not tell, this call is all that is known."""
    told = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    return args["sigma"].flatten()[:1].repeat(2) if told is None else told


def _networks(judge: Judge) -> list:
    """Patchers of the networks that judge."""
    return [network for encoder in host_encoders(judge) for network in encoder.patchers]


def _noise_level(model, sigma: float) -> float:
    """Share of noise in what the network sees: sigma itself for flow models, else against unit-variance latents."""
    if isinstance(model.model_sampling, comfy.model_sampling.CONST):
        return min(1.0, sigma)
    return sigma / (1 + sigma * sigma) ** 0.5
