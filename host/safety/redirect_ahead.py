"""Safety Guidance that looks ahead: what `redirect_ahead` hangs on a MODEL."""

import logging
from dataclasses import dataclass, field
from typing import Literal

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...methods.gate import reasons_to_block
from ...methods.guidance import ConceptMonitor
from ...models.latent_spaces import LatentSpaceError
from ..sampling.conditioning import with_items_of_another
from ..sampling.drafts import check_drafter
from ..sampling.guide import noise_level
from ..sampling.rows import active_items
from ..sampling.steering import Prediction, Run, Window, steered
from .carried import remember
from .known_latents import ALIKE, SAME, LastPrediction, fingerprint, found_before
from .look_ahead import Draft, LookAhead, Sampling
from .looks import Verdict, Verdicts
from .redirect import HOOKS_ON_PREDICTIONS, Redirect, check_instead

LOGGER = logging.getLogger(__name__)
Late = Literal["ignore", "redirect", "report"]
EARLIER = "in an earlier sampling: "


def redirect_ahead(
    patcher, watch: ConceptMonitor, instead: list | None, window: Window, ahead: LookAhead, late: Late, looks: Verdicts
):
    """A copy of a MODEL whose sampler follows `instead` from the first step on for each item whose draft shows a category.

    Args:
        instead: see `redirect.redirect_model`.
        late: what becomes of an item that only the watch suspects while it is made: nothing at all, and nobody watches;
            the other prompt takes over; or it goes on as it was, and `looks` says so.
        looks: is told what was seen of each image.

    Raises:
        ValueError, LatentSpaceError: as `redirect.redirect_model`.
    """
    prompt = check_instead(patcher, instead)
    if ahead.drafter is not None:
        check_drafter(ahead.drafter, patcher)
    return steered(patcher, RedirectAhead(watch, prompt, window, ahead, late, looks))


@dataclass
class Seen:
    """What is known in one sampling.

    Attributes:
        draft: what the drafts said.
        follow: items that follow the other prompt from here on, in order.
        late: item → what the watch saw in it.
        encoded: `instead` as the model takes it.
        drafted: item → why its draft was not to be shown, now or in an earlier sampling.
    """

    draft: Draft
    follow: list[int]
    late: dict[int, str] = field(default_factory=dict)
    encoded: list[dict] | None = None
    drafted: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_start(cls, draft: Draft, earlier: list[Verdict | None]) -> "Seen":
        """What is known before the first step, from the drafts and from the samplings that made what this one starts from."""
        known = {item: verdict for item, verdict in enumerate(earlier) if verdict is not None}
        follow = {*draft.suspects, *(item for item, verdict in known.items() if verdict.redirected)}
        late = {item: _earlier(verdict.late) for item, verdict in known.items() if verdict.late}
        drafted = {item: _earlier(verdict.draft) for item, verdict in known.items() if verdict.draft}
        return cls(draft, sorted(follow), late, drafted=drafted | {item: draft.reasons[item] for item in draft.suspects})

    def verdicts(self, going_on) -> list[Verdict | None]:
        """One per item; None for those of which nothing is known."""
        scores = [[round(s, 4) if s == s else None for s in row] for row in self.draft.scores.tolist()]
        return [
            Verdict(self.drafted.get(item, ""), scores[item], self.late.get(item, ""), item in self.follow) if item in going_on else None
            for item in range(len(scores))
        ]


def _earlier(reason: str) -> str:
    return reason if reason.startswith(EARLIER) else EARLIER + reason


