"""Texts typed into the nodes upstream of an input, in the graph that the host executes."""

from collections.abc import Callable, Iterator

import nodes
from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import is_link


def texts_behind(graph: DynamicPrompt, node_id: str, input_name: str) -> dict[str, str]:
    """Collect every text typed into a node upstream of one input: "node id.input" → text, in the order of the way up.

    Conditioning is followed to its encoder, an encoder's text to the primitives and concatenations that it is wired from, and a node
    that has expanded into others to those. What a node makes of its texts when it runs (a random choice, a language
    model's answer) is in no graph; its own texts are.
    """
    start = _inputs(graph, node_id).get(input_name)
    texts: dict[str, str] = {}
    for current in _upstream(graph, [start[0]] if start and is_link(start) else []):
        is_text = _text_inputs(graph.get_node(current).get("class_type"))
        for name, value in _inputs(graph, current).items():
            if isinstance(value, str) and value.strip() and is_text(name):
                texts[f"{current}.{name}"] = value
    return texts


def _upstream(graph: DynamicPrompt, waiting: list[str]) -> Iterator[str]:
    """These nodes, what they are wired from, and what they have expanded into; each once."""
    seen = set()
    while waiting:
        current = waiting.pop(0)
        if current in seen or not graph.has_node(current):
            continue
        seen.add(current)
        yield current
        waiting += [value[0] for value in _inputs(graph, current).values() if is_link(value)]
        waiting += sorted(node for node in graph.all_node_ids() if graph.get_parent_node_id(node) == current)


def _inputs(graph: DynamicPrompt, node_id: str) -> dict:
    inputs = graph.get_node(node_id).get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _text_inputs(class_type: str | None) -> Callable[[str], bool]:
    """Return a test of whether an input of a node type is typed as text; true where the type does not say, so that nothing is left out."""
    kind = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    try:
        groups = kind.INPUT_TYPES() if kind else {}
    except Exception:  # another pack's code, and no reason to leave its texts out
        groups = {}
    kinds = {name: options[0] for group in ("required", "optional") for name, options in groups.get(group, {}).items()}
    return lambda name: kinds.get(name, "STRING") in ("STRING", "*")
