"""What people saved with version 0.1 opens with the same nodes, sockets and values, and runs."""

import json

import pytest

from latent_clip.tests.saved_workflows import PROMPTS, SAVED

paths = pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def info(comfy):
    comfy.offer_workflow_files()
    return comfy.object_info()


def test_all_of_them_are_here():
    assert {path.stem for path in SAVED} == set(PROMPTS) and len(SAVED) == 10


@paths
def test_every_node_and_socket_is_where_it_was(info, path):
    nodes = [node for node in json.loads(path.read_text())["nodes"] if node["type"].startswith("LatentCLIP")]
    assert nodes
    for node in nodes:
        now = info[node["type"]]
        before = [(socket["name"], socket["type"]) for socket in node["outputs"]]
        assert list(zip(now["output_name"], now["output"]))[: len(before)] == before
        names = {name for group in ("required", "optional") for name in now["input"].get(group, {})}
        assert {socket["name"].split(".")[0] for socket in node["inputs"]} <= names


@paths
def test_it_makes_the_prompt_that_it_made_and_runs(comfy, info, path):
    prompt = comfy.workflow_to_prompt(path)
    made = {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in prompt.items()}
    assert made == PROMPTS[path.stem]
    for node in prompt.values():
        if node["class_type"] == "LatentCLIPOptimizeNoise":
            node["inputs"]["iterations"] = 1  # 50 at full size take minutes on a CPU, and show nothing more
        if node["class_type"] == "EmptyLatentImage" and node["inputs"]["width"] > 64:
            node["inputs"] |= {"width": 128, "height": 128}
    result = comfy.run(prompt)
    assert any(output.get("images") for output in result.outputs.values()), "no image was saved"
