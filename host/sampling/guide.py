"""Guide Model by Reward: a bounded step up a reward, added to the guider's prediction of the clean latent at each step."""

import comfy.model_sampling
from torch import Tensor

from ...methods.guidance import GuidanceSettings, Objective, correction
from ..memory.gradients import gradients
from ..scorers.encoders import host_encoders
from .steering import Prediction, Run, Steering, Window, steered


def guide_model(patcher, objective: Objective, settings: GuidanceSettings, window: Window):
    """Copy a MODEL whose predictions are corrected up an objective whenever it is sampled.

    Raises:
        LatentSpaceError: the model makes latents that the objective cannot read.
    """
    return steered(patcher, Climb(objective, settings, window))


class Climb(Steering):
    """Correction of `guide_model`. It returns the prediction itself, bit for bit, if nothing needs to be corrected."""

    name = "Guide Model by Reward"
    gradient = True

    def __init__(self, objective: Objective, settings: GuidanceSettings, window: Window):
        super().__init__(objective, window)
        self.objective, self.settings = objective, settings

    def steer(self, prediction: Prediction, run: Run, in_window: bool) -> Tensor:
        denoised, model = prediction.denoised, prediction.model
        if not in_window:
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


def noise_level(model, sigma: float) -> float:
    """Share of noise in what the network sees: sigma itself for flow models, else against unit-variance latents."""
    if isinstance(model.model_sampling, comfy.model_sampling.CONST):
        return min(1.0, sigma)
    if isinstance(model.model_sampling, comfy.model_sampling.COSMOS_RFLOW):  # a flow whose levels are those of EDM
        return sigma / (1 + sigma)
    return sigma / (1 + sigma * sigma) ** 0.5
