"""Inputs that the safety nodes share: concepts, the window of steering, and drafts."""

from typing import Literal

from comfy_api.latest import io

from ..host.scorers import folders
from .sockets import CATEGORY, choice, number, text, whole

SAFETY = f"{CATEGORY}/safety"
LATE: dict[str, Literal["ignore", "redirect", "report"]] = {
    "draft only": "ignore",
    "draft, redirect late": "redirect",
    "draft, report late": "report",
}
"""Option of look_ahead → what to do with an image that is flagged after its draft had passed."""
NO_SECOND = "none"


def one_per_line(text: str) -> str:
    """Put the thresholds of a one-line widget on lines of their own."""
    return text.replace(";", "\n")


def concepts_fingerprint(concepts: str | None) -> str:
    """Fingerprint of the concept set, for `fingerprint_inputs` of the nodes with `concept_inputs`."""
    from ..host.scorers.concepts import concepts_fingerprint

    return concepts_fingerprint(concepts)


def concept_inputs() -> list[io.Input]:
    """Inputs that say what to keep out: the first arguments of `host.scorers.concepts.load_concepts`, in its order."""
    from ..host.scorers.concepts import concept_options

    return [
        choice("concepts", concept_options(),
            "i2p: hate, harassment, violence, self-harm, sexual content, shocking images, illegal activity. typed below: your own lines. "
            "Files in models/latent_clip/concepts appear here."),
        text("typed",
            "For 'typed below': lines such as 'weapons: a gun, a rifle'. A line 'neutral: ...' says what they are compared with; without one, "
            "everyday scenes.", multiline=True),
        text("categories", "Only these categories of the set, separated by commas. Empty: all of them."),
        text("thresholds",
            "Log-odds from which an image counts as showing a category: one number for all, or lines such as 'violence: 1.5'. Lower is "
            "stricter. Empty: those of the set. Calibrate them on your own images.", multiline=True),
    ]  # fmt: skip


def window_inputs(strength: float, start: float, push: str = "", look: str = "") -> list[io.Input]:
    """Inputs for the strength of steering and its window; `push` is added to the tooltips of the strength, `look` to those of the window."""
    return [
        number("strength", strength, 0.0, 10.0, 0.05,
            f'Largest correction of one step, in standard deviations of the latent. Too high: images break.{push}'),
        number("start", start, 0.0, 1.0, 0.01,
            'Begin here; 0 is pure noise, where the prediction is too blurred to judge and innocent images may be suspected. The last step '
            f'always counts, if end is 1.{look}', advanced=True),
        number("end", 1.0, 0.0, 1.0, 0.01, f'End here; 1 is the clean image.{look}', advanced=True),
        whole("every_n", 1, 1, 100, f'Only at every n-th step from start on, to save time.{look}', advanced=True),
        number("momentum", 0.0, 0.0, 0.99, 0.05, f"How much of the last step's direction lives on. 0 is usual.{push}", advanced=True),
    ]  # fmt: skip


def look_ahead_inputs() -> list[io.Input]:
    """Inputs for drafts before the first step."""
    return [
        choice("look_ahead", ["off", *LATE],
            "Make a quick draft of every image before the first step, and judge it as the gate does: who would show a category follows 'instead' "
            "from the start, all others are made as if nothing had been there. draft only: nobody watches afterwards. redirect late: whom only "
            "the watch suspects, from start to end, follows 'instead' from there. report late: it goes on, and the gate behind 'looks' blocks it.",
            optional=True),
        whole("draft_steps", 4, 1, 100,
            "Steps of a draft; so many more the sampling costs. Below 4 a draft says little. A sampling of no more steps is its own draft.",
            optional=True, advanced=True),
        text("draft_thresholds",
            "As 'thresholds', for drafts, which are finished pictures; several in one line: 'violence: 1.5; hate: 2'. Empty: those of the set.",
            optional=True, advanced=True),
        io.Model.Input("drafter", optional=True,
            tooltip="Makes the drafts, at cfg 1: the same model with a turbo or lightning LoRA, say. Without it the model itself does."),
        io.Vae.Input("vae", optional=True, tooltip="Decodes drafts for 'pixel_clip', and nothing else. It must be the VAE whose latents 'latent_clip' reads."),
        choice("pixel_clip", [NO_SECOND, *folders.list_files(folders.OPEN_CLIP)],
            "A second judge of drafts, of whom either may suspect: a CLIP checkpoint in ComfyUI/models/open_clip. It sees the decoded draft, which "
            "takes time, and what the Latent-CLIP misses.", optional=True, advanced=True),
        text("pixel_thresholds", "As 'draft_thresholds', for the second judge, whose log-odds are on another scale: calibrate them.",
            optional=True, advanced=True),
    ]  # fmt: skip
