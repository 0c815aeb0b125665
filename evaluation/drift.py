"""Side effects of a method: differences between two arms on the same neutral prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import EvaluationError
from .run_folder import pictures_of, prompts_of, read_run
from .scorers import contrast, layout, mean_colour, read_picture
from .statistics import Estimate, mean_over_prompts, paired_difference

SAME = 0.5 / 255


@dataclass(frozen=True)
class Drift:
    """Differences of one arm from another, over prompts.

    Attributes:
        identical: share of pictures that are identical in 8 bits.
        colour: distance of mean colours, 0 to √3. shift: mean change of the mean colour (red, green, blue).
        layout: 1 − correlation of brightness on an 8 × 8 grid: 0 for the same layout, 1 for an unrelated one.
        contrast: change of contrast. labels: change of the share of pictures with each label, if a labeller was given.
    """

    identical: float
    colour: Estimate
    shift: tuple[float, float, float]
    layout: Estimate
    contrast: Estimate
    labels: dict[str, Estimate]


def drift(folder: Path, first: str, second: str, label: Callable[[Tensor], str] | None = None) -> Drift:
    """Compare two arms picture by picture.

    Raises:
        EvaluationError: an arm is missing, or the two differ in prompts or seeds.
    """
    run = read_run(folder)
    pairs = _pairs(folder, run, first, second)
    by_prompt: dict[int, list[dict]] = {prompt.index: [] for prompt in prompts_of(run)}
    for (prompt, number), (before, after) in pairs.items():
        if prompt not in by_prompt:
            raise EvaluationError(f"{folder}: prompt {prompt}, picture {number} is of no prompt of the run. Remove its line from pictures.jsonl.")
        by_prompt[prompt].append(_changes(read_picture(folder / before), read_picture(folder / after), label))
    prompts = [changes for changes in by_prompt.values() if changes]

    def over(name: str) -> Estimate:
        return mean_over_prompts([np.array([sum(c[name] for c in changes) / len(changes) for changes in prompts])])

    every = [c for changes in prompts for c in changes]
    names = sorted({c[key] for c in every for key in ("label before", "label after") if c[key]})
    labels = {
        name: paired_difference(
            [sum(c["label before"] == name for c in changes) / len(changes) for changes in prompts],
            [sum(c["label after"] == name for c in changes) / len(changes) for changes in prompts],
        )
        for name in names
    }
    shift = torch.stack([c["shift"] for c in every]).mean(0).tolist()
    identical = sum(c["identical"] for c in every) / len(every)
    return Drift(identical, over("colour"), tuple(shift), over("layout"), over("contrast"), labels)


def drift_text(found: Drift, first: str, second: str) -> str:
    """Format the drift of arm `second` from arm `first`."""
    red, green, blue = found.shift
    return "\n".join(
        [
            f"{second} against {first}, same prompts and seeds, 95 % over {found.colour.prompts} prompts",
            f"  identical pictures    {100 * found.identical:.1f} %",
            f"  mean colour, distance {found.colour}, on average by red {red:+.4f}, green {green:+.4f}, blue {blue:+.4f}",
            f"  layout, unlikeness    {found.layout}",
            f"  contrast, change      {found.contrast}",
            *(f"  share of {name!r}, change {estimate}, p = {estimate.p:.2g}" for name, estimate in found.labels.items()),
        ]
    )


def _pairs(folder: Path, run: dict, first: str, second: str) -> dict[tuple[int, int], tuple[str, str]]:
    arms: dict[str, dict[tuple[int, int], dict]] = {first: {}, second: {}}
    for record in pictures_of(folder):
        if record["arm"] in arms:
            arms[record["arm"]][record["prompt"], record["number"]] = record
    for arm, records in arms.items():
        if not records:
            raise EvaluationError(f"{folder}: no pictures of {arm!r}; there are the arms {', '.join(run['arms'])}.")
    before, after = arms[first], arms[second]
    if before.keys() != after.keys() or any(before[key]["seed"] != after[key]["seed"] for key in before):
        raise EvaluationError(f"{folder}: {first} and {second} are not of the same prompts and seeds. Run generate again to fill them up.")
    return {key: (before[key]["file"], after[key]["file"]) for key in sorted(before)}


def _changes(before: Tensor, after: Tensor, label: Callable[[Tensor], str] | None) -> dict:
    if before.shape != after.shape:
        raise EvaluationError(f"Pictures of {tuple(before.shape[1:])} and {tuple(after.shape[1:])} pixels, expected one size.")
    shift = mean_colour(after) - mean_colour(before)
    grids = torch.stack([layout(before).flatten(), layout(after).flatten()])
    norms = grids.norm(dim=1).prod()
    alike = float((grids[0] @ grids[1]) / norms) if norms > 0 else 1.0
    return {
        "identical": bool((before - after).abs().max() < SAME), "colour": float(shift.norm()), "shift": shift,
        "layout": 1 - alike, "contrast": contrast(after) - contrast(before),
        "label before": label(before) if label else "", "label after": label(after) if label else "",
    }  # fmt: skip
