"""Safety Guidance in the sampler: flagged images follow the fallback prompt, or (deprecated) are pushed away by a gradient."""

import copy
import uuid
from dataclasses import replace

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...methods.guidance import AvoidConcepts, ConceptMonitor, GuidanceSettings
from ..sampling.conditioning import cond_items
from ..sampling.guide import Climb, noise_level
from ..sampling.rows import active_items
from ..sampling.steering import SAFETY, Prediction, Run, Window, steered
from .carried import CarriesVerdicts

NOT_IN_A_PROMPT = (
    "control", "area", "mask", "gligen", "hooks", "start_percent", "clip_start_percent", "additional_models"
)  # fmt: skip
# other nodes' work on a prediction; some of it keeps the last batch in mind, and would be confused by the suspects alone
HOOKS_ON_PREDICTIONS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


def push_model(patcher, objective: AvoidConcepts, settings: GuidanceSettings, window: Window):
    """A copy of a MODEL whose predictions are pushed away from what is to be kept out, as saved workflows without `instead` do it.

    Raises:
        LatentSpaceError: the model makes latents that the objective cannot read.
    """
    return steered(patcher, PushAway(objective, settings, window))


def redirect_model(patcher, watch: ConceptMonitor, instead: list, window: Window):
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


class PushAway(CarriesVerdicts, Climb):
    """`Climb` away from concepts; images that were flagged in an earlier sampling stay flagged."""

    name = SAFETY
    rank = 1

    def __init__(self, objective: AvoidConcepts, settings: GuidanceSettings, window: Window):
        super().__init__(objective, settings, window)
        self.watch = objective.watch


class Redirect(CarriesVerdicts):
    """What `redirect_model` does. Items that never showed anything get their prediction itself, bit for bit."""

    name = SAFETY
    rank = 2

    def __init__(self, watch: ConceptMonitor, instead: list[dict], window: Window):
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
                self.watch.check(model.process_latent_out(denoised.detach()), level)
        seen = self.watch.seen
        if seen is None or len(seen) != len(denoised) or not bool(seen.any()):
            return denoised
        going_on = active_items(prediction.model_options, len(denoised))
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
