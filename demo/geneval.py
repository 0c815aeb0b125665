"""GenEval for Shapes World: prompts in its metadata's form, and its rule applied to what the analytic judge sees.

Five of its six tasks: this world's models know no numbers, so there is no counting. A kind (circle, star, …) takes the place of
GenEval's class. As there, only what is asked for is looked for: other things in the picture are allowed, which `judge.agrees` is
stricter about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle

from torch import Tensor

from .captions import COLOURS, KINDS, RELATIONS, Caption, Thing
from .judge import MIN_APART, SceneReading, SeenThing, read
from .scenes import sample_things

TASKS = ("single_object", "two_object", "colors", "position", "color_attr")


def metadata(count: int, seed: str = "geneval") -> list[dict]:
    """`count` prompts for each of the tasks; another seed gives other prompts."""
    chance = random.Random(seed)
    return [line(task, caption) for task in TASKS for caption in _captions(task, count, chance)]


def _captions(task: str, count: int, chance: random.Random) -> list[Caption]:
    if task in ("single_object", "colors"):
        things = [Thing(colour, kind) for colour in COLOURS for kind in KINDS]
        return [Caption((thing,)) for _, thing in zip(range(count), cycle(chance.sample(things, len(things))))]
    relations = cycle(chance.sample(RELATIONS, len(RELATIONS)))
    return [Caption(sample_things(chance, None), next(relations) if task == "position" else None) for _ in range(count)]


def line(task: str, caption: Caption) -> dict:
    """A line of evaluation_metadata.jsonl that asks for what the task is about."""
    coloured = task in ("colors", "color_attr")
    wanted = [{"class": t.kind, "count": 1, **({"color": t.colour} if coloured else {})} for t in caption.things]
    if task == "position":
        wanted.reverse()  # as there: the second names its position to the first
        wanted[1]["position"] = [caption.relation, 0]
    return {"tag": task, "include": wanted, "prompt": str(caption)}


def verdict(wanted: dict, reading: SceneReading) -> tuple[bool, str]:
    """Compare a picture with a line of metadata: (right, reason why not)."""
    groups: list[list[SeenThing]] = []
    for part in wanted["include"]:
        found = [seen for seen in reading.objects if seen.thing.kind == part["class"]]
        if "color" in part:
            found = [seen for seen in found if seen.thing.colour == part["color"]]
        name = " ".join(filter(None, [part.get("color"), part["class"]]))
        if len(found) < part["count"]:
            return False, f"expected {name}>={part['count']}, found {len(found)}"
        if "position" in part:
            relation, other = part["position"]
            if not any(_stands(seen, relation, reference) for seen in found for reference in groups[other]):
                return False, f"expected {name} {relation} target, found none"
        groups.append(found)
    return True, ""


def _stands(seen: SeenThing, relation: str, reference: SeenThing) -> bool:
    right, down = seen.x - reference.x, seen.y - reference.y
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    across = abs(down if relation in ("left of", "right of") else right)
    return along >= MIN_APART and along > across


def results(pictures: Tensor, names: Sequence[str], wanted: Sequence[dict]) -> list[dict]:
    """Lines of results.jsonl for pictures (B, 3, 64, 64) in [0, 1], in the form of GenEval's evaluate_images.py."""
    lines = []
    for picture, name, line in zip(pictures, names, wanted):
        reading = read(picture)
        correct, reason = verdict(line, reading)
        details = {str(seen.thing): [round(seen.x, 1), round(seen.y, 1)] for seen in reading.objects}
        lines.append(
            {
                "filename": name, "tag": line["tag"], "prompt": line["prompt"], "correct": correct, "reason": reason,
                "metadata": line, "details": details,
            }
        )  # fmt: skip
    return lines
