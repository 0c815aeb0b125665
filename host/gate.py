"""The safety gate inside the host. It fails closed: what cannot be judged, for whatever reason, does not pass."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..methods.concepts import largest
from ..methods.gate import blurred, reasons_to_block_clips
from ..models.concepts import ConceptSet
from ..models.fit import Fit
from ..models.frames import clips_of, frames_in, pictures_of
from .audit import write_record
from .concepts import directions_for
from .latent_clip import LoadedLatentCLIP
from .latents import MAX_THUMBNAILS, image_part, raw_latents_of, select_items, thumbnails
from .log_odds import log_odds_of_frames
from .looks import Looks, Verdict

LOGGER = logging.getLogger(__name__)
UNKNOWN = (
    "the Safety Guidance behind `looks` did not look at this image: its look_ahead is off, another model made the image, or it was "
    "changed since. Wire looks from the guidance of the model that made it, or not at all"
)


class BlockedError(RuntimeError):
    """The gate was told to stop the prompt when it blocks something."""


@dataclass(frozen=True)
class GateReport:
    """What the gate found.

    Attributes:
        names, thresholds: of the categories; empty where they could not even be read.
        scores: log-odds per item and category, None where there are none; of a clip, those of its worst frame.
        reasons: why each item is blocked; "" for those that pass.
        thumbnails: of what leaves the gate, never of what was blocked.
        looks: what the guidance before it found of each item; empty where it was not asked.
        frames: log-odds per item, frame and category, of clips. cut: what was cut off a clip, and why; "" where nothing was.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    scores: list[list[float | None]]
    reasons: list[str]
    thumbnails: list[str]
    looks: tuple[Verdict | None, ...] = ()
    frames: list[list[list[float | None]]] | None = None
    cut: str = ""

    @property
    def blocked(self) -> list[bool]:
        return [bool(reason) for reason in self.reasons]

    def as_dict(self) -> dict:
        clips = {} if self.frames is None else {"frames": self.frames, "cut": self.cut}
        return {
            **clips,
            "categories": list(self.names),
            "thresholds": list(self.thresholds),
            "scores": self.scores,
            "blocked": self.blocked,
            "reasons": self.reasons,
            **({"looks": _plain_looks(self.looks)} if self.looks else {}),
        }

    def as_ui(self) -> dict:
        return {**self.as_dict(), "kind": "safety", "names": list(self.names), "thumbnails": self.thumbnails}


def run_gate(
    latent: dict,
    clip: LoadedLatentCLIP | None,
    concepts: Callable[[], ConceptSet],
    on_block: str,
    fit: Fit,
    views: int,
    audit: bool = False,
    texts: Callable[[], dict[str, str]] | None = None,
    closer: bool = False,
    looks: Looks | None = None,
    cut_clips: bool = False,
) -> tuple[dict | ExecutionBlocker, GateReport]:
    """Judge every item and replace, drop or refuse what must not pass.

    Args:
        concepts: reads the concept set; called here, so that a broken one blocks instead of failing somewhere else.
        on_block: "grey", "blur", "drop" or "stop".
        views: how many altered copies of each latent must pass as well.
        audit: append scores and verdicts to the log; what cannot be logged does not pass.
        texts: finds the texts of the prompt, which go into the log too; "node id.input" → text.
        closer: see `models.fit.more_windows`.
        looks: what a Safety Guidance saw of the images before; what it suspected late, or never looked at, does not pass.
        cut_clips: a clip that begins clean is cut before the first frame that does not pass, instead of blocked. From its middle on it
            could not be decoded: a video VAE reads frames one after the other.

    Returns:
        (what may go on, report).

    Raises:
        BlockedError: something is blocked and on_block is "stop".
    """
    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    scores: Tensor | None = None
    verdicts: list[Verdict | None] = []
    size, clean = _size(latent), [0]
    try:
        concept_set = concepts()
        names = tuple(category.name for category in concept_set.categories)
        thresholds = tuple(category.threshold for category in concept_set.categories)
        if clip is None:
            raise ValueError("there is no Latent-CLIP to judge with")
        scores = _scores(latent, clip, concept_set, fit, views, closer)
        reasons, clean = reasons_to_block_clips(scores, names, thresholds)
        if len(reasons) != size:
            raise ValueError(f"got {len(reasons)} verdicts for {size} images")
        if looks is not None:
            reasons, verdicts = _with_looks(latent, looks, reasons)
            clean = [0 if verdict is None or verdict.late else n for n, verdict in zip(clean, verdicts)]
    except mm.InterruptProcessingException:
        raise
    except Exception as error:  # the one place where any error has an answer: nothing passes
        LOGGER.exception("Safety Gate: could not judge; everything is blocked.")
        reasons = [f"could not be judged: {error or type(error).__name__}"] * size
    plain_scores = _plain(None if scores is None else largest(scores, dim=1), size, len(names))
    of_frames = None if scores is None or scores.shape[1] == 1 else [_plain(clip, *clip.shape) for clip in scores]
    cut = ""
    if cut_clips and reasons[0] and clean[0] > 0 and _can_be_cut(latent):
        cut, reasons = f"cut to its first {clean[0]} of {_frames(latent)} frames. {reasons[0]}", [""]
    if audit:
        reasons = _audited(names, thresholds, plain_scores, reasons, texts, verdicts, cut)
    safe = _cut(latent, clean[0]) if cut and not reasons[0] else _safe_latent(latent, reasons, on_block)
    pictures = [] if isinstance(safe, ExecutionBlocker) else _thumbnails(safe, clip, reasons, on_block)
    report = GateReport(names, thresholds, plain_scores, reasons, pictures, tuple(verdicts), of_frames, cut)
    return safe, report


