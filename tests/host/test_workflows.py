"""Every shipped workflow runs in the real host as it is; the SDXL ones on a tiny checkpoint of SDXL's layout."""

import json
import urllib.request

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from latent_clip.demo.judge import glimpse, read
from latent_clip.tools.comfy_server import PACK_ROOT

WORKFLOWS = sorted((PACK_ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module", autouse=True)
def files(comfy):
    comfy.offer_workflow_files()


def made_small(prompt: dict) -> dict:
    """A workflow of a model in parts on the small file of that name, its text encoder and the size of its images replaced."""
    models = [node["inputs"]["unet_name"] for node in prompt.values() if node["class_type"] == "UNETLoader"]
    for node in prompt.values():
        if node["class_type"] in ("CLIPLoader", "DualCLIPLoader"):
            node["class_type"], node["inputs"] = "TestTinyText", {"file": models[0]}
        if models and node["class_type"].startswith("Empty"):
            node["inputs"].update(width=128, height=128)
            if "length" in node["inputs"]:
                node["inputs"]["length"] = 9
        if models and node["inputs"].get("steps", 0) > 8:
            node["inputs"]["steps"] = 2
        if node["class_type"] == "LatentCLIPSafetyGate" and models:
            node["inputs"]["thresholds"] = "1000"  # random judges: what passes is to be seen
    return prompt


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_runs_and_saves_images(comfy, path):
    prompt = made_small(comfy.workflow_to_prompt(path))
    for node in prompt.values():
        if node["class_type"] == "LatentCLIPOptimizeNoise":
            node["inputs"]["iterations"] = 3  # 50 at 512 pixels take minutes on a CPU, and show nothing more
        if node["class_type"] == "BasicScheduler" and path.stem == "13 Search":
            node["inputs"]["steps"] = 6  # 30 at 1024 pixels: the same
        if node["class_type"] == "LatentCLIPSearch" and path.stem == "13 Search":
            node["inputs"].update(candidates=4, keep=1)
    saves = [key for key, node in prompt.items() if node["class_type"] in ("SaveImage", "SaveAnimatedWEBP")]
    result = comfy.run(prompt)
    images = [image for key in saves for image in result.outputs.get(key, {}).get("images", [])]
    assert images, "no image was saved"
    if path.stem != "05 Sort by content":  # there a branch may have nothing to save
        assert all(key in result.outputs for key in saves)


def test_clip_gate_cuts_and_says_so(comfy):
    """17 with a threshold that some later frame exceeds: found from the report of a run that lets everything pass."""
    path = next(path for path in WORKFLOWS if path.stem.startswith("17"))

    def run(thresholds: str, concept: str) -> dict:
        prompt = made_small(comfy.workflow_to_prompt(path))
        gate = next(key for key, node in prompt.items() if node["class_type"] == "LatentCLIPSafetyGate")
        prompt[gate]["inputs"] |= {"thresholds": thresholds, "typed": concept, "concepts": "typed below"}
        prompt["dump"] = {"class_type": "TestDump", "inputs": {"value": [gate, 0], "name": "clip"}}
        result = comfy.run(prompt)
        assert result.ok, result.error
        return result.outputs[gate]["latent_clip"][0]

    for concept in ("star: a red star\nneutral: a blue circle", "circle: a blue circle\nneutral: a red star"):
        scores = [row[0] for row in run("1000", concept)["frames"][0]]  # of the second, those of the first with the other sign
        later = max(scores[1:])
        if later > scores[0]:
            break
    assert later > scores[0] and len(scores) == 3 and comfy.dump("clip")[0]["samples"].shape[2] == 3
    kept = next(place for place, score in enumerate(scores) if score > (scores[0] + later) / 2)
    report = run(str((scores[0] + later) / 2), concept)
    assert report["blocked"] == [False] and report["cut"].startswith(f"cut to its first {kept} of 3 frames")
    assert comfy.dump("clip")[0]["samples"].shape[2] == kept


def safety_pictures(comfy, text: str) -> dict[str, list[torch.Tensor]]:
    """What 03 Safety, demo saves for a prompt: plain, guided, gated; each (3, 64, 64)."""
    prompt = comfy.workflow_to_prompt(PACK_ROOT / "workflows" / "03 Safety, demo.json")
    for node in prompt.values():
        if node["class_type"] == "PrimitiveStringMultiline":
            node["inputs"]["value"] = text
        if node["class_type"] == "ImageScaleBy":
            node["inputs"]["scale_by"] = 1.0
    result = comfy.run(prompt)
    assert result.ok, result.error
    return {
        node["inputs"]["filename_prefix"].rsplit("-", 1)[1]: [
            to_tensor(Image.open(comfy.output_dir / image["subfolder"] / image["filename"]))
            for image in result.outputs[key]["images"]
        ]
        for key, node in prompt.items()
        if node["class_type"] == "SaveImage"
    }


def test_safety_workflow_removes_stars(comfy):
    pictures = safety_pictures(comfy, "a yellow star")
    stars = {
        name: sum("star" in {thing.kind for thing in glimpse(picture)} for picture in batch)
        for name, batch in pictures.items()
    }
    assert stars == {"plain": 4, "guided": 0, "gated": 0}
    assert all(seen.thing.kind == "circle" for picture in pictures["guided"] for seen in read(picture).objects)
    assert [read(picture).problem for picture in pictures["gated"]] == ["nothing there"] * 4


def test_safety_workflow_leaves_circles_as_they_are(comfy):
    pictures = safety_pictures(comfy, "a blue circle")
    for name in ("guided", "gated"):
        assert all(torch.equal(a, b) for a, b in zip(pictures[name], pictures["plain"], strict=True))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_has_a_thumbnail_and_a_note(path):
    assert path.with_suffix(".jpg").stat().st_size > 2000
    notes = [node for node in json.loads(path.read_text())["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1 and len(notes[0]["widgets_values"][0]) > 100


def test_page_offers_them_as_templates(comfy):
    with urllib.request.urlopen(f"{comfy.url}/workflow_templates") as response:
        offered = json.load(response)
    assert {path.stem for path in WORKFLOWS} <= {name for names in offered.values() for name in names}
