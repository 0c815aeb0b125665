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

from ..methods.gate import blurred, reasons_to_block
from ..models.concepts import ConceptSet
from ..models.fit import Fit
from .audit import write_record
from .concepts import directions_for
from .latent_clip import LoadedLatentCLIP
from .latents import MAX_THUMBNAILS, raw_latents_of, select_items, thumbnails
from .log_odds import log_odds
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
        scores: log-odds per item and category, None where there are none.
        reasons: why each item is blocked; "" for those that pass.
        thumbnails: of what leaves the gate, never of what was blocked.
        looks: what the guidance before it found of each item; empty where it was not asked.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    scores: list[list[float | None]]
    reasons: list[str]
    thumbnails: list[str]
    looks: tuple[Verdict | None, ...] = ()

    @property
    def blocked(self) -> list[bool]:
        return [bool(reason) for reason in self.reasons]

    def as_dict(self) -> dict:
        return {
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

    Returns:
        (what may go on, report).

    Raises:
        BlockedError: something is blocked and on_block is "stop".
    """
    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    scores: Tensor | None = None
    verdicts: list[Verdict | None] = []
    size = _size(latent)
    try:
        concept_set = concepts()
        names = tuple(category.name for category in concept_set.categories)
        thresholds = tuple(category.threshold for category in concept_set.categories)
        if clip is None:
            raise ValueError("there is no Latent-CLIP to judge with")
        scores = _scores(latent, clip, concept_set, fit, views, closer)
        reasons = reasons_to_block(scores, names, thresholds)
        if len(reasons) != size:
            raise ValueError(f"got {len(reasons)} verdicts for {size} images")
        if looks is not None:
            reasons, verdicts = _with_looks(latent, looks, reasons)
    except mm.InterruptProcessingException:
        raise
    except Exception as error:  # the one place where any error has an answer: nothing passes
        LOGGER.exception("Safety Gate: could not judge; everything is blocked.")
        reasons = [f"could not be judged: {error or type(error).__name__}"] * size
    plain_scores = _plain(scores, size, len(names))
    if audit:
        reasons = _audited(names, thresholds, plain_scores, reasons, texts, verdicts)
    safe = _safe_latent(latent, reasons, on_block)
    pictures = [] if isinstance(safe, ExecutionBlocker) else _thumbnails(safe, clip, reasons, on_block)
    report = GateReport(names, thresholds, plain_scores, reasons, pictures, tuple(verdicts))
    return safe, report


def _scores(latent: dict, clip: LoadedLatentCLIP, concepts: ConceptSet, fit: Fit, views: int, closer: bool) -> Tensor:
    """Log-odds (B, categories); see `log_odds`."""
    return log_odds(
        latent["samples"], clip.watcher(fit, closer), directions_for(clip, concepts, fit, views, closer), views
    )


def _with_looks(latent: dict, looks: Looks, reasons: list[str]) -> tuple[list[str], list[Verdict | None]]:
    """Reasons to block, with those of the guidance that looked before; and what it found."""
    verdicts = looks.of(latent["samples"])
    earlier = [UNKNOWN if verdict is None else verdict.late for verdict in verdicts]
    return ["; ".join(filter(None, pair)) for pair in zip(reasons, earlier, strict=True)], verdicts


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
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if on_block == "drop" or not isinstance(samples, Tensor) or samples.ndim < 2 or len(samples) != len(reasons):
        return select_items(latent, passed) if passed else ExecutionBlocker(message)
    if on_block == "blur" and samples.ndim == 4 and samples.numel():
        hidden = blurred(samples[blocked].float()).to(samples.dtype)
        broken = ~hidden.float().isfinite().flatten(1).all(dim=1)
        hidden[broken] = 0
    else:
        hidden = torch.zeros_like(samples[blocked])  # zero is what the VAE decodes to a flat, greyish field
    safe = samples.clone()
    safe[blocked] = hidden
    return {**latent, "samples": safe}


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
    }
    try:
        write_record(record if texts is None else {**record, "texts": texts()})
    except OSError as error:
        LOGGER.exception("Safety Gate: the audit log could not be written; everything is blocked.")
        return [f"the audit log could not be written: {error.strerror}"] * len(reasons)
    return reasons


def _size(latent: dict) -> int:
    """Number of items; 1 for what has none, so that there is something to block."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    return len(samples) if isinstance(samples, Tensor) and samples.ndim > 0 and len(samples) > 0 else 1


def _plain(scores: Tensor | None, size: int, categories: int) -> list[list[float | None]]:
    if scores is None:
        return [[None] * categories for _ in range(size)]
    return [[round(value, 4) if math.isfinite(value) else None for value in row] for row in scores.tolist()]


def _plain_looks(verdicts: Sequence[Verdict | None]) -> list[dict | None]:
    return [None if verdict is None else verdict.as_dict() for verdict in verdicts]
