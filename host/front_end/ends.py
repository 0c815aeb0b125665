"""Let prompts run that end in a node which only runs when its output is needed.

Select, Classify and the Safety Gate are no output nodes: the host would run those wherever they stand, and with them what
a lazy switch has left out. A prompt that ends in one all the same, for its bars or its report, gets the
host's own Preview as Text behind it before the host checks it, so it runs as in version 0.1.
"""

import logging
import sys

LOGGER = logging.getLogger(__name__)
PREVIEW = "PreviewAny"  # the host's Preview as Text
OUTPUTS = {"LatentCLIPSelect": 2, "LatentCLIPClassify": 2, "LatentCLIPSafetyGate": 3}
"""Node → the output to show as text: indices, report, report."""


def with_ends(body: dict) -> dict:
    """Return the body of a POST /prompt with its prompt completed, or unchanged if only chosen nodes are to run."""
    prompt = body.get("prompt")
    classes = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    if not isinstance(prompt, dict) or body.get("partial_execution_targets") is not None or PREVIEW not in classes:
        return body
    previews = {}
    for node_id in loose_ends(prompt, {name for name, node in classes.items() if getattr(node, "OUTPUT_NODE", False)}):
        kind = prompt[node_id]["class_type"]
        previews[f"{node_id}-report"] = {"class_type": PREVIEW, "inputs": {"source": [node_id, OUTPUTS[kind]]}}
        LOGGER.info("Nothing reads %s #%s, so a Preview as Text was put behind it to make it run.", kind, node_id)
    return {**body, "prompt": {**prompt, **previews}} if previews else body


def loose_ends(prompt: dict, output_nodes: set[str]) -> list[str]:
    """Ids of nodes of OUTPUTS that no output node needs, without those needed by another one of them."""
    outputs = [node_id for node_id in prompt if _class(prompt, node_id) in output_nodes]
    needed = _with_what_they_need(prompt, outputs)
    ends = [node_id for node_id in prompt if _class(prompt, node_id) in OUTPUTS and node_id not in needed]
    return [
        end for end in ends if not any(end in _with_what_they_need(prompt, [other]) for other in ends if other != end)
    ]


def _with_what_they_need(prompt: dict, node_ids: list[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(node_ids)
    while waiting:
        node_id = waiting.pop()
        if node_id in found or node_id not in prompt:
            continue
        found.add(node_id)
        inputs = prompt[node_id].get("inputs") if isinstance(prompt[node_id], dict) else None
        links = [value for value in inputs.values() if _is_link(value)] if isinstance(inputs, dict) else []
        waiting += [source for source, _ in links]
    return found


def _is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _class(prompt: dict, node_id: str) -> str | None:
    node = prompt[node_id]
    return node.get("class_type") if isinstance(node, dict) else None
