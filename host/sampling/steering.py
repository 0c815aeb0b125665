"""Guidance of a MODEL: wrappers around a whole sampling, and around every prediction of its guider.

The host's post-CFG hook is not enough: Dual Model CFG Guider leaves it out at cfg 1, Dual CFG Guider adds a prompt after it,
without an error. A guider's prediction is the last step before the sampler, whatever guider it is. If a guider
bypasses even this hook, sampling raises instead of returning an unchecked image.
"""

import logging
import uuid
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...models.latent_spaces import LatentSpaceError, common_space
from ..scorers.encoders import HasEncoders, forget_limits, host_encoders
from ..scorers.latents import check_model_space
from ..scorers.towers import TowerPatcher
from .drafts import is_draft
from .reservation import images_of

KEY = "latent_clip_guidance"
SAFETY = "Safety Guidance"
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """Steps to guide at: from `start`, 0 (pure noise), to `end`, 1 (clean), at every n-th step.

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

    def steps(self, sigmas: list[float], sampling) -> list[int]:
        """Indices of the steps at which to steer, of a schedule of steps + 1 noise levels.

        A window up to 1 always has the last step of a sampling that ends clean, for what is predicted there is the image:
        models of one step have no other.
        """
        first, last = sampling.percent_to_sigma(self.start), sampling.percent_to_sigma(self.end)
        inside = [i for i, sigma in enumerate(sigmas[:-1]) if last < sigma <= first]
        if not inside and self.end == 1 and sigmas[-1] <= last:
            inside = [len(sigmas) - 2]
        return inside[:: self.every_n]

    def is_ahead(self, sigmas: list[float], sampling) -> bool:
        """Return True for a part of a sampling that leaves noise and ends before the window opens."""
        return min(sigmas[:-1]) > sampling.percent_to_sigma(self.start) and sigmas[-1] > 0


@dataclass
class Run:
    """State of one sampling.

    Attributes:
        sigmas: its noise levels, steps + 1 of them. steps: those at which to steer.
        asked, scored: whether the guider has predicted anything, and whether that was scored.
        direction: of the last correction, for momentum.
    """

    sigmas: Tensor
    steps: list[int]
    asked: bool = False
    scored: bool = False
    direction: Tensor | None = None

    def step(self, sigma: float) -> int:
        """Return the step of this noise level. Samplers of second order also predict between two steps; those for flow
        models start a little below the first level, and detail daemons pass another level than the sampler's."""
        return max(0, int((self.sigmas[:-1] >= sigma * (1 - 1e-5)).sum()) - 1)


@dataclass(frozen=True)
class Prediction:
    """Prediction of a guider: `denoised` (B, C, [T,] H, W) in the model's space, for `x` at `sigma` (B,)."""

    guider: Any
    x: Tensor
    sigma: Tensor
    denoised: Tensor
    model_options: dict
    seed: int | None

    @property
    def model(self):
        """The host's BaseModel."""
        return self.guider.model_patcher.model