def _scores(latent: dict, clip: LoadedLatentCLIP, concepts: ConceptSet, fit: Fit, views: int, closer: bool) -> Tensor:
    """Log-odds (B, T, categories); see `log_odds_of_frames`."""
    directions = directions_for(clip, concepts, fit, views, closer)
    return log_odds_of_frames(latent["samples"], clip.watcher(fit, closer), directions, views)


def _with_looks(latent: dict, looks: Looks, reasons: list[str]) -> tuple[list[str], list[Verdict | None]]:
    """Reasons to block, with those of the guidance that looked before; and what it found."""
    verdicts = looks.of(image_part(latent["samples"]))
    earlier = [UNKNOWN if verdict is None else verdict.late for verdict in verdicts]
    return ["; ".join(filter(None, pair)) for pair in zip(reasons, earlier, strict=True)], verdicts


def _frames(latent: dict) -> int:
    return frames_in(image_part(latent["samples"]).shape)


def _can_be_cut(latent: dict) -> bool:
    """One clip without sound: several would get different lengths, and sound has a clock of its own."""
    samples = latent["samples"]
    return isinstance(samples, Tensor) and len(samples) == 1 and frames_in(samples.shape) > 1


def _cut(latent: dict, frames: int) -> dict:
    """The first frames of a clip, and of a mask that has frames."""
    before = _frames(latent)
    keys = [key for key in ("samples", "noise_mask") if isinstance(latent.get(key), Tensor)]
    cut = {key: latent[key][:, :, :frames] for key in keys if frames_in(latent[key].shape) == before}
    return {**latent, **cut}


def _safe_latent(latent: dict, reasons: list[str], on_block: str) -> dict | ExecutionBlocker:
    blocked = [i for i, reason in enumerate(reasons) if reason]
    if reasons and not blocked:
        return latent
    message = f"Safety Gate: {len(blocked)} of {len(reasons)} images blocked. " + "; ".join(
        f"image {i + 1}: {reasons[i]}" for i in blocked[:8]
    )
    if on_block == "stop":
        raise BlockedError(message)
    passed = [i for i, reason in enumerate(reasons) if not reason]
    whole: Any = latent.get("samples") if isinstance(latent, dict) else None
    samples = image_part(whole)
    if on_block == "drop" or not isinstance(samples, Tensor) or samples.ndim < 2 or len(samples) != len(reasons):
        return select_items(latent, passed) if passed else ExecutionBlocker(message)
    if on_block == "blur" and samples.ndim in (4, 5) and samples.numel():
        hidden = clips_of(blurred(pictures_of(samples[blocked].float())), samples).to(samples.dtype)
        broken = ~hidden.float().isfinite().flatten(1).all(dim=1)
        hidden[broken] = 0
    else:
        hidden = torch.zeros_like(samples[blocked])  # zero is what the VAE decodes to a flat, greyish field
    safe = samples.clone()
    safe[blocked] = hidden
    if isinstance(whole, Tensor):
        return {**latent, "samples": safe}
    return {**latent, "samples": type(whole)([safe, *whole.unbind()[1:]])}  # sound, which nobody judged, as it came


def _thumbnails(safe: dict, clip: LoadedLatentCLIP | None, reasons: list[str], on_block: str) -> list[str]:
    """One per judged item; none for a dropped one."""
    try:
        pictures = iter(thumbnails(raw_latents_of(safe, clip.space)[:MAX_THUMBNAILS], clip.space))
    except (AttributeError, ValueError, RuntimeError):
        return [""] * len(reasons)
    return ["" if reason and on_block == "drop" else next(pictures, "") for reason in reasons]


def _audited(
    names: tuple[str, ...],
    thresholds: tuple[float, ...],
    scores: list[list[float | None]],
    reasons: list[str],
    texts: Callable[[], dict[str, str]] | None,
    verdicts: Sequence[Verdict | None],
    cut: str,
) -> list[str]:
    """Write the log; the reasons, or one for every item where the log could not be written."""
    context = get_executing_context()
    record = {
        "prompt_id": getattr(context, "prompt_id", None),
        "node_id": getattr(context, "node_id", None),
        "categories": list(names),
        "thresholds": list(thresholds),
        "scores": scores,
        "reasons": reasons,
        **({"looks": _plain_looks(verdicts)} if verdicts else {}),
        **({"cut": cut} if cut else {}),
    }
    try:
        write_record(record if texts is None else {**record, "texts": texts()})
    except OSError as error:
        LOGGER.exception("Safety Gate: the audit log could not be written; everything is blocked.")
        return [f"the audit log could not be written: {error.strerror}"] * len(reasons)
    return reasons


def _size(latent: dict) -> int:
    """Number of items; 1 for what has none, so that there is something to block."""
    samples = image_part(latent.get("samples")) if isinstance(latent, dict) else None
    return len(samples) if isinstance(samples, Tensor) and samples.ndim > 0 and len(samples) > 0 else 1


def _plain(scores: Tensor | None, size: int, categories: int) -> list[list[float | None]]:
    if scores is None:
        return [[None] * categories for _ in range(size)]
    return [[round(value, 4) if math.isfinite(value) else None for value in row] for row in scores.tolist()]


def _plain_looks(verdicts: Sequence[Verdict | None]) -> list[dict | None]:
    return [None if verdict is None else verdict.as_dict() for verdict in verdicts]
