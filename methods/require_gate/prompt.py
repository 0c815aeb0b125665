"""Parse a prompt in API format as strictly as the guard needs it: every malformed part is `Refused`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MOST_NODES = 2000
DEEPEST = 50
LARGEST = 10**50  # Python refuses to write numbers of some thousand digits
NODE_KEYS = frozenset({"class_type", "inputs", "_meta"})
"""Allowed keys of a node. The host also reads `is_changed`, with which a client could ask for an old result from the cache."""


class Refused(ValueError):
    """A prompt that must not be queued; the message names the node and its class, and says why."""


@dataclass(frozen=True)
class Wire:
    """One output of another node."""

    source: str
    slot: int


@dataclass(frozen=True)
class Node:
    """A well-formed node, its inputs split into typed values and wires."""

    name: str
    kind: str
    values: Mapping[str, object]
    wires: Mapping[str, Wire]

    def __str__(self) -> str:
        return f"Node {short(self.name)} ({self.kind})"


def short(value: object) -> str:
    """A client's text or value for a message, at most 60 characters of it."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a huge number"
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def read_prompt(prompt: object, object_info: Mapping) -> dict[str, Node]:
    """Nodes by id, every wire checked to lead to an output that exists.

    Raises:
        Refused: the prompt is no graph that the host could run.
    """
    if not isinstance(prompt, Mapping):
        raise Refused(f"The prompt is {short(prompt)}, expected an object of nodes by id.")
    if len(prompt) > MOST_NODES:
        raise Refused(f"The prompt has {len(prompt)} nodes, expected at most {MOST_NODES}.")
    nodes = {}
    for name, node in prompt.items():
        if not isinstance(name, str):
            raise Refused(f"The node id {short(name)} is no text.")
        nodes[name] = _node(name, node, object_info)
    for node in nodes.values():
        for key, wire in node.wires.items():
            _check_wire(node, key, wire, nodes, object_info)
    return nodes


def in_order(nodes: Mapping[str, Node]) -> list[Node]:
    """The nodes, each after those that it is wired to.

    Raises:
        Refused: some are wired in a circle.
    """
    missing = {name: len(node.wires) for name, node in nodes.items()}
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for node in nodes.values():
        for wire in node.wires.values():
            readers[wire.source].append(node.name)
    ready = [name for name, count in missing.items() if not count]
    for name in ready:  # grows while it is read
        for reader in readers[name]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(ready) < len(nodes):
        node = next(node for name, node in nodes.items() if missing[name])
        raise Refused(f"{node} is part of a circle of wires, or behind one. Remove the wire that closes it.")
    return [nodes[name] for name in ready]


def _node(name: str, node: object, object_info: Mapping) -> Node:
    where = f"Node {short(name)}"
    if not isinstance(node, Mapping):
        raise Refused(f"{where} is {short(node)}, expected an object with class_type and inputs.")
    kind = node.get("class_type")
    if not isinstance(kind, str):
        raise Refused(f"{where} has the class_type {short(kind)}, expected a text.")
    if kind not in object_info:
        raise Refused(f"{where} is of the unknown class {short(kind)}. Install it on the server, or remove the node.")
    where += f" ({kind})"
    if other := [key for key in node if key not in NODE_KEYS]:
        raise Refused(f"{where} has the key {short(other[0])}, expected only {', '.join(sorted(NODE_KEYS))}.")
    inputs = node.get("inputs")
    if not isinstance(inputs, Mapping):
        raise Refused(f"{where} has {short(inputs)} for its inputs, expected an object.")
    values, wires = {}, {}
    for key, value in inputs.items():
        if not isinstance(key, str):
            raise Refused(f"{where} has the input {short(key)}, expected a text.")
        if isinstance(value, list | tuple):
            wires[key] = _wire(f"{where}, input {short(key)},", value)
        else:
            _check_value(f"{where}, input {short(key)},", value)
            values[key] = value
    return Node(name, kind, values, wires)


def _wire(where: str, value: list | tuple) -> Wire:
    if len(value) != 2 or not isinstance(value[0], str):
        raise Refused(f"{where} has a list that is no wire, expected [node id, index of the output].")
    if type(value[1]) is not int or value[1] < 0:
        raise Refused(f"{where} has a wire with the index {short(value[1])}, expected a whole number from 0.")
    return Wire(value[0], value[1])


def _check_value(where: str, value: object) -> None:
    """Refuse what JSON cannot hold, and wires inside a value: the host unwraps {"__value__": [...]} into a wire that it has not checked."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > DEEPEST:
            raise Refused(f"{where} is more than {DEEPEST} objects deep. Send a flatter value.")
        if isinstance(part, Mapping):
            waiting += [(inner, depth + 1) for inner in part.values()]
        elif isinstance(part, list | tuple):
            if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int | float):
                raise Refused(f"{where} hides a wire to {short(part[0])} inside a value. Wire the input itself.")
            waiting += [(inner, depth + 1) for inner in part]
        elif isinstance(part, float) and not math.isfinite(part):
            raise Refused(f"{where} holds {part}, expected a finite number.")
        elif not isinstance(part, str | int | float | None):
            raise Refused(f"{where} holds {short(part)}, which is no JSON.")


def _check_wire(node: Node, key: str, wire: Wire, nodes: Mapping[str, Node], object_info: Mapping) -> None:
    if wire.source not in nodes:
        raise Refused(f"{node}, input {short(key)}, is wired to {short(wire.source)}, which is not there.")
    source = nodes[wire.source]
    outputs = len(object_info[source.kind].get("output") or ())
    if wire.slot >= outputs:
        raise Refused(
            f"{node}, input {short(key)}, is wired to output {short(wire.slot)} of {source}, which has {outputs}."
        )


def output_type(wire: Wire, nodes: Mapping[str, Node], object_info: Mapping) -> object:
    """The type of the output that a wire comes from."""
    return object_info[nodes[wire.source].kind]["output"][wire.slot]
