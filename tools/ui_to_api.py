"""Convert a saved workflow (of the front end) to a prompt (for POST /prompt), as the front end does it.

Lets the demo and the tests run shipped workflows without a browser; a browser test checks that the front end's own
app.graphToPrompt() agrees. Subgraphs are refused: no shipped workflow uses them.
"""

from collections.abc import Iterator

MUTED, BYPASSED = 2, 4
VIRTUAL = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}  # exist in the front end only
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}


def ui_to_api(workflow: dict, object_info: dict) -> dict:
    """Return the API prompt of a UI-format workflow.

    Args:
        workflow: the parsed file: nodes with widgets_values by position, links by id.
        object_info: the host's GET /object_info, which says what each position means.
    Raises:
        ValueError: a node type that the host does not have, or a subgraph.
    """
    graph = Graph(workflow)
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in VIRTUAL or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']} is a {node['type']}, which this ComfyUI does not have")
        inputs = widget_inputs(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            source = graph.source(socket.get("link"), socket["type"])
            if isinstance(source, Constant):
                inputs[socket["name"]] = source.value
            elif source:
                inputs[socket["name"]] = source
        title = node.get("title") or object_info[node["type"]]["display_name"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


class Constant:
    """Value of a PrimitiveNode at the other end of a link."""

    def __init__(self, value):
        self.value = value


class Graph:
    """Finds where a link really comes from, through reroutes, bypassed nodes and primitives."""

    def __init__(self, workflow: dict):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow["links"]:
            if isinstance(link, dict):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"])
            else:  # [id, origin id, origin slot, target id, target slot, type]
                self.links[link[0]] = (link[1], link[2])
        if (workflow.get("definitions") or {}).get("subgraphs"):
            raise ValueError("the workflow has subgraphs, which this converter does not know: unpack them in the page")

    def source(self, link_id: int | None, wanted: str) -> list | Constant | None:
        """[node id, slot] at the far end of a link, a Constant, or None when nothing usable is there."""
        if link_id is None or link_id not in self.links:
            return None
        node_id, slot = self.links[link_id]
        node = self.nodes[node_id]
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return Constant(node["widgets_values"][0])
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"), wanted)
        if mode == BYPASSED:
            passing = bypass_input(node, slot, wanted)
            return self.source(passing.get("link"), wanted) if passing else None
        return [str(node_id), slot]


def bypass_input(node: dict, slot: int, wanted: str) -> dict | None:
    """Input that a bypassed node passes on to an output: in the same place if its type fits, else any that fits."""
    inputs, given = node.get("inputs", []), node["outputs"][slot]["type"]

    def fits(socket: dict) -> bool:
        return all(socket["type"] in (kind, "*") or kind == "*" for kind in (given, wanted))

    if wanted == "*":
        return (inputs[slot] if slot < len(inputs) else inputs[0]) if inputs else None
    if slot < len(inputs) and fits(inputs[slot]):
        return inputs[slot]
    exact = [socket for socket in inputs if socket["type"] == wanted]
    return next(iter(exact or filter(fits, inputs)), None)


def widget_inputs(node: dict, definition: dict) -> dict:
    """Return {input name: value} of a node's widgets, read in the order in which the front end writes them."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    queue = list(values)
    return {
        name: {"__value__": value} if isinstance(value, list) else value
        for name, value in read_widgets(definition["input"], queue)
    }


def read_widgets(groups: dict, queue: list, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Take one value off the queue for each widget of the definition; skip the front end's own."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            options = rest[0] if rest else {}
            if kind == "COMFY_DYNAMICCOMBO_V3" and queue:
                chosen = queue.pop(0)
                yield prefix + name, chosen
                option = next(option for option in options["options"] if option["key"] == chosen)
                yield from read_widgets(option["inputs"], queue, f"{prefix}{name}.")
            if not is_widget(kind, options) or not queue:
                continue
            yield prefix + name, queue.pop(0)
            if has_control(kind, name, options) and queue:
                queue.pop(0)  # "fixed", "randomize", ...


def is_widget(kind, options: dict) -> bool:
    """Return True if an input is a value in the node's body rather than only a socket."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def has_control(kind, name: str, options: dict) -> bool:
    """Return True if the front end adds a "control after generate" widget behind this one."""
    legacy = kind == "INT" and name in ("seed", "noise_seed")
    return bool(options.get("control_after_generate", legacy))