class Steering:
    """Base of what changes a guider's predictions. Made once per node; its state belongs to one sampling.

    Attributes:
        name: the node's, for messages.
        rank: the higher one has the last word on a prediction.
        run: the sampling that goes on now.
    """

    name = "Guidance"
    rank = 0
    gradient = False  # through the encoders

    def __init__(self, scorer: HasEncoders, window: Window):
        self.scorer, self.window = scorer, window
        self.run: Run | None = None

    def start(self) -> None:
        """Forget the last sampling; called when a new one begins."""

    def check(self, guider) -> None:
        """Refuse, before anything is drawn, prompts of the guider with which this could not work."""

    def steer(self, prediction: Prediction, run: Run, in_window: bool) -> Tensor:
        """Return the prediction to go on with; `in_window`: this step is in the window."""
        raise NotImplementedError

    def sampling(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Wrap a whole sampling (the host's OUTER_SAMPLE).

        Raises:
            ValueError: no step of this sampling is in the window, or none was scored; says what to do.
        """
        guider, before = executor.class_obj, self.run
        self.check(guider)
        sigmas = sigmas.clone()  # uni_pc writes into what it is given
        self.run = Run(sigmas.cpu().clone(), self._steps(guider, sigmas.tolist()))
        self.start()
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            self._complain_if_unused(guider, self.run)
            return samples
        finally:
            self.run = before

    def prediction(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wrap one prediction (the host's PREDICT_NOISE)."""
        denoised, run = executor(x, timestep, model_options, seed), self._running()
        in_window = self._in_window(run, timestep, denoised)
        return self.steer(Prediction(executor.class_obj, x, timestep, denoised, model_options, seed), run, in_window)

    def _in_window(self, run: Run, timestep: Tensor, denoised: Tensor) -> bool:
        """Return True for a prediction of a step in the window, and note in `run` that it was made.

        Raises:
            LatentSpaceError: it is, and the prediction is no image or clip.
        """
        run.asked = True
        in_window = run.step(timestep.flatten()[0].item()) in run.steps
        if in_window and denoised.ndim not in (4, 5):
            raise LatentSpaceError(
                f"Got predictions of shape {tuple(denoised.shape)}, as of video with sound, but {self.name} steers images and clips (batch, "
                "channels, frames, height, width). Take it out, and put Safety Gate or Select Best Latents behind the sampler."
            )
        run.scored |= in_window
        return in_window

    def reserve(self, executor, model, noise_shape, *args, **kwargs):
        """Wrap the host's prepare_sampling: reserve room for the encoders, which run after each prediction."""
        encoders, shape = host_encoders(self.scorer), torch.Size(noise_shape)
        forget_limits(encoders)
        per_item = sum(e.memory_per_item(shape) * (e.backward_cost if self.gradient else 1) for e in encoders)
        images = max(shape[0], images_of(shape[0] * per_item, model, shape))
        return executor(model, (images, *shape[1:]), *args, **kwargs)

    def require_running(self, _patcher) -> None:
        """Refuse to prepare a model for sampling (the host's ON_PRE_RUN) without our wrappers around it."""
        self._running()

    def _running(self) -> Run:
        if self.run is None:
            raise ValueError(
                f"Got the model of {self.name} where its predictions are not steered, such as `model_negative` of a Dual Model "
                "CFG Guider. Connect it as the model of the positive prompt; to the other input, the model from before that node."
            )
        return self.run

    def _steps(self, guider, sigmas: list[float]) -> list[int]:
        sampling, window = guider.model_patcher.get_model_object("model_sampling"), self.window
        if len(sigmas) < 2:  # nothing is predicted, the image stays what it was
            return []
        steps = window.steps(sigmas, sampling)
        if not steps and is_draft(guider.model_options):
            return []
        if not steps and not window.is_ahead(sigmas, sampling):
            raise ValueError(
                f"Got a sampling of which no step ({len(sigmas) - 1}, noise level {sigmas[0]:.3g} to {sigmas[-1]:.3g}) lies between "
                f"start {window.start:g} and end {window.end:g} of {self.name}. Set end to 1 and start lower, or take this part "
                "of the sampling from the model before that node."
            )
        if not steps:
            LOGGER.info(
                "%s: this part of the sampling ends before start %g; the next part must have it too.",
                self.name,
                window.start,
            )
        return steps

    def _complain_if_unused(self, guider, run: Run) -> None:
        if len(run.sigmas) < 2 or (run.asked and (run.scored or not run.steps)):
            return
        what = "was asked at noise levels outside of its window only" if run.asked else "never came into play"
        raise ValueError(
            f"{self.name} {what}: got the guider {type(guider).__name__} and a sampler that do not use the guider's prediction as the "
            "host's own do. Nothing of this image was scored. Use CFG Guider, or Basic Guider, with a sampler of ComfyUI's own."
        )


def steered(patcher, steering: Steering):
    """Return a copy of a MODEL whose samplings go through `steering`.

    Raises:
        LatentSpaceError: the model makes latents that the encoders cannot read.
    """
    networks = [network for encoder in host_encoders(steering.scorer) for network in encoder.patchers]
    check_model_space(patcher, common_space([encoder.space for encoder in steering.scorer.encoders]))
    patcher = patcher.clone()
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, steering.sampling)
    patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, steering.prediction)
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, steering.reserve)
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, steering.require_running)
    if on_match := getattr(CallbacksMP, "ON_MATCH_MULTIGPU_CLONES", None):  # newer hosts
        patcher.add_callback_with_key(on_match, KEY, _leave_towers_out)
    # the host calls the first wrapper outermost: safety before rewards, both before other nodes' predictions
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        patcher.wrappers[kind][KEY] = sorted(patcher.wrappers[kind][KEY], key=lambda wrapper: -wrapper.__self__.rank)
    wrappers = patcher.wrappers[WrappersMP.PREDICT_NOISE]
    patcher.wrappers[WrappersMP.PREDICT_NOISE] = {KEY: wrappers.pop(KEY), **wrappers}
    # a key of its own, so that several guided nodes in one graph keep their networks
    patcher.set_additional_models(f"{KEY}_{uuid.uuid4().hex}", networks)
    return patcher


def _leave_towers_out(_patcher, clone) -> None:
    """Drop the towers from a copy of the model on another device: it scores nothing."""
    for key, networks in list(clone.additional_models.items()):
        if key.startswith(KEY):
            clone.set_additional_models(key, [network for network in networks if not isinstance(network, TowerPatcher)])


def steerings(model_options: dict) -> list[Steering]:
    """Guidance on the samplings of a guider, the outermost first, from its model options while it samples."""
    wrappers = comfy.patcher_extension.get_wrappers_with_key(WrappersMP.PREDICT_NOISE, KEY, model_options, True)
    return [wrapper.__self__ for wrapper in wrappers]


def begin_sampling(model_options: dict) -> None:
    """Reset guidance where one run of the host draws images several times, as Optimize Noise does."""
    for steering in steerings(model_options):
        steering.start()
        if steering.run is not None:
            steering.run.direction = None
