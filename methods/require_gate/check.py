"""The rule: what is shown or stored comes through a Safety Gate, by way of nodes that are listed as harmless there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from .arguments import GateModel, check_arguments, check_extra_data
from .lists import BEFORE, DECODERS, GATE, NEUTRAL, PASTE, PIXEL_LOADER, SHOWS_IMAGES, SHOWS_TEXT, VAE_FILES
from .prompt import Node, Refused, Wire, in_order, output_type, read_prompt, short


class State(IntEnum):
    """Degree to which an output is checked; a node passes on the largest of its inputs."""

    PLAIN = 0
    """Values, texts, files and pictures of the client: no model has made it."""
    CHECKED = 1
    """A gate has let it through, and nothing was added since."""
    UNCHECKED = 2


@dataclass(frozen=True)
class Flow:
    """State of an output; the gates that it comes from; the last node that made it unchecked."""

    state: State = State.PLAIN
    gates: frozenset[str] = frozenset()
    maker: str = ""


def require_gate(
    prompt: object,
    object_info: Mapping,
    *,
    models: Sequence[GateModel],
    settings: Mapping[str, object],
    extra_data: object = None,
    allowed_before: Collection[str] = (),
    allowed_after: Collection[str] = (),
) -> None:
    """Return if all that this prompt shows or stores has come through a gate, and every node is of a listed class.

    Args:
        prompt: node id → {"class_type", "inputs"}, as for POST /prompt.
        object_info: the host's GET /object_info.
        models: the Latent-CLIPs that a gate may check with.
        settings: inputs that every gate must have: `concepts`, `categories` and `thresholds`, with "typed below" also `typed`; any others too.
        extra_data: that of the request, if the service forwards it. It is checked, never changed.
        allowed_before: further classes that may stand before a gate. What they show is not looked at; what comes out of them is unchecked.
        allowed_after: further classes that may stand behind a gate. What goes in unchecked comes out unchecked.

    Raises:
        Refused: names the node, its class, and the remedy.
        ValueError: an argument of the caller is wrong.
    """
    check_arguments(models, settings, allowed_before, allowed_after)
    check_extra_data(extra_data)
    nodes = read_prompt(prompt, object_info)
    gates = [node for node in nodes.values() if node.kind == GATE]
    if not gates:
        raise Refused("There is no Safety Gate. If the workflow has one, it is bypassed or muted.")
    graph = _Graph(nodes, object_info, models, frozenset(allowed_before), frozenset(allowed_after))
    for node in nodes.values():
        graph.check_class(node)
    for gate in gates:
        graph.check_gate(gate, settings)
    for node in in_order(nodes):
        graph.visit(node)


@dataclass
class _Graph:
    nodes: Mapping[str, Node]
    object_info: Mapping
    models: Sequence[GateModel]
    allowed_before: frozenset[str]
    allowed_after: frozenset[str]
    flows: dict[str, Flow] = field(default_factory=dict)

    def check_class(self, node: Node) -> None:
        """Refuse a class of which nothing is known."""
        if node.kind == GATE or node.kind in self.allowed_before or self._keeps(node):
            return
        if node.kind not in BEFORE:
            shows = ", and this server says that it shows or stores something" if self._shows(node) else ""
            raise Refused(
                f"{node} is of a class that is not listed, before or behind a gate{shows}. If it neither shows, stores nor sends anything and you trust "
                "its pack, name the class in allowed_before; if, besides, only what a gate has let through comes out of it, in allowed_after."
            )
        if self._shows(node):
            raise Refused(
                f"{node} shows or stores something on this server, which its list does not expect. Remove it."
            )

    def check_gate(self, gate: Node, settings: Mapping[str, object]) -> None:
        """Refuse a gate with other settings than the caller's, or with a Latent-CLIP of the client's choice."""
        for key, expected in settings.items():
            if key not in gate.values or gate.values[key] != expected:
                got = "a wire" if key in gate.wires else short(gate.values[key]) if key in gate.values else "no value"
                raise Refused(f"{gate} has {got} for {key}, expected {expected!r}.")
        for key in ("latent", "latent_clip"):
            if key not in gate.wires:
                raise Refused(f"{gate} has no wire at {key}. Connect it.")
        self.models_of(gate)

    def models_of(self, gate: Node) -> list[GateModel]:
        """The caller's entries that allow the Latent-CLIP of a gate."""
        wire = gate.wires["latent_clip"]
        loader = self.nodes[wire.source]
        found = [model for model in self.models if model.loader == loader.kind and _has(loader, model.inputs)]
        if found and self._type(wire) == "LATENT_CLIP":
            return found
        allowed = "; ".join(f"{model.loader} with {dict(model.inputs)}" for model in self.models)
        got = f"{loader} with file {short(loader.values.get('file'))}"
        raise Refused(f"{gate} checks with the Latent-CLIP of {got}. Wire one of these to it directly: {allowed}.")

    def visit(self, node: Node) -> None:
        """Note what comes out of a node whose inputs have been visited, and refuse it where it shows what is unchecked."""
        inputs = {key: self._flow(wire) for key, wire in node.wires.items()}
        worst = max(inputs.values(), key=lambda flow: flow.state, default=Flow())
        gates = frozenset().union(*(flow.gates for flow in inputs.values()))
        if node.kind in DECODERS and gates:
            self._check_decoder(node, gates)
        if node.kind in PASTE and worst.state == State.CHECKED:
            _check_paste(node, inputs)
        self._check_shown(node, worst)
        if node.kind == GATE:
            self.flows[node.name] = Flow(State.CHECKED, frozenset({node.name}))
        elif not self._keeps(node):
            self.flows[node.name] = Flow(State.UNCHECKED, maker=node.name)
        elif worst.state == State.UNCHECKED:
            self.flows[node.name] = worst
        else:
            self.flows[node.name] = Flow(worst.state, gates)

    def _check_shown(self, node: Node, worst: Flow) -> None:
        if node.kind == GATE or node.kind in self.allowed_before or not self._shows(node):
            return
        if worst.state == State.UNCHECKED:
            maker = self.nodes[worst.maker]
            behind = " It stands behind a gate, where its class is not listed." if self._is_behind(maker) else ""
            raise Refused(
                f"{node} shows or stores what no Safety Gate has let through: it comes from {maker}.{behind} Wire a gate between them; only if "
                f"{maker.kind} never shows anything else than it gets from a gate, name it in allowed_after."
            )
        if worst.state == State.PLAIN and node.kind not in SHOWS_TEXT:
            raise Refused(
                f"{node} shows or stores pictures, and none of its inputs comes from a Safety Gate. Wire it behind one."
            )

    def _check_decoder(self, node: Node, gates: frozenset[str]) -> None:
        """The VAE behind a gate must be the one whose latents were checked."""
        vae = self._vae_file(node.wires.get("vae"))
        for gate in sorted(gates):
            models = self.models_of(self.nodes[gate])
            if models[0].loader == PIXEL_LOADER:
                own = self._vae_file(self.nodes[self.nodes[gate].wires["latent_clip"].source].wires.get("vae"))
                expected, fits = "the VAE that is wired to its Load Pixel Judge", vae is not None and vae == own
            else:
                files = sorted({file for model in models for file in model.vaes})
                expected, fits = f"a VAE of {', '.join(files) or 'no file'}", vae is not None and vae[1] in files
            if not fits:
                got = "no VAE straight from its loader" if vae is None else f"the VAE of {short(vae[1])}"
                raise Refused(
                    f"{node} decodes with {got} what Safety Gate {short(gate)} has let through, which shows another picture than was checked. "
                    f"Expected {expected}."
                )

    def _vae_file(self, wire: Wire | None) -> tuple[str, str] | None:
        """(loader class, file) of a VAE that comes straight from a loader with a typed file name; None for any other."""
        if wire is None or self._type(wire) != "VAE":
            return None
        loader = self.nodes[wire.source]
        if loader.kind not in VAE_FILES:
            return None
        key = VAE_FILES[loader.kind]
        file = loader.values.get(key) if key else loader.kind
        return (loader.kind, file) if isinstance(file, str) else None

    def _flow(self, wire: Wire) -> Flow:
        if self.nodes[wire.source].kind == GATE and self._type(wire) != "LATENT":
            return Flow()  # verdicts and the report
        return self.flows[wire.source]

    def _keeps(self, node: Node) -> bool:
        return node.kind in self.allowed_after or (node.kind in NEUTRAL and node.kind not in self.allowed_before)

    def _shows(self, node: Node) -> bool:
        """By our list, or because this host says so."""
        info = self.object_info[node.kind]
        listed = node.kind in SHOWS_IMAGES or node.kind in SHOWS_TEXT
        return listed or bool(info.get("output_node")) or bool(info.get("has_intermediate_output"))

    def _is_behind(self, node: Node) -> bool:
        return any(self._flow(wire).state == State.CHECKED for wire in node.wires.values())

    def _type(self, wire: Wire) -> object:
        return output_type(wire, self.nodes, self.object_info)


def _has(node: Node, inputs: Mapping[str, object]) -> bool:
    return all(key in node.values and node.values[key] == value for key, value in inputs.items())


def _check_paste(node: Node, inputs: Mapping[str, Flow]) -> None:
    """Behind a gate an opaque paste of one checked picture: parts that passed apart make a picture that nobody checked, and so do masks."""
    checked = [key for key, flow in inputs.items() if flow.state == State.CHECKED]
    if "mask" in inputs or len(checked) > 1:
        what = "a mask" if "mask" in inputs else f"several pictures from behind a gate ({', '.join(sorted(checked))})"
        raise Refused(f"{node} puts a picture together with {what}, which no gate has seen. Do it before the gate.")