class RedirectAhead(Redirect):
    """What `redirect_ahead` does.

    Attributes:
        seen: in the sampling that goes on now; None where that draws its images more than once, as Optimize Noise does: then
            a draft says nothing, and it is watched as without.
    """

    def __init__(
        self, watch: ConceptMonitor, instead: list[dict], window: Window, ahead: LookAhead, late: Late, looks: Verdicts
    ):
        super().__init__(watch, instead, window)
        self.ahead, self.late, self.looks = ahead, late, looks
        self.whose = fingerprint(watch.concepts, *(judge.concepts for judge in ahead.judges))
        self.seen: Seen | None = None

    def sampling(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **more
    ):  # fmt: skip
        """Wrapper of a whole sampling (the host's OUTER_SAMPLE): look, then sample."""
        last = LastPrediction(callback)

        def sample() -> Tensor:
            return super(RedirectAhead, self).sampling(
                executor, noise, latent_image, sampler, sigmas, denoise_mask, last, disable_pbar, seed, **more
            )

        if len(sigmas) < 2 or getattr(sampler, "draws_again", False):
            return sample()
        if noise.ndim not in (4, 5):
            raise LatentSpaceError(
                f"Got latents of shape {tuple(noise.shape)}, as of video with sound, but {self.name} steers images and clips (batch, "
                "channels, frames, height, width). Take it out, and put Safety Gate behind the sampler."
            )
        guider, before = executor.class_obj, self.seen
        self.check(guider)
        going_on = active_items(guider.model_options, len(noise))
        earlier = found_before(self.whose, guider, noise, latent_image, sigmas)
        try:
            draft = self.ahead(guider, Sampling(noise, latent_image, sampler, sigmas, denoise_mask, seed))
            self.seen = Seen.from_start(draft, earlier)
            if draft.suspects:
                LOGGER.info("%s: %d of %d drafts are not to be shown.", self.name, len(draft.suspects), len(noise))
            samples = sample() if draft.picture is None else self._finished(draft, draft.picture, sample, callback)
            verdicts = self.seen.verdicts(going_on)
            self.looks.remember(samples, verdicts)
            flagged = [one if one is not None and (one.late or one.redirected) else None for one in verdicts]
            least = [ALIKE if one is not None and one.late else SAME for one in verdicts]
            remember(self.whose, guider, samples, sigmas, last, flagged, least)
            return samples
        finally:
            self.seen = before

    def _finished(self, draft: Draft, picture: Tensor, sample, callback) -> Tensor:
        """What leaves a sampling that was its own draft: the innocent as they are, the suspects from the other prompt."""
        suspects = self.seen.follow
        if not suspects:
            for step in draft.steps if callback is not None else ():
                callback(*step)
            return picture
        self.seen.follow = [*range(len(picture))]  # the others are made already
        samples = sample()
        self.seen.follow = suspects
        made = picture.to(samples, copy=True)
        made[suspects] = samples[suspects]
        return made

    def _carries(self, sampler, sigmas: Tensor) -> bool:
        return False  # `looks` has what was seen, and more of it

    def _steps(self, guider, sigmas: list[float]) -> list[int]:
        watches = self.seen is None or (self.late != "ignore" and self.seen.draft.picture is None)
        return super()._steps(guider, sigmas) if watches else []

    def prediction(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None) -> Tensor:
        """Wrapper of one prediction (the host's PREDICT_NOISE)."""
        if self.seen is None:
            return super().prediction(executor, x, timestep, model_options, seed)
        run = self._running()
        run.asked = True
        asked = Prediction(executor.class_obj, x, timestep, x, model_options, seed)
        going_on = active_items(model_options, len(x))
        follow = [row for row in self.seen.follow if row in going_on]
        denoised = self._at_once(asked, follow)
        if denoised is None:
            denoised = self._replaced(asked, executor(x, timestep, model_options, seed), follow)
        if run.step(timestep.flatten()[0].item()) not in run.steps:
            return denoised
        run.judged = True
        new = [row for row in self._watch(asked, denoised, run) if row in going_on]
        return self._replaced(asked, denoised, new)

    def _watch(self, asked: Prediction, denoised: Tensor, run: Run) -> list[int]:
        """Look at a prediction; the items that follow the other prompt from here on."""
        level = noise_level(asked.model, asked.sigma.flatten()[0].item())
        raw = asked.model.process_latent_out(denoised.detach())
        with torch.no_grad():
            over, _ = self.watch.check(raw, level)
        names, thresholds = self.watch.concepts.names, self.watch.concepts.thresholds
        scores = over.float().cpu() + torch.tensor(thresholds)
        step = run.step(asked.sigma.flatten()[0].item()) + 1
        new = []
        for row, reason in enumerate(reasons_to_block(scores, names, thresholds)):
            if reason and row not in self.seen.follow and row not in self.seen.late:
                self.seen.late[row] = f"seen at step {step} of {len(run.sigmas) - 1}, and not in its draft: {reason}"
                new.append(row)
        if self.late != "redirect":
            return []
        self.seen.follow = sorted([*self.seen.follow, *new])
        return new

    def _replaced(self, asked: Prediction, denoised: Tensor, rows: list[int]) -> Tensor:
        """The prediction with that of the other prompt for some rows; itself, bit for bit, where there are none."""
        if not rows:
            return denoised
        denoised = denoised.clone()
        denoised[rows] = self._predict(asked, rows).to(denoised)
        return denoised

    def _at_once(self, asked: Prediction, rows: list[int]) -> Tensor | None:
        """The whole batch in one evaluation, `rows` with the other prompt; None where that is not what the guider would do.

        Other nodes' work on predictions is not for those who follow the other prompt, and some samplers' must see every prediction.
        """
        options = asked.model_options
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.PREDICT_NOISE, options, True)
        if not rows or wrappers != [self.prediction] or any(options.get(key) for key in HOOKS_ON_PREDICTIONS):
            return None
        if len(rows) == len(asked.x):
            return self._predict(asked, rows)
        if self.seen.encoded is None:
            self.seen.encoded = comfy.samplers.encode_model_conds(
                asked.model.extra_conds, list(self.instead), asked.x, asked.x.device, "positive"
            )
        conds = with_items_of_another(asked.guider.conds, self.seen.encoded, rows, len(asked.x))
        return None if conds is None else self._with_conds(asked, conds, options)
