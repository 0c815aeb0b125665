"""Safety Gate. It fails closed: what cannot be judged, for whatever reason, does not pass."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import comfy.model_management as mm
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...methods.concepts import largest
from ...methods.gate import reasons_to_block_clips
from ...models.concepts import ConceptSet
from ...models.fit import Fit
from ...models.frames import frames_in
from ..scorers.concepts import directions_for
from ..scorers.latent_clip import LoadedLatentCLIP
from ..scorers.latents import MAX_THUMBNAILS, image_part, raw_latents_of, select_items, thumbnails
from ..scorers.log_odds import log_odds_of_frames
from .audit import write_record
from .gate_report import GateReport, plain_scores, plain_verdicts
from .safe_latents import can_be_cut, cut, hidden, parts_of, pictures_in, without_side_doors
from .verdicts import Verdict, Verdicts

LOGGER = logging.getLogger(__name__)
UNKNOWN = (
    "the Safety Guidance behind `looks` did not look at this image: its look_ahead is off, another model made the image, or it was "
    "changed since. Wire looks from the guidance of the model that made it, or not at all"
)


class BlockedError(RuntimeError):
    """Something was blocked, and `on_block` is "stop"."""


@dataclass(frozen=True)
class GateSettings:
    """Settings of the gate.

    Attributes:
        fit: aspect mode of latents that are not square. closer: see `models.fit.safety_windows`.
        views: perturbed copies of each latent that must pass as well.
        cut_clips: cut a clip that begins clean before its first flagged frame, instead of blocking it. From its middle on it could
            not be decoded: a video VAE reads frames one after the other.
        audit: append scores and reasons to the log; images that cannot be logged do not pass.
    """

    on_block: Literal["grey", "blur", "drop", "stop"] = "grey"
    fit: Fit = "tiles"
    views: int = 0
    closer: bool = False
    cut_clips: bool = False
    audit: bool = False


def run_gate(
    latent: dict,
    clip: LoadedLatentCLIP | None,
    concepts: Callable[[], ConceptSet],
    settings: GateSettings,
    verdicts: Verdicts | None = None,
    texts: Callable[[], dict[str, str]] | None = None,
) -> tuple[dict | ExecutionBlocker, GateReport]:
    """Check every image, and replace, drop or refuse those that must not pass.

    Args:
        concepts: reads the concept set; called here, so that a broken one blocks instead of failing somewhere else.
        verdicts: those of the Safety Guidance that made the images; images that it flagged late, or does not know, do not pass.
        texts: finds the texts of the prompt, which go into the log too; "node id.input" → text.

    Returns:
        (what may go on, report).

    Raises:
        BlockedError: something is blocked and `on_block` is "stop".
    """
    checked = _checked(latent, clip, concepts, settings, verdicts)
    names, scores, reasons = checked.names, checked.scores, checked.reasons
    scores_of_items = plain_scores(None if scores is None else largest(scores, dim=1), len(reasons), len(names))
    of_frames = None if scores is None or scores.shape[1] == 1 else [plain_scores(frames, *frames.shape) for frames in scores]
    said, kept = "", checked.clean[0]
    if settings.cut_clips and reasons[0] and kept > 0 and can_be_cut(checked.latent):
        said, reasons = f"cut to its first {kept} of {_frames(checked.latent)} frames. {reasons[0]}", [""]
    report = GateReport(
        names, checked.thresholds, scores_of_items, reasons, [], tuple(checked.verdicts), of_frames, said, checked.left_out
    )
    if settings.audit:
        report = replace(report, reasons=_audited(report, texts))
    reasons, on_block = report.reasons, settings.on_block
    safe = cut(checked.latent, kept) if said and not reasons[0] else _safe_latent(checked.latent, reasons, on_block)
    pictures = [] if isinstance(safe, ExecutionBlocker) else _thumbnails(safe, clip, reasons, on_block)
    return safe, replace(report, thumbnails=pictures)


@dataclass
class _Checked:
    """Verdicts of one batch, as far as they could be found before an error.

    Attributes:
        latent: what may leave if nothing is blocked; empty until the latent could be read. left_out: what does not leave.
        scores: log-odds (B, T, categories); None where there are none.
        clean: frames before the first flagged one, per image.
    """

    reasons: list[str]
    clean: list[int] = field(default_factory=lambda: [0])
    latent: dict = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    scores: Tensor | None = None
    verdicts: list[Verdict | None] = field(default_factory=list)


def _checked(
    latent: dict,
    clip: LoadedLatentCLIP | None,
    concepts: Callable[[], ConceptSet],
    settings: GateSettings,
    verdicts: Verdicts | None,
) -> _Checked:
    """Check a batch; whatever goes wrong is a reason to block all of it."""
    size = _size(latent)
    found = _Checked([""] * size)
    try:
        found.latent, found.left_out = without_side_doors(latent)
        concept_set = concepts()
        found.names = tuple(category.name for category in concept_set.categories)
        found.thresholds = tuple(category.threshold for category in concept_set.categories)
        if clip is None:
            raise ValueError("there is no Latent-CLIP to judge with")
        found.scores = _scores(found.latent, clip, concept_set, settings)
        found.reasons, found.clean = reasons_to_block_clips(found.scores, found.names, found.thresholds)
        if len(found.reasons) != size:
            raise ValueError(f"got {len(found.reasons)} verdicts for {size} images")
        if verdicts is not None:
            found.reasons, found.verdicts = _with_verdicts(found.latent, verdicts, found.reasons)
            found.clean = [0 if one is None or one.late else n for n, one in zip(found.clean, found.verdicts)]
    except mm.InterruptProcessingException:
        raise
    except Exception as error:  # the one place where any error has an answer: nothing passes
        LOGGER.exception("Safety Gate: could not judge; everything is blocked.")
        found.reasons, found.clean = [f"could not be judged: {error or type(error).__name__}"] * size, [0] * size
    return found


def _scores(latent: dict, clip: LoadedLatentCLIP, concepts: ConceptSet, settings: GateSettings) -> Tensor:
    """Log-odds (B, T, categories) of every frame of every part that may be a picture; see `log_odds_of_frames`."""
    fit, views, closer = settings.fit, settings.views, settings.closer
    directions = directions_for(clip, concepts, fit, views, closer)
    encoder, parts = clip.window_encoder(fit, closer), pictures_in(latent["samples"], clip.space)
    if len(parts) == 1:
        return log_odds_of_frames(parts[0], encoder, directions, views)
    try:
        return torch.cat([log_odds_of_frames(part, encoder, directions, views) for part in parts], dim=1)
    except (ValueError, RuntimeError) as error:
        shapes = ", ".join(str(tuple(getattr(part, "shape", ()))) for part in parts_of(latent["samples"]))
        raise ValueError(
            f"got a latent of several parts, {shapes}, of which one is no sound of LTX-2 and cannot be judged beside the first: {error} "
            "Take them apart before the gate, with Separate AV Latent for instance, and gate the pictures alone"
        ) from error


def _with_verdicts(latent: dict, verdicts: Verdicts, reasons: list[str]) -> tuple[list[str], list[Verdict | None]]:
    """Add the reasons of Safety Guidance to those of the gate: (reasons, verdicts of Safety Guidance)."""
    found = verdicts.of(image_part(latent["samples"]))
    earlier = [UNKNOWN if verdict is None else verdict.late for verdict in found]
    return ["; ".join(filter(None, pair)) for pair in zip(reasons, earlier, strict=True)], found


def _frames(latent: dict) -> int:
    return frames_in(image_part(latent["samples"]).shape)


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
    try:
        samples = image_part(latent["samples"])
        if on_block == "drop" or not isinstance(samples, Tensor) or samples.ndim < 2 or len(samples) != len(reasons):
            return select_items(latent, passed) if passed else ExecutionBlocker(message)
        return hidden(latent, blocked, on_block == "blur")
    except mm.InterruptProcessingException:
        raise
    except Exception:  # what cannot be covered does not leave at all
        LOGGER.exception("Safety Gate: the blocked images could not be covered; nothing leaves the gate.")
        return ExecutionBlocker(message)


def _thumbnails(safe: dict, clip: LoadedLatentCLIP | None, reasons: list[str], on_block: str) -> list[str]:
    """Thumbnail per checked item; none for a dropped one."""
    try:
        pictures = iter(thumbnails(raw_latents_of(safe, clip.space)[:MAX_THUMBNAILS], clip.space))
    except Exception:  # a missing thumbnail is no reason to fail
        LOGGER.debug("Safety Gate: no thumbnails.", exc_info=True)
        return [""] * len(reasons)
    return ["" if reason and on_block == "drop" else next(pictures, "") for reason in reasons]


def _audited(report: GateReport, texts: Callable[[], dict[str, str]] | None) -> list[str]:
    """Write the log; return the reasons, or one for every image where the log could not be written."""
    context = get_executing_context()
    record = {
        "prompt_id": getattr(context, "prompt_id", None),
        "node_id": getattr(context, "node_id", None),
        "categories": list(report.names),
        "thresholds": list(report.thresholds),
        "scores": report.scores,
        "reasons": report.reasons,
        **({"looks": plain_verdicts(report.verdicts)} if report.verdicts else {}),
        **({"cut": report.cut} if report.cut else {}),
    }
    try:
        write_record(record if texts is None else {**record, "texts": texts()})
    except Exception as error:  # whatever kept it from the log, no batch passes that is in none
        LOGGER.exception("Safety Gate: the audit log could not be written; everything is blocked.")
        why = getattr(error, "strerror", None) or error or type(error).__name__
        return [f"the audit log could not be written: {why}"] * len(report.reasons)
    return report.reasons


def _size(latent: dict) -> int:
    """Number of items; 1 for what has none, so that there is something to block."""
    try:
        samples = image_part(latent["samples"])
        return max(1, len(samples)) if isinstance(samples, Tensor) and samples.ndim > 0 else 1
    except Exception:  # any object may be on a wire; `_checked` names what is wrong with it
        return 1
