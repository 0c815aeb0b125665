"""Slots of a workflow: found by title or named, and a clear error where they are not plainly one input."""

import json

import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.workflow import read_workflow, workflow_of


def node(kind: str, title: str = "", **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}


def graph(**changes) -> dict:
    nodes = {
        "1": node("Loader", "Load"),
        "2": node("CLIPTextEncode", "Prompt", text="a cat", clip=["1", 1]),
        "3": node("KSampler", "seed", seed=1, steps=4, cfg=2.5, sampler_name="euler", model=["1", 0]),
        "4": node("EmptyLatentImage", "batch", width=64, height=64, batch_size=1),
    }
    return nodes | changes


def test_slots_are_found_by_title_and_filled():
    workflow = workflow_of(graph())
    assert workflow.slots == {"prompt": ("2", "text"), "seed": ("3", "seed"), "batch": ("4", "batch_size")}
    filled = workflow.filled({"prompt": "a dog", "seed": 7, "batch": 3})
    assert (filled["2"]["inputs"]["text"], filled["3"]["inputs"]["seed"], filled["4"]["inputs"]["batch_size"]) == (
        "a dog",
        7,
        3,
    )
    assert workflow.graph["2"]["inputs"]["text"] == "a cat"


def test_slots_are_named_explicitly():
    workflow = workflow_of(graph(**{"2": node("CLIPTextEncode", text="")}), ["prompt=2.text", "steps=3.steps"])
    assert workflow.filled({"steps": 8})["3"]["inputs"]["steps"] == 8


def test_hash_is_of_what_it_does_and_not_of_what_stands_in_its_slots():
    plain = workflow_of(graph())
    other_words = workflow_of(graph(**{"2": node("CLIPTextEncode", "prompt", text="x", clip=["1", 1])}))
    other_steps = graph()
    other_steps["3"]["inputs"]["steps"] = 5
    assert plain.hash == other_words.hash == plain.with_values({"seed": 9}).hash
    assert plain.hash != workflow_of(other_steps).hash
    sweep = workflow_of(graph(), ["cfg=3.cfg"])
    assert sweep.with_values({"cfg": 2.0}).graph != sweep.with_values({"cfg": 4.0}).graph


@pytest.mark.parametrize(
    ("change", "explicit", "message"),
    [
        ({"2": node("CLIPTextEncode", text="")}, [], "no slot 'prompt'.*Found:.*'Load'.*--slot prompt=NODE.INPUT"),
        ({"5": node("Text", "prompt", text="")}, [], "2 nodes are called 'prompt': 2, 5"),
        ({"2": node("Text", "prompt", a="x", b="y")}, [], r"2 inputs of a text \(a, b\), expected one"),
        ({"2": node("Text", "prompt", text=["1", 0])}, [], r"0 inputs of a text \(none\)"),
        ({}, ["seed=9.seed"], "no such input; there are nodes 1, 2, 3, 4"),
        ({}, ["seed=3.noise"], "no such input; there are seed, steps"),
        ({}, ["seed"], "expected NAME=NODE.INPUT"),
    ],
)
def test_slot_that_is_not_plainly_one_input_is_refused(change, explicit, message):
    with pytest.raises(EvaluationError, match=message):
        workflow_of(graph(**change), explicit)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nodes": [], "links": []}, r"Workflow → Export \(API\)"),
        ({"1": {"type": "x"}}, "expected API form"),
        ([], "expected API form"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    path = tmp_path / "w.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=message):
        read_workflow(path)
    path.write_text("{")
    with pytest.raises(EvaluationError, match="no JSON"):
        read_workflow(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_workflow(tmp_path / "none.json")


@pytest.mark.parametrize(("values", "message"), [
    ({"seed": -1}, "expected 0 to"), ({"seed": 1.5}, "expected a whole number"), ({"prompt": 3}, "expected a text"),
    ({"colour": 1}, "no slot 'colour'"), ({"batch": True}, "whole number"),
])  # fmt: skip
def test_wrong_values_are_refused(values, message):
    with pytest.raises(EvaluationError, match=message):
        workflow_of(graph()).filled(values)
