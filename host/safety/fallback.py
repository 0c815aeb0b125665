"""Fallback prompt of Safety Guidance: predictions for flagged images as the same guider makes them from another prompt."""

import copy
import uuid
from dataclasses import dataclass, replace

import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ..sampling.conditioning import cond_items, with_items_of_another
from ..sampling.steering import Prediction

NOT_IN_A_PROMPT = (
    "control", "area", "mask", "gligen", "hooks", "start_percent", "clip_start_percent", "additional_models"
)  # fmt: skip
# other nodes' work on a prediction; some of it keeps the last batch in mind, and would be confused by the flagged images alone
HOOKS_ON_PREDICTIONS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


def read_fallback(patcher, instead: list | None) -> "Fallback":
    """Read the CONDITIONING of `instead`.

    Raises:
        ValueError: it holds more than one prompt, such as a ControlNet or a mask, or the model needs more than a prompt.
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
    return Fallback(comfy.sampler_helpers.convert_cond(instead))


@dataclass(frozen=True)
class Fallback:
    """A plain prompt that the whole batch shares, as the host's guiders hold it."""

    prompt: list[dict]

    def check(self, guider) -> None:
        """Refuse a prompt of another text encoder than that of the guider's prompts.

        Raises:
            ValueError: the widths differ.
        """
        theirs = {
            cond["cross_attn"].shape[-1] for conds in guider.conds.values() for cond in conds if "cross_attn" in cond
        }
        ours = {cond["cross_attn"].shape[-1] for cond in self.prompt if "cross_attn" in cond}
        if theirs and not ours <= theirs:
            raise ValueError(
                f"Got `instead` from a text encoder of width {ours}, expected {theirs} as in the sampler's prompt. "
                "Encode both with the CLIP of the same checkpoint."
            )

    def encoded(self, asked: Prediction) -> list[dict]:
        """Encode the prompt as the model takes it, for `join`."""
        return comfy.samplers.encode_model_conds(
            asked.model.extra_conds, list(self.prompt), asked.x, asked.x.device, "positive"
        )

    def join(self, asked: Prediction, items: list[int], encoded: list[dict]) -> Tensor | None:
        """Predict the whole batch in one evaluation, `items` from this prompt; None where the host cannot join the prompts."""
        conds = with_items_of_another(asked.guider.conds, encoded, items, len(asked.x))
        return None if conds is None else _predict(asked, conds, asked.model_options)

    def predict(self, asked: Prediction, items: list[int]) -> Tensor:
        """Predict these items alone from this prompt, with the guider's own negative prompt and cfg."""
        x, size = asked.x[items], len(asked.x)
        conds = {
            name: cond_items(_without_control(conds), items, size)
            if "negative" in name
            else comfy.samplers.encode_model_conds(
                asked.model.extra_conds, _as_strong(self.prompt, conds), x, x.device, "positive"
            )
            for name, conds in asked.guider.conds.items()
        }
        options = {key: value for key, value in asked.model_options.items() if key not in HOOKS_ON_PREDICTIONS}
        return _predict(replace(asked, x=x, sigma=asked.sigma[items]), conds, options)


def _predict(asked: Prediction, conds: dict, options: dict) -> Tensor:
    """Predict with the same guider and other prompts."""
    guider = copy.copy(asked.guider)
    guider.conds = conds
    return guider.predict_noise(asked.x, asked.sigma, options, asked.seed)


def _as_strong(prompt: list[dict], conds: list[dict]) -> list[dict]:
    """Give the prompt the guidance of the one that it replaces, on models that read it from the prompt (Flux Guidance)."""
    strengths = [{"guidance": cond["guidance"]} for cond in conds if "guidance" in cond]
    return [{**(strengths[0] if strengths else {}), **cond} for cond in prompt]


def _without_control(conds: list[dict]) -> list[dict]:
    """Take the ControlNet out of negative prompts: the fallback prompt has none, and they would push away from its hint.

    They get ids of their own, by which step-skipping nodes file what they remember of each prompt's whole batch.
    """
    kept = [{key: value for key, value in cond.items() if key != "control"} for cond in conds]
    return [{**cond, "uuid": uuid.uuid5(cond["uuid"], "suspects")} for cond in kept]
