"""Safety Guidance with a fallback prompt: flagged images follow it, from a draft's verdict or from the sampling's own.

No gradient pushes the image, so the encoder is not deceived: the result is what the model makes of the fallback prompt from where
the image stood. Images that were never flagged get their prediction itself, bit for bit.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...methods.guidance import ConceptMonitor
from ...models.latent_spaces import LatentSpaceError
from ..sampling.active_items import active_items
from ..sampling.drafts import check_drafter
from ..sampling.guide import noise_level
from ..sampling.steering import Prediction, Run, Window, steered
from .carried import SafetySteering, draws_again, remember
from .fallback import HOOKS_ON_PREDICTIONS, Fallback, read_fallback
from .known_latents import ALIKE, SAME, LastPrediction, fingerprint, found_before
from .look_ahead import Draft, LookAhead, Sampling
from .verdicts import Verdict, Verdicts

LOGGER = logging.getLogger(__name__)
Late = Literal["ignore", "redirect", "report"]
EARLIER = "in an earlier sampling: "


def redirect_model(
    patcher, monitor: ConceptMonitor, instead: list | None, window: Window, draft: LookAhead | None = None, late: Late = "redirect",
    verdicts: Verdicts | None = None,
):  # fmt: skip
    """Return a copy of a MODEL whose sampler leaves an image's prompt for `instead` once the image is flagged.

    Args:
        instead: CONDITIONING of the same text encoder; the whole batch shares it.
        draft: flags images from a draft before the first step; without it only the monitor flags them, at each step in the window.
        late: with a draft, what to do with an image that the monitor flags although its draft passed: "ignore" does not run the
            monitor, "redirect" lets `instead` take over, "report" only writes it to `verdicts`.
        verdicts: with a draft, gets the verdict of each image, for Safety Gate.

    Raises:
        ValueError: see `fallback.read_fallback`.
        LatentSpaceError: the model makes latents that the monitor cannot read.
    """
    fallback = read_fallback(patcher, instead)
    if draft is not None and draft.drafter is not None:
        check_drafter(draft.drafter, patcher)
    return steered(patcher, Redirect(monitor, fallback, window, draft, late, verdicts))


@dataclass
class DraftedSampling:
    """State of a sampling that was drafted.

    Attributes:
        draft: verdicts of the drafts.
        follow: images that follow the fallback prompt from here on, in order.
        late: image → reason for which the monitor flagged it.
        encoded: the fallback prompt as the model takes it; None until it is needed.
        drafted: image → reason for which its draft was flagged, now or in an earlier sampling.
    """

    draft: Draft
    follow: list[int]
    late: dict[int, str] = field(default_factory=dict)
    encoded: list[dict] | None = None
    drafted: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_start(cls, draft: Draft, earlier: list[Verdict | None]) -> "DraftedSampling":
        """Begin with the verdicts of the drafts, and of the samplings that made the latents that this one starts from."""
        known = {item: verdict for item, verdict in enumerate(earlier) if verdict is not None}
        follow = {*draft.flagged, *(item for item, verdict in known.items() if verdict.redirected)}
        late = {item: _earlier(verdict.late) for item, verdict in known.items() if verdict.late}
        drafted = {item: _earlier(verdict.draft) for item, verdict in known.items() if verdict.draft}
        return cls(draft, sorted(follow), late, drafted=drafted | {item: draft.reasons[item] for item in draft.flagged})

    def verdicts(self, active) -> list[Verdict | None]:
        """Verdict per image; None for images that were dropped from the sampling."""
        scores = [[round(s, 4) if s == s else None for s in row] for row in self.draft.scores.tolist()]
        return [
            Verdict(self.drafted.get(item, ""), scores[item], self.late.get(item, ""), item in self.follow) if item in active else None
            for item in range(len(scores))
        ]


def _earlier(reason: str) -> str:
    return reason if reason.startswith(EARLIER) else EARLIER + reason


class Redirect(SafetySteering):
    """Steering that replaces the predictions of flagged images by those of the fallback prompt.

    Attributes:
        drafted: state of the current sampling; None without a draft, and if the sampler draws its images more than once (Optimize
            Noise): then a draft says nothing, and the monitor alone flags images.
    """

    rank = 2

    def __init__(
        self, monitor: ConceptMonitor, fallback: Fallback, window: Window, draft: LookAhead | None, late: Late, verdicts: Verdicts | None
    ):  # fmt: skip
        super().__init__(monitor, window)
        self.monitor, self.fallback, self.draft, self.late = monitor, fallback, draft, late
        self.verdicts = Verdicts() if verdicts is None else verdicts
        self.whose = fingerprint(monitor.concepts, *(() if draft is None else (scorer.concepts for scorer in draft.scorers)))
        self.drafted: DraftedSampling | None = None

    def check(self, guider) -> None:
        self.fallback.check(guider)

    def sampling(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **more
    ):  # fmt: skip
        """Wrapper of a whole sampling (the host's OUTER_SAMPLE): draft, then sample."""

        def sample(callback) -> Tensor:
            return super(Redirect, self).sampling(
                executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more
            )

        if self.draft is None or len(sigmas) < 2 or draws_again(sampler):
            return sample(callback)
        if noise.ndim not in (4, 5):
            raise LatentSpaceError(
                f"Got latents of shape {tuple(noise.shape)}, as of video with sound, but {self.name} steers images and clips (batch, "
                "channels, frames, height, width). Take it out, and put Safety Gate behind the sampler."
            )
        guider, before, last = executor.class_obj, self.drafted, LastPrediction(callback)
        self.check(guider)
        active = active_items(guider.model_options, len(noise))
        earlier = found_before(self.whose, guider, noise, latent_image, sigmas)
        try:
            draft = self.draft(guider, Sampling(noise, latent_image, sampler, sigmas, denoise_mask, seed))
            self.drafted = DraftedSampling.from_start(draft, earlier)
            if draft.flagged:
                LOGGER.info("%s: %d of %d drafts are flagged.", self.name, len(draft.flagged), len(noise))
            samples = sample(last) if draft.picture is None else self._finished(draft.picture, lambda: sample(last), callback)
            self._keep(guider, samples, sigmas, last, self.drafted.verdicts(active))
            return samples
        finally:
            self.drafted = before

    def _finished(self, picture: Tensor, sample, callback) -> Tensor:
        """Finish a sampling that was its own draft: drafts that passed are the images, the others are made from the fallback prompt."""
        flagged = self.drafted.follow
        if not flagged:
            for step in self.drafted.draft.steps if callback is not None else ():
                callback(*step)
            return picture
        self.drafted.follow = [*range(len(picture))]  # the others are made already
        samples = sample()
        self.drafted.follow = flagged
        made = picture.to(samples, copy=True)
        made[flagged] = samples[flagged]
        return made

    def _keep(self, guider, samples: Tensor, sigmas: Tensor, last: LastPrediction, verdicts: list[Verdict | None]) -> None:
        """Keep the verdicts for the gate, and those of flagged images for later samplings."""
        self.verdicts.remember(samples, verdicts)
        found = [one if one is not None and (one.late or one.redirected) else None for one in verdicts]
        least = [ALIKE if one is not None and one.late else SAME for one in verdicts]
        remember(self.whose, guider, samples, sigmas, last, found, least)

    def _carries(self, sampler, sigmas: Tensor) -> bool:
        return self.draft is None and super()._carries(sampler, sigmas)  # `_keep` keeps more than the monitor's verdicts

    def _steps(self, guider, sigmas: list[float]) -> list[int]:
        monitored = self.drafted is None or (self.late != "ignore" and self.drafted.draft.picture is None)
        return super()._steps(guider, sigmas) if monitored else []

    def prediction(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wrapper of one prediction (the host's PREDICT_NOISE)."""
        run = self._running()
        asked, done = Prediction(executor.class_obj, x, timestep, x, model_options, seed), []
        denoised = self._joined(asked, self._following(asked))
        if denoised is None:
            denoised = executor(x, timestep, model_options, seed)
        else:
            done = self._following(asked)
        if self._in_window(run, timestep, denoised):
            self._check(asked, denoised, run)
        rest = [item for item in self._following(asked) if item not in done]
        if not rest:
            return denoised
        denoised = denoised.clone()
        denoised[rest] = self.fallback.predict(asked, rest).to(denoised)
        return denoised

    def _following(self, asked: Prediction) -> list[int]:
        """Active images of the batch that follow the fallback prompt by now."""
        size = len(asked.x)
        follow = self.monitor.flagged_items(size) if self.drafted is None else self.drafted.follow
        active = active_items(asked.model_options, size)
        return [item for item in follow if item in active]

    def _check(self, asked: Prediction, denoised: Tensor, run: Run) -> None:
        """Let the monitor check a prediction."""
        sigma = asked.sigma.flatten()[0].item()
        with torch.no_grad():
            raw = asked.model.process_latent_out(denoised.detach())
            flags = self.monitor.check(raw, noise_level(asked.model, sigma))
        if self.drafted is None:
            return  # what the monitor remembers is enough
        step = run.step(sigma) + 1
        for item, reason in enumerate(flags.reasons):
            if reason and item not in self.drafted.follow and item not in self.drafted.late:
                self.drafted.late[item] = f"seen at step {step} of {len(run.sigmas) - 1}, and not in its draft: {reason}"
                if self.late == "redirect":
                    self.drafted.follow = sorted([*self.drafted.follow, item])

    def _joined(self, asked: Prediction, items: list[int]) -> Tensor | None:
        """Predict the batch in one evaluation, `items` from the fallback prompt; None where that is not what the guider would do.

        Other nodes' work on predictions is not for images that follow the fallback prompt, and that of some samplers must see every
        prediction.
        """
        options = asked.model_options
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.PREDICT_NOISE, options, True)
        if self.drafted is None or not items or wrappers != [self.prediction] or any(options.get(key) for key in HOOKS_ON_PREDICTIONS):
            return None
        if len(items) == len(asked.x):
            return self.fallback.predict(asked, items)
        if self.drafted.encoded is None:
            self.drafted.encoded = self.fallback.encoded(asked)
        return self.fallback.join(asked, items, self.drafted.encoded)
