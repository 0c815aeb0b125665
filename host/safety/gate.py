"""The safety gate inside the host. It fails closed: what cannot be judged, for whatever reason, does not pass."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from .looks import Verdict, Verdicts
from .safe_latents import can_be_cut, cut, hidden, parts_of, pictures_in, without_side_doors

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
        left_out: what the latent carried beside its samples, and what does not leave the gate.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    scores: list[list[float | None]]
    reasons: list[str]
    thumbnails: list[str]
    looks: tuple[Verdict | None, ...] = ()
    frames: list[list[list[float | None]]] | None = None
    cut: str = ""
    left_out: Sequence[str] = ()

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
            **({"left_out": list(self.left_out)} if self.left_out else {}),
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
    looks: Verdicts | None = None,
    cut_clips: bool = False,
) -> tuple[dict | ExecutionBlocker, GateReport]:
    """Judge every item and replace, drop or refuse what must not pass.

    Args:
        concepts: reads the concept set; called here, so that a broken one blocks instead of failing somewhere else.
        on_block: "grey", "blur", "drop" or "stop".
        views: how many altered copies of each latent must pass as well.
        audit: append scores and verdicts to the log; what cannot be logged does not pass.
        texts: finds the texts of the prompt, which go into the log too; "node id.input" → text.
        closer: see `models.fit.safety_windows`.
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
    size, clean, left_out = _size(latent), [0], []
    given, latent = latent, {}  # of what cannot even be read, nothing leaves
    try:
        latent, left_out = without_side_doors(given)
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
    said = ""
    if cut_clips and reasons[0] and clean[0] > 0 and can_be_cut(latent):
        said, reasons = f"cut to its first {clean[0]} of {_frames(latent)} frames. {reasons[0]}", [""]
    if audit:
        reasons = _audited(names, thresholds, plain_scores, reasons, texts, verdicts, said)
    safe = cut(latent, clean[0]) if said and not reasons[0] else _safe_latent(latent, reasons, on_block)
    pictures = [] if isinstance(safe, ExecutionBlocker) else _thumbnails(safe, clip, reasons, on_block)
    report = GateReport(names, thresholds, plain_scores, reasons, pictures, tuple(verdicts), of_frames, said, left_out)
    return safe, report


def _scores(latent: dict, clip: LoadedLatentCLIP, concepts: ConceptSet, fit: Fit, views: int, closer: bool) -> Tensor:
    """Log-odds (B, T, categories) of every frame of every part that may be a picture; see `log_odds_of_frames`."""
    directions = directions_for(clip, concepts, fit, views, closer)
    watcher, parts = clip.window_encoder(fit, closer), pictures_in(latent["samples"], clip.space)
    if len(parts) == 1:
        return log_odds_of_frames(parts[0], watcher, directions, views)
    try:
        return torch.cat([log_odds_of_frames(part, watcher, directions, views) for part in parts], dim=1)
    except (ValueError, RuntimeError) as error:
        shapes = ", ".join(str(tuple(getattr(part, "shape", ()))) for part in parts_of(latent["samples"]))
        raise ValueError(
            f"got a latent of several parts, {shapes}, of which one is no sound of LTX-2 and cannot be judged beside the first: {error} "
            "Take them apart before the gate, with Separate AV Latent for instance, and gate the pictures alone"
        ) from error


def _with_looks(latent: dict, looks: Verdicts, reasons: list[str]) -> tuple[list[str], list[Verdict | None]]:
    """Reasons to block, with those of the guidance that looked before; and what it found."""
    verdicts = looks.of(image_part(latent["samples"]))
    earlier = [UNKNOWN if verdict is None else verdict.late for verdict in verdicts]
    return ["; ".join(filter(None, pair)) for pair in zip(reasons, earlier, strict=True)], verdicts


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
    """One per judged item; none for a dropped one."""
    try:
        pictures = iter(thumbnails(raw_latents_of(safe, clip.space)[:MAX_THUMBNAILS], clip.space))
    except Exception:  # a missing thumbnail is no reason to fail
        LOGGER.debug("Safety Gate: no thumbnails.", exc_info=True)
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
    except Exception as error:  # whatever kept it from the log, no batch passes that is in none
        LOGGER.exception("Safety Gate: the audit log could not be written; everything is blocked.")
        return [f"the audit log could not be written: {getattr(error, 'strerror', None) or error or type(error).__name__}"] * len(reasons)
    return reasons


def _size(latent: dict) -> int:
    """Number of items; 1 for what has none, so that there is something to block."""
    try:
        samples = image_part(latent["samples"])
        return max(1, len(samples)) if isinstance(samples, Tensor) and samples.ndim > 0 else 1
    except Exception:  # any object may be on a wire; what it is not, `run_gate` says
        return 1


def _plain(scores: Tensor | None, size: int, categories: int) -> list[list[float | None]]:
    if scores is None:
        return [[None] * categories for _ in range(size)]
    return [[round(value, 4) if math.isfinite(value) else None for value in row] for row in scores.tolist()]


def _plain_looks(verdicts: Sequence[Verdict | None]) -> list[dict | None]:
    return [None if verdict is None else verdict.as_dict() for verdict in verdicts]
