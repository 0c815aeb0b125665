"""docs/examples/require_gate.py: what a service may queue, on the templates of this pack and on what people make of them."""

import copy
import importlib.util
import json
import subprocess
import sys

import pytest

from latent_clip.tools.comfy_server import PACK_ROOT

SCRIPT = PACK_ROOT / "docs" / "examples" / "require_gate.py"
GATE = "LatentCLIPSafetyGate"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("require_gate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def info(comfy):
    comfy.offer_workflow_files()
    return comfy.object_info()


def template(comfy, name: str, mode: int = 0) -> dict:
    """A shipped workflow as the page would queue it, its gate in this mode: 2 muted, 4 bypassed."""
    from latent_clip.tools.ui_to_api import ui_to_api

    workflow = json.loads((PACK_ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == GATE:
            node["mode"] = mode
    return ui_to_api(workflow, comfy.object_info())


def only(prompt: dict, kind: str) -> str:
    (name,) = [name for name, node in prompt.items() if node["class_type"] == kind]
    return name


GATED = ["10 Safety gate for a service", "08 Safety guidance"]


@pytest.mark.parametrize("name", GATED)
def test_our_gated_templates_may_be_queued(comfy, example, info, name):
    example.require_gate(template(comfy, name), info)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("09 Optimize noise, away from harm", "no Safety Gate"),
        ("03 Safety, demo", "SaveImage"),
        ("01 Try it now", "no Safety Gate"),
    ],
)
def test_templates_that_show_more_may_not(comfy, example, info, name, says):
    with pytest.raises(example.Refused, match=says):
        example.require_gate(template(comfy, name), info)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("mode", [2, 4])
def test_a_gate_that_is_muted_or_bypassed(comfy, example, info, name, mode):
    prompt = template(comfy, name, mode)
    if mode == 4:  # the host's design, which our help speaks of: the latent goes past the gate into the decode
        sampler, decode = only(prompt, "KSampler"), only(prompt, "VAEDecode")
        assert prompt[decode]["inputs"]["samples"] == [sampler, 0]
    with pytest.raises(example.Refused, match="bypassed or muted"):
        example.require_gate(prompt, info)


def ways_past(prompt: dict) -> dict[str, dict]:
    """The gate stays where it is, and something else shows the image."""
    sampler, decode, gate = only(prompt, "KSampler"), only(prompt, "VAEDecode"), only(prompt, GATE)
    vae = prompt[decode]["inputs"]["vae"]

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    ungated = {"d2": node("VAEDecode", samples=[sampler, 0], vae=vae)}
    reward = node(
        "LatentCLIPTextReward", latent_clip=prompt[gate]["inputs"]["latent_clip"], text="a dog", weight=1.0, fit="tiles"
    )
    after = node("KSampler", **prompt[sampler]["inputs"] | {"latent_image": [gate, 0]})
    return {
        "another decode": {**ungated, "x": node("SaveImage", images=["d2", 0], filename_prefix="x")},
        "a preview": {**ungated, "x": node("PreviewImage", images=["d2", 0])},
        "a batch of both": {
            **ungated, "d3": node("ImageBatch", image1=[decode, 0], image2=["d2", 0]),
            "x": node("SaveImage", images=["d3", 0], filename_prefix="x"),
        },
        "the latent saved": {"x": node("SaveLatent", samples=[sampler, 0], filename_prefix="x")},
        "a second sampling behind the gate": {
            "s2": after, "d2": node("VAEDecode", samples=["s2", 0], vae=vae),
            "x": node("SaveImage", images=["d2", 0], filename_prefix="x"),
        },
        "a switch": {
            "w": node("ComfySwitchNode", switch=True, on_false=[gate, 0], on_true=[sampler, 0]),
            "d2": node("VAEDecode", samples=["w", 0], vae=vae), "x": node("SaveImage", images=["d2", 0], filename_prefix="x"),
        },
        "thumbnails": {"r": reward, "x": node("LatentCLIPScore", latent=[sampler, 0], reward=["r", 0])},
        "an unknown node": {"x": node("Unknown", latent=[sampler, 0])},
        "a wire to nowhere": {"x": node("SaveImage", images=["nowhere", 0], filename_prefix="x")},
        "no node": {"x": "SaveImage"},
    }  # fmt: skip


@pytest.mark.parametrize("name", GATED)
def test_every_way_past_the_gate_is_refused_by_its_node(comfy, example, info, name):
    prompt = template(comfy, name)
    ways = ways_past(prompt)
    assert len(ways) == 10
    for way, more in ways.items():
        with pytest.raises(example.Refused) as caught:
            example.require_gate(prompt | more, info)
        assert " x " in str(caught.value), (way, str(caught.value))
    example.require_gate(prompt | ways["thumbnails"], info, allow_small_pictures=True)


def test_a_decode_in_the_place_of_the_gate(comfy, example, info):
    prompt = copy.deepcopy(template(comfy, GATED[0]))
    prompt[only(prompt, "VAEDecode")]["inputs"]["samples"] = [only(prompt, "KSampler"), 0]
    with pytest.raises(example.Refused, match="SaveImage"):
        example.require_gate(prompt, info)


def test_a_gate_that_the_client_has_set(comfy, example, info):
    prompt = template(comfy, GATED[0])
    settings = {"concepts": "i2p", "categories": "", "thresholds": ""}
    example.require_gate(prompt, info, settings)
    for name, value in {"concepts": "typed below", "thresholds": "10000", "categories": ["5", 0]}.items():
        changed = copy.deepcopy(prompt)
        changed[only(changed, GATE)]["inputs"][name] = value
        with pytest.raises(example.Refused, match=name):
            example.require_gate(
                changed | {"5": {"class_type": "PrimitiveString", "inputs": {"value": "x"}}}, info, settings
            )


def test_from_the_command_line(comfy, info, tmp_path):
    server = comfy.url.removeprefix("http://")
    for mode, code, says in ((0, 0, "comes through"), (4, 1, "bypassed or muted")):
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(template(comfy, GATED[0], mode)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(path), "--server", server], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == code and says in done.stdout + done.stderr
