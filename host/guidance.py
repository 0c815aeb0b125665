"""Guidance inside the host: a post-CFG hook that adds a bounded step up a reward to every prediction of the clean latent."""

import uuid

import comfy.model_sampling
from torch import Tensor

from ..methods.guidance import GuidanceSettings, Objective, correction
from ..models.latent_spaces import LatentSpaceError, common_space
from .encoders import host_encoders
from .gradients import gradients
from .latents import check_model_space


def guide_model(patcher, objective: Objective, settings: GuidanceSettings, start: float, end: float, every_n: int):
    """A copy of a MODEL that is steered whenever it is sampled.

    Args:
        start, end: window of the sampling, 0 (pure noise) to 1 (clean).
        every_n: steer at every n-th step of it.

    Raises:
        ValueError: an empty window, or every_n below 1.
        LatentSpaceError: the model makes latents that the objective cannot read.
    """
    if not 0 <= start < end <= 1:
        raise ValueError(f"Got the window {start} to {end}, expected 0 ≤ start < end ≤ 1.")
    if every_n < 1:
        raise ValueError(f"Got every_n = {every_n}, expected at least 1.")
    check_model_space(patcher, common_space([encoder.space for encoder in objective.encoders]))
    patcher = patcher.clone()
    sampling = patcher.get_model_object("model_sampling")
    window = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    patcher.set_model_sampler_post_cfg_function(_Guide(objective, settings, window, every_n))
    networks = _networks(objective)
    # a key of its own, so that several guided nodes in one graph keep their networks
    patcher.set_additional_models(f"latent_clip_guide_{uuid.uuid4().hex}", networks)
    return patcher


class _Guide:
    """The hook. It returns the prediction itself, bit for bit, wherever nothing needs to be corrected."""

    def __init__(self, objective: Objective, settings: GuidanceSettings, window: tuple[float, float], every_n: int):
        self.objective, self.settings, self.window, self.every_n = objective, settings, window, every_n
        self.direction: Tensor | None = None

    def __call__(self, args: dict) -> Tensor:
        denoised, model = args["denoised"], args["model"]
        sigma = args["sigma"].flatten()[0].item()
        step, first = _step_of(sigma, args["model_options"])
        if first:
            self.direction = None
            self.objective.start()
        if not self.window[1] < sigma <= self.window[0] or step % self.every_n:
            return denoised
        if denoised.ndim != 4:
            raise LatentSpaceError(
                f"Got predictions of shape {tuple(denoised.shape)}, but the reward reads images (batch, channels, height, width)."
            )
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


def _step_of(sigma: float, model_options: dict) -> tuple[int, bool]:
    """Index of the sampling step that asks at this sigma, and whether this opens a sampling.

    Samplers of second order also ask between two steps.
    """
    sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return 0, True
    step = max(0, int((sigmas[:-1] >= sigma * (1 - 1e-5)).sum()) - 1)
    return step, sigma >= sigmas[0].item() * (1 - 1e-5)


def _networks(objective: Objective) -> list:
    """Patchers of the networks that judge."""
    return [network for encoder in host_encoders(objective) for network in encoder.patchers]


def _noise_level(model, sigma: float) -> float:
    """Share of noise in what the network sees: sigma itself for flow models, else against unit-variance latents."""
    if isinstance(model.model_sampling, comfy.model_sampling.CONST):
        return min(1.0, sigma)
    return sigma / (1 + sigma * sigma) ** 0.5
