"""Report of Safety Gate, for its output, the log and the front end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .verdicts import Verdict


@dataclass(frozen=True)
class GateReport:
    """Report of the gate on one batch.

    Attributes:
        names, thresholds: of the categories; empty where they could not even be read.
        scores: log-odds per item and category, None where there are none; of a clip, those of its worst frame.
        reasons: reason to block each item; "" for those that pass.
        thumbnails: of what leaves the gate, never of what was blocked.
        verdicts: those of the Safety Guidance before it, per item; empty where none is connected.
        frames: log-odds per item, frame and category, of clips. cut: what was cut off a clip, and why; "" where nothing was.
        left_out: what the latent carried beside its samples, and what does not leave the gate.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    scores: list[list[float | None]]
    reasons: list[str]
    thumbnails: list[str]
    verdicts: tuple[Verdict | None, ...] = ()
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
            **({"looks": plain_verdicts(self.verdicts)} if self.verdicts else {}),
            **({"left_out": list(self.left_out)} if self.left_out else {}),
        }

    def as_ui(self) -> dict:
        return {**self.as_dict(), "kind": "safety", "names": list(self.names), "thumbnails": self.thumbnails}


def plain_scores(scores: Tensor | None, size: int, categories: int) -> list[list[float | None]]:
    """Round log-odds (B, categories) for JSON; None for those that are not finite, and for all where there are none."""
    if scores is None:
        return [[None] * categories for _ in range(size)]
    return [[round(value, 4) if math.isfinite(value) else None for value in row] for row in scores.tolist()]


def plain_verdicts(verdicts: Sequence[Verdict | None]) -> list[dict | None]:
    """Write verdicts for JSON; None for images that Safety Guidance does not know."""
    return [None if verdict is None else verdict.as_dict() for verdict in verdicts]
