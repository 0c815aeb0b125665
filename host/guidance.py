"""Guidance inside the host: post-CFG hooks on the prediction of the clean latent.

`guide_model` adds a bounded step up a reward to it; `redirect_model` lets the sampler follow another prompt once the
prediction shows what is to be kept out.
"""

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

NOT_IN_A_PROMPT = ("control", "area", "mask", "gligen", "hooks", "start_percent")


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
        ValueError: `instead` holds more than a prompt, such as a ControlNet or a mask.
        LatentSpaceError: the model makes latents that the judge cannot read.
    """
    extras = sorted({key for _, options in instead for key in NOT_IN_A_PROMPT if key in options})
    if extras or not instead:
        raise ValueError(
            f"Got {', '.join(extras) or 'no prompt'} in `instead`, expected a plain prompt, which holds for the whole image. "
            "Connect a CLIP Text Encode."
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
            self._check_width(args["cond"])
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
        x, model, options = args["input"][suspects], args["model"], args["model_options"]
        conds = comfy.samplers.encode_model_conds(model.extra_conds, list(self.instead), x, x.device, "positive")
        (predicted,) = comfy.samplers.calc_cond_batch(model, [conds], x, args["sigma"][suspects], options)
        if args["uncond"] is None or args["cond_scale"] == 1:  # there the host has no prediction for the negative prompt
            return predicted
        negative = args["uncond_denoised"][suspects]
        return negative + args["cond_scale"] * (predicted - negative)

    def _check_width(self, positive: list[dict] | None) -> None:
        """Say at once, and not when the first suspect comes, that `instead` is of another text encoder."""
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

    Samplers of second order also ask between two steps.
    """
    sigma = args["sigma"].flatten()[0].item()
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return sigma, 0, True
    step = max(0, int((sigmas[:-1] >= sigma * (1 - 1e-5)).sum()) - 1)
    return sigma, step, sigma >= sigmas[0].item() * (1 - 1e-5)


def _networks(judge: Judge) -> list:
    """Patchers of the networks that judge."""
    return [network for encoder in host_encoders(judge) for network in encoder.patchers]


def _noise_level(model, sigma: float) -> float:
    """Share of noise in what the network sees: sigma itself for flow models, else against unit-variance latents."""
    if isinstance(model.model_sampling, comfy.model_sampling.CONST):
        return min(1.0, sigma)
    return sigma / (1 + sigma * sigma) ** 0.5
