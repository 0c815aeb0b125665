"""ComfyUI workflows in API form with named slots: the inputs for prompt, seed, batch size and others."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import EvaluationError

TEXT, WHOLE, NUMBER = (str,), (int,), (int, float)
# slot → JSON types of its input, and usual names of such an input
KNOWN: dict[str, tuple[tuple[type, ...], tuple[str, ...]]] = {
    "prompt": (TEXT, ("text", "prompt", "value", "string")),
    "negative": (TEXT, ("text", "prompt", "value", "string")),
    "seed": (WHOLE, ("seed", "noise_seed", "value")),
    "batch": (WHOLE, ("batch_size", "amount", "value")),
    "cfg": (NUMBER, ("cfg", "guidance", "cfg_scale", "value")),
    "picture": (TEXT, ("image",)),
}
LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Workflow:
    """Workflow with slots.

    Attributes:
        graph: node id → {"class_type", "inputs", "_meta"}, as POST /prompt takes it.
        slots: name → (node id, input).
    """

    graph: dict
    slots: dict[str, tuple[str, str]]

    @property
    def hash(self) -> str:
        """Hash (16 hex digits) of the graph without the values of its slots and the titles of its nodes."""
        plain = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in self.graph.items()}
        plain = copy.deepcopy(plain)
        for node, name in self.slots.values():
            plain[node]["inputs"][name] = None
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def filled(self, values: Mapping[str, object]) -> dict:
        """Return the graph with `values` in its slots.

        Raises:
            EvaluationError: no such slot, or a value of another type.
        """
        graph = copy.deepcopy(self.graph)
        for slot, value in values.items():
            if slot not in self.slots:
                raise EvaluationError(_no_slot(slot, self.graph))
            kinds = KNOWN.get(slot, (None,))[0]
            if kinds and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise EvaluationError(f"Got {value!r} for the slot {slot!r}, expected {_words(kinds)}.")
            if slot == "seed" and not 0 <= int(str(value)) <= LARGEST_SEED:
                raise EvaluationError(f"Got the seed {value}, expected 0 to {LARGEST_SEED}.")
            node, name = self.slots[slot]
            graph[node]["inputs"][name] = value
        return graph

    def with_values(self, values: Mapping[str, object]) -> Workflow:
        """Return the workflow with other values, for another arm."""
        return Workflow(self.filled(values), self.slots)


def read_workflow(path: Path, explicit: Iterable[str] = (), optional: Iterable[str] = ()) -> Workflow:
    """Read a file of Workflow → Export (API).

    Args:
        explicit, optional: see `find_slots`; prompt and seed are always required.

    Raises:
        EvaluationError: the file is missing or no such export, or a slot cannot be found.
    """
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}). Name a workflow in API form.") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: no JSON ({error}). Export the workflow again: Workflow → Export (API).") from error
    try:
        return workflow_of(graph, explicit, optional)
    except EvaluationError as error:
        raise EvaluationError(f"{path.name}: {error}") from error


def workflow_of(graph: object, explicit: Iterable[str] = (), optional: Iterable[str] = ()) -> Workflow:
    """Make a workflow from parsed JSON; see `read_workflow`."""
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise EvaluationError("a workflow in the front end's own form, expected API form. Use Workflow → Export (API).")
    if isinstance(graph, dict) and set(graph) == {"prompt"}:
        graph = graph["prompt"]  # the body of a POST
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        raise EvaluationError("expected API form: node ids with class_type and inputs. Use Workflow → Export (API).")
    return Workflow(graph, find_slots(graph, explicit, ("prompt", "seed"), optional))


def find_slots(graph: dict, explicit: Iterable[str], needed: Iterable[str], optional: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Find the input of each slot: from `explicit` ("seed=3.noise_seed"), else in the node whose title is the slot's name.

    Raises:
        EvaluationError: a slot of `needed` is missing, or a slot fits several inputs.
    """
    slots: dict[str, tuple[str, str]] = {}
    for words in explicit:
        slot, found, place = words.partition("=")
        node, dot, name = place.rpartition(".")
        if not (slot and found and dot):
            raise EvaluationError(f"Got --slot {words}, expected NAME=NODE.INPUT, such as seed=3.seed.")
        if node not in graph or name not in graph[node]["inputs"]:
            has = ", ".join(graph[node]["inputs"]) if node in graph else f"nodes {', '.join(graph)}"
            raise EvaluationError(f"--slot {words}: no such input; there are {has}.")
        slots[slot] = (node, name)
    for slot in dict.fromkeys([*needed, *optional, *KNOWN]):
        if slot in slots:
            continue
        titled = [key for key, node in graph.items() if _title(node).casefold() == slot.casefold()]
        if len(titled) > 1:
            raise EvaluationError(
                f"{len(titled)} nodes are called {slot!r}: {', '.join(titled)}. Rename one, or give --slot {slot}=NODE.INPUT."
            )
        if titled:
            slots[slot] = (titled[0], _input_for(slot, titled[0], graph[titled[0]]["inputs"]))
        elif slot in needed:
            raise EvaluationError(_no_slot(slot, graph))
    return slots


def _input_for(slot: str, key: str, inputs: dict) -> str:
    """Return the input of a node that fits a slot: by type and usual name, else the only input of its type."""
    kinds, usual = KNOWN.get(slot, ((str, int, float), ()))
    fitting = [name for name, value in inputs.items() if isinstance(value, kinds) and not isinstance(value, bool)]
    named = [name for name in fitting if name in usual]
    chosen = named if len(named) == 1 else fitting
    if len(chosen) != 1:
        raise EvaluationError(
            f"node {key}, called {slot!r}, has {len(fitting)} inputs of {_words(kinds)} ({', '.join(fitting) or 'none'}), "
            f"expected one. Give --slot {slot}={key}.INPUT."
        )
    return chosen[0]


def _no_slot(slot: str, graph: dict) -> str:
    titles = ", ".join(f"{key} {_title(node) or node['class_type']!r}" for key, node in list(graph.items())[:20])
    return (
        f"no slot {slot!r}: no node is called that. Found: {titles}. "
        f"In ComfyUI, give the node that holds it the title {slot}, or give --slot {slot}=NODE.INPUT."
    )


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _title(node: dict) -> str:
    return str((node.get("_meta") or {}).get("title", ""))


def _words(kinds: tuple[type, ...]) -> str:
    return "a text" if kinds == TEXT else "a whole number" if kinds == WHOLE else "a number" if str not in kinds else "a value"
