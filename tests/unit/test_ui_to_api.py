"""The workflow converter on hand-made graphs; a browser test compares it with the page itself."""

import pytest

from latent_clip.tools.ui_to_api import ui_to_api

INFO = {
    "Load": {"display_name": "Load", "input": {"required": {"file": [["a", "b"], {}]}}},
    "Sample": {
        "display_name": "Sample",
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "sigma": ["FLOAT", {"forceInput": True}],
                "mode": ["COMBO", {"options": ["x", "y"]}],
            },
            "optional": {"text": ["STRING", {}]},
        },
    },
    "Patch": {"display_name": "Patch", "input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {}]}}},
    "Dynamic": {
        "display_name": "Dynamic",
        "input": {
            "required": {
                "kind": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "none", "inputs": {}},
                            {"key": "top", "inputs": {"required": {"k": ["INT", {}]}}},
                        ]
                    },
                ],
                "last": ["INT", {}],
            }
        },
    },
}


def node(node_id, kind, values=(), inputs=(), outputs=(), **extra):
    sockets = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    return {
        "id": node_id, "type": kind, "widgets_values": list(values), "inputs": sockets,
        "outputs": [{"type": type_} for type_ in outputs], **extra,
    }  # fmt: skip


LOAD = node(1, "Load", ["b"], outputs=["MODEL"])
SAMPLE_VALUES = [42, "randomize", 20, "y", "hello"]


def sample(link):
    return node(2, "Sample", SAMPLE_VALUES, [("model", "MODEL", link)])


def test_widget_values_are_read_by_position_and_the_control_value_is_skipped():
    prompt = ui_to_api({"nodes": [LOAD, sample(5)], "links": [[5, 1, 0, 2, 0, "MODEL"]]}, INFO)
    assert prompt["2"]["inputs"] == {"seed": 42, "steps": 20, "mode": "y", "text": "hello", "model": ["1", 0]}
    assert prompt["1"] == {"inputs": {"file": "b"}, "class_type": "Load", "_meta": {"title": "Load"}}


def test_linked_widget_takes_the_link_and_keeps_its_place_in_the_values():
    workflow = {
        "nodes": [LOAD, node(2, "Sample", SAMPLE_VALUES, [("steps", "INT", 5)])],
        "links": [{"id": 5, "origin_id": 1, "origin_slot": 0}],
    }
    inputs = ui_to_api(workflow, INFO)["2"]["inputs"]
    assert inputs["steps"] == ["1", 0]
    assert inputs["mode"] == "y"


def test_reroutes_and_notes_vanish_and_primitives_become_values():
    reroute = node(3, "Reroute", inputs=[("", "*", 5)], outputs=["MODEL"])
    primitive = node(4, "PrimitiveNode", [7, "fixed"], outputs=["INT"])
    sampler = node(2, "Sample", SAMPLE_VALUES, [("model", "MODEL", 6), ("seed", "INT", 7)])
    workflow = {
        "nodes": [LOAD, reroute, primitive, sampler, node(9, "MarkdownNote", ["text"])],
        "links": [[5, 1, 0, 3, 0, "MODEL"], [6, 3, 0, 2, 0, "MODEL"], [7, 4, 0, 2, 1, "INT"]],
    }
    prompt = ui_to_api(workflow, INFO)
    assert set(prompt) == {"1", "2"}
    assert prompt["2"]["inputs"]["model"] == ["1", 0]
    assert prompt["2"]["inputs"]["seed"] == 7


@pytest.mark.parametrize(("mode", "expected"), [(0, ["3", 0]), (4, ["1", 0]), (2, None)])
def test_bypassed_nodes_pass_on_what_fits_and_muted_ones_nothing(mode, expected):
    patch = node(3, "Patch", [1.0], [("strength", "FLOAT", None), ("model", "MODEL", 5)], ["MODEL"], mode=mode)
    workflow = {
        "nodes": [LOAD, patch, sample(6)],
        "links": [[5, 1, 0, 3, 1, "MODEL"], [6, 3, 0, 2, 0, "MODEL"]],
    }
    prompt = ui_to_api(workflow, INFO)
    assert prompt["2"]["inputs"].get("model") == expected
    assert ("3" in prompt) == (mode == 0)


def test_dynamic_combo_brings_the_inputs_of_the_chosen_option():
    workflow = {"nodes": [node(1, "Dynamic", ["top", 3, 9]), node(2, "Dynamic", ["none", 9])], "links": []}
    prompt = ui_to_api(workflow, INFO)
    assert prompt["1"]["inputs"] == {"kind": "top", "kind.k": 3, "last": 9}
    assert prompt["2"]["inputs"] == {"kind": "none", "last": 9}


def test_unknown_nodes_and_subgraphs_are_refused():
    with pytest.raises(ValueError, match="node 1 is a Nope"):
        ui_to_api({"nodes": [node(1, "Nope")], "links": []}, INFO)
    with pytest.raises(ValueError, match="subgraphs"):
        ui_to_api({"nodes": [], "links": [], "definitions": {"subgraphs": [{}]}}, INFO)
