"""Graphs of a few lines that become workflow files in the front end's format.

Slots, widget order and types come from the /object_info of a running ComfyUI with the pack, so the files follow the
schemas; the tests load each one in the real front end and compare what it queues.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, GAP, TITLE, INSET = 340, 50, 30, 10
FOLDED = 60  # height that is kept for an unfolded node, which then takes what it needs
MISSING = 3  # more for what loads a file, below which Nodes 2.0 says that it is not there
ACROSS, BELOW = 30, 20  # space between columns and between nodes where the columns have widths of their own


@dataclass
class Node:
    """One placed node; `node[i]` is its output i, for wiring."""

    id: int
    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    inputs: dict
    title: str | None = None
    folded: bool = False

    def __getitem__(self, slot: int) -> tuple[Node, int]:
        return self, slot


@dataclass
class Graph:
    """A workflow under construction. Nodes are put into columns, left to right, each below the last one.

    `widths` gives each column its own width and sets all closer; a window of 1440 × 900 shows 1520 × 940 at 70 %.
    """

    info: dict
    widths: tuple[int, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    heights: dict[int, int] = field(default_factory=dict)
    groups: list[dict] = field(default_factory=list)

    def add(
        self, column: int, type: str, height: int = 120, title: str | None = None, /, folded: bool = False, **inputs
    ) -> Node:
        """Place a node, or only its title where it is folded.

        Inputs are values, or `node[i]` for a wire, which may also feed a widget.
        """
        top = self.heights.get(column, 0)
        self.heights[column] = top + (0 if folded else height) + TITLE + (BELOW if self.widths else GAP)
        left, width = self._column(column)
        node = Node(len(self.nodes) + 1, type, (left, top), (width, height), inputs, title, folded)
        self.nodes.append(node)
        return node

    def fold(self, column: int, type: str, title: str | None = None, /, **inputs) -> Node:
        """Place a node that nobody has to set: only its title is shown until it is opened."""
        node = self.add(column, type, FOLDED, title, folded=True, **inputs)
        if type.endswith("Loader"):
            self.heights[column] += MISSING
        return node

    def _column(self, column: int) -> tuple[int, int]:
        """(left, width) of a column."""
        if self.widths:
            return sum(self.widths[:column]) + column * ACROSS, self.widths[column]
        return column * (COLUMN + GAP), COLUMN

    def note(self, column: int, text: str, height: int = 260) -> None:
        """A note that says what this is and what it needs, clear of the frame below it."""
        self.add(column, "MarkdownNote", height, "Read me", text=text.strip())
        self.heights[column] += TITLE

    def group(self, title: str, *nodes: Node) -> None:
        """A titled frame around nodes."""
        left, top = (min(node.at[i] for node in nodes) - INSET for i in (0, 1))
        right = max(node.at[0] + node.size[0] for node in nodes) + INSET
        bottom = max(node.at[1] + (0 if node.folded else node.size[1]) for node in nodes) + INSET
        top -= 2 * TITLE
        self.groups.append({"title": title, "bounding": [left, top, right - left, bottom - top], "color": "#3f789e"})

    def group_columns(self, *titles: str) -> None:
        """A frame around the nodes of each column, notes apart."""
        for column, title in enumerate(titles):
            here = [
                node for node in self.nodes if node.at[0] == self._column(column)[0] and node.type != "MarkdownNote"
            ]
            self.group(title, *here)

    def new_row(self, *columns: int) -> None:
        """Go on below all nodes of these columns, at one height, with room for the frame of a group."""
        below = max(self.heights.get(column, 0) for column in columns)
        self.heights |= dict.fromkeys(columns, below + (2 * INSET + TITLE if below else 0))

    def save(self, name: str, folder: Path = FOLDER) -> None:
        """Write <folder>/<name>.json."""
        links: list[list] = []
        saved = [self._node(node, links) for node in self.nodes]
        for source, slot, link in ((link[1], link[2], link[0]) for link in links):
            saved[source - 1]["outputs"][slot]["links"].append(link)
        workflow = {
            "last_node_id": len(saved), "last_link_id": len(links), "nodes": saved, "links": links, "groups": self.groups, "config": {},
            "extra": {}, "version": 0.4,
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")

    def _node(self, node: Node, links: list[list]) -> dict:
        saved = {
            "id": node.id, "type": node.type, "pos": list(node.at), "size": list(node.size), "flags": {"collapsed": True} if node.folded else {},
            "order": node.id - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [],
        }  # fmt: skip
        if node.title:
            saved["title"] = node.title
        if node.type == "MarkdownNote":
            return saved | {"widgets_values": [node.inputs["text"]], "color": "#432", "bgcolor": "#653"}
        info, given = self.info[node.type], dict(node.inputs)
        for kind in ("required", "optional"):
            for name, spec in info["input"].get(kind, {}).items():
                if spec[0] == "COMFY_AUTOGROW_V3":  # a slot per wire, named group.slot, and a free one
                    template = spec[1]["template"]
                    slot = next(iter(template["input"]["required"].values()))
                    wired = [key for key in given if key.startswith(f"{name}.")]
                    for key in [*wired, f"{name}.{template['prefix']}{len(wired)}"]:
                        self._input(saved, key, slot, given.pop(key, None), links)
                else:
                    self._input(saved, name, spec, given.pop(name, None), links)
        if given:
            raise ValueError(f"{node.type} has no input {', '.join(given)}")
        for slot, type in enumerate(info["output"]):
            saved["outputs"].append({"name": info["output_name"][slot], "type": type, "slot_index": slot, "links": []})
        return saved

    def _input(self, saved: dict, name: str, spec: list, value, links: list[list]) -> None:
        type, options = ("COMBO" if isinstance(spec[0], list) else spec[0]), (spec[1] if len(spec) > 1 else {})
        wired = isinstance(value, tuple)
        widget = type in WIDGETS and not options.get("forceInput")
        if wired or not widget:
            saved["inputs"].append({"name": name, "type": type, "link": len(links) + 1 if wired else None})
            if wired:
                source, slot = value
                carried = self.info[source.type]["output"][slot]  # the input's own type may be a template
                links.append([len(links) + 1, source.id, slot, saved["id"], len(saved["inputs"]) - 1, carried])
        if widget:
            if wired:
                saved["inputs"][-1]["widget"] = {"name": name}
            choices = spec[0] if isinstance(spec[0], list) else options.get("options") or [""]
            default = options.get("default", choices[0] if type == "COMBO" and choices else "")
            saved["widgets_values"].append(default if wired or value is None else value)
            if options.get("control_after_generate"):
                saved["widgets_values"].append("fixed")
