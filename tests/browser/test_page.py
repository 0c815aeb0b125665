"""The page loads with the pack in it, and runs a graph as a user does."""

import pytest
from PIL import Image

from latent_clip.tests.browser_page import ComfyPage
from latent_clip.tests.host_server import text_to_image
from latent_clip.tools.comfy_server import PACK_ROOT
from latent_clip.tools.ui_to_api import ui_to_api

WORKFLOWS = sorted((PACK_ROOT / "workflows").glob("*.json"))


def without_titles(prompt: dict) -> dict:
    return {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in prompt.items()}


def test_opening_the_page_logs_no_error_of_ours(chromium, comfy, opened_page):
    page = ComfyPage(chromium, comfy, opened_page.renderer)
    try:
        assert page.errors == []
    finally:
        page.close()


def test_every_node_of_the_pack_is_known_to_the_page(page, comfy):
    ours = {name for name, node in comfy.object_info().items() if "ComfyUI-Latent-CLIP" in node["python_module"]}
    assert ours, "the server has no node of ours"
    assert page.node_types("^LatentCLIP") == ours


def test_run_button_makes_a_picture(page, comfy):
    prompt = text_to_image(seed=100 + (page.renderer == "nodes2"))
    page.load_prompt(prompt)
    assert without_titles(page.prompt()) == prompt
    result = page.run()
    assert result.ok, result.error
    (image,) = result.outputs["save"]["images"]
    assert (comfy.output_dir / image["filename"]).exists()
    with Image.open(page.screenshot("run")) as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 100, "the page is blank"


def test_failing_node_reaches_the_page(page, comfy):
    comfy.tiny_sdxl_as("gone.safetensors")
    prompt = text_to_image(seed=7)
    prompt["ckpt"]["inputs"]["ckpt_name"] = "gone.safetensors"
    page.load_prompt(prompt)
    (comfy.models_dir / "checkpoints" / "gone.safetensors").unlink()
    with pytest.raises(AssertionError, match="refused"):
        page.run()
    page.errors.clear()  # the page logs the refusal, as it should


def test_converter_agrees_with_the_page_on_a_stock_graph(page, comfy):
    page.load_prompt(text_to_image(seed=8))
    assert ui_to_api(page.graph(), comfy.object_info()) == page.prompt()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_converter_agrees_with_the_page_on_shipped_workflows(page, comfy, path):
    page.load(path)
    assert without_titles(comfy.workflow_to_prompt(path)) == without_titles(page.prompt())
    page.screenshot(f"workflow-{path.stem}")
