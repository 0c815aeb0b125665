#!/usr/bin/env python3
"""For services: refuse a prompt of which anything could be seen or saved that no Safety Gate has let through.

    python require_gate.py workflow_api.json [--server 127.0.0.1:8188]

In the page everyone can remove, bypass or mute a gate: ComfyUI then queues the prompt without it. So a service looks at the prompt
before it passes it on, and never lets its users reach ComfyUI's own port. `require_gate` is the check: a plain function on a
prompt in API format and the host's GET /object_info. Nothing but Python is needed.
"""

import argparse
import json
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

GATE = "LatentCLIPSafetyGate"
# They show small pictures of what they get, in the history and on the websocket.
SMALL_PICTURES = ("LatentCLIPScore", "LatentCLIPSelect", "LatentCLIPClassify", "LatentCLIPOptimizeNoise")


class Refused(ValueError):
    """A prompt that must not be queued; the message says why."""


def require_gate(
    prompt: Mapping, object_info: Mapping, settings: Mapping | None = None, allow_small_pictures: bool = False
) -> None:
    """Return if everything that this prompt shows or saves, and that a model has had a part in, has come through a gate.

    What counts as made by a model: every node with a MODEL wire, and whatever comes after it, up to a gate. It knows nothing
    of nodes that make images without such a wire (those that call other services, some packs): keep a list of the node
    types that you allow, too.

    Args:
        prompt: node id → {"class_type", "inputs"}, as for POST /prompt.
        object_info: the host's GET /object_info.
        settings: inputs that every gate must have, such as {"concepts": "i2p", "categories": "", "thresholds": ""}. A gate that the
            client may set is no gate.
        allow_small_pictures: let nodes such as Score Latents come before the gate, whose reports hold thumbnails.

    Raises:
        Refused: names the node.
    """
    for name, node in prompt.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("inputs", {}), Mapping):
            raise Refused(f"Node {name} is no node, expected class_type and inputs.")
        if node.get("class_type") not in object_info:
            raise Refused(f"Node {name} is of the unknown type {node.get('class_type')!r}.")
        if unknown := [source for _, source, _ in links(node) if source not in prompt]:
            raise Refused(f"Node {name} is wired to {unknown[0]}, which is not there.")
    gates = [name for name, node in prompt.items() if node["class_type"] == GATE]
    if not gates:
        raise Refused("There is no Safety Gate. If the workflow has one, it is bypassed or muted.")
    for name in gates:
        for key, value in (settings or {}).items():
            if prompt[name].get("inputs", {}).get(key) != value:
                raise Refused(
                    f"Safety Gate {name} has {key} = {prompt[name]['inputs'].get(key)!r}, expected {value!r}."
                )
    for name in sorted(made_by_a_model(prompt, object_info)):
        kind = prompt[name]["class_type"]
        small = kind in SMALL_PICTURES
        if kind == GATE or (small and allow_small_pictures):
            continue
        if small or object_info[kind].get("output_node"):
            raise Refused(f"{kind} {name} shows what no Safety Gate has let through. Wire it behind the gate.")


def made_by_a_model(prompt: Mapping, object_info: Mapping) -> set[str]:
    """The nodes that see what a model has made and no gate has let through."""
    made: set[str] = set()
    before = -1
    while before != len(made):
        before = len(made)
        made |= {
            name
            for name, node in prompt.items()
            for key, source, slot in links(node)
            if prompt[source]["class_type"] != GATE
            and (source in made or "MODEL" in (input_type(node, key, object_info), output_type(prompt[source], slot, object_info)))
        }  # fmt: skip
    return made


def links(node: Mapping) -> Iterator[tuple[str, str, int]]:
    """(input, source node, its output) of every wire, as the host tells wires from values."""
    for key, value in node.get("inputs", {}).items():
        if (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str)
            and isinstance(value[1], int | float)
        ):
            yield key, value[0], int(value[1])


def input_type(node: Mapping, key: str, object_info: Mapping) -> object:
    """The type that an input takes, or None where the node grows its inputs."""
    groups = object_info[node["class_type"]].get("input", {})
    found = next((groups[group][key] for group in ("required", "optional") if key in groups.get(group, {})), [None])
    return found[0]


def output_type(node: Mapping, slot: int, object_info: Mapping) -> object:
    """The type of one output, or None where there is no such."""
    types = object_info[node["class_type"]].get("output", [])
    return types[slot] if 0 <= slot < len(types) else None


def main() -> None:
    """Check one file against a running ComfyUI."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workflow", type=Path, help="API format, see Workflow → Export (API)")
    parser.add_argument("--server", default="127.0.0.1:8188")
    options = parser.parse_args()
    with urllib.request.urlopen(f"http://{options.server}/object_info", timeout=60) as response:
        object_info = json.load(response)
    try:
        require_gate(json.loads(options.workflow.read_text(encoding="utf-8")), object_info)
    except Refused as error:
        raise SystemExit(f"refused: {error}") from error
    print("everything that it shows comes through a Safety Gate")


if __name__ == "__main__":
    main()
