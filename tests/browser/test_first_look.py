"""What a newcomer sees: every template can be read when the page opens it, and old workflows open as they were."""

import json
import urllib.request

import pytest

from latent_clip.tests.browser_page import ComfyPage
from latent_clip.tests.saved_workflows import PROMPTS, SAVED
from latent_clip.tools.comfy_server import PACK_FOLDER, PACK_ROOT

TEMPLATES = sorted((PACK_ROOT / "workflows").glob("*.json"))
READABLE = 0.7  # zoom
# As useTemplateWorkflows.loadWorkflowTemplate of the page does behind a click on a card; it then fits the view.
OPEN_TEMPLATE = """async ([name, module]) => {
    const response = await fetch(app.api.apiURL(`/workflow_templates/${module}/${name}.json`));
    await app.loadGraphData(await response.json(), true, true, name, { openSource: 'template' });
}"""
# What the page really drew: text that its canvas was asked to write, or elements of Nodes 2.0 with a size.
RECORD_TEXTS = """() => {
    const { ctx } = app.canvas, written = window.written = new Set(), write = ctx.fillText;
    ctx.fillText = function (text, ...rest) { written.add(text); return write.call(this, text, ...rest); };
    app.canvas.setDirty(true, true);
}"""
VUE_TITLES = """() => [...document.querySelectorAll('[data-testid="node-title"]')]
    .filter((title) => title.getBoundingClientRect().height > 0).map((title) => title.textContent.trim())"""


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def screen(request, chromium, comfy):
    """The page on a usual screen, 1440 × 900, as someone who has never been there sees it."""
    comfy.offer_workflow_files()
    page = ComfyPage(chromium, comfy, request.param)
    page.page.set_viewport_size({"width": 1440, "height": 900})
    yield page
    page.close()


def drawn_titles(screen: ComfyPage) -> set[str]:
    """Titles that are on the screen."""
    if screen.renderer == "nodes2":
        return set(screen.js(VUE_TITLES))
    screen.js(RECORD_TEXTS)
    screen.page.wait_for_timeout(300)
    return set(screen.js("() => [...written]"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_can_be_read_when_it_opens(screen, path):
    screen.reset()
    screen.js(OPEN_TEMPLATE, [path.stem, PACK_FOLDER])
    screen.page.wait_for_timeout(500)
    screen.screenshot(f"first-look-{path.stem}")
    titles = set(screen.js("() => app.graph.nodes.map((node) => node.title)"))
    assert len(titles) > 5
    assert screen.js("() => app.canvas.ds.scale") >= READABLE
    assert not screen.js("() => app.canvas.low_quality")
    assert titles <= drawn_titles(screen)
    visible = "() => app.graph.nodes.every((node) => app.canvas.visible_nodes.includes(node))"
    assert screen.renderer == "nodes2" or screen.js(visible)
    assert not screen.errors, screen.errors


def covered(screen) -> list[tuple[str, str]]:
    """Pairs of nodes of which one lies on the other."""
    boxes = screen.js("() => app.graph.nodes.map((node) => [node.title, ...node.boundingRect])")
    return [
        (a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[:i]
        if a[1] < b[1] + b[3] - 1 and b[1] < a[1] + a[3] - 1 and a[2] < b[2] + b[4] - 1 and b[2] < a[2] + a[4] - 1
    ]  # fmt: skip


def test_nodes_of_a_template_do_not_cover_each_other(screen):
    for path in TEMPLATES:
        screen.reset()
        screen.js(OPEN_TEMPLATE, [path.stem, PACK_FOLDER])
        for _ in range(30):  # until the page has given every node its size
            screen.page.wait_for_timeout(300)
            if not covered(screen):
                break
        assert not covered(screen), path.stem


def test_click_on_the_card_opens_it(screen):
    """The template browser shows the file names and their pictures."""
    screen.reset()
    screen.js("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    screen.page.get_by_role("dialog").wait_for()
    screen.page.get_by_placeholder("Search").last.fill("Try it now")
    card = screen.page.get_by_test_id("template-workflow-01 Try it now").first
    card.wait_for()
    screen.screenshot("template-browser")
    card.click()
    screen.page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'LatentCLIPSelect')")
    screen.page.wait_for_timeout(500)
    assert screen.js("() => app.canvas.ds.scale") >= READABLE
    assert screen.js("() => app.extensionManager.workflow.activeWorkflow.filename").startswith("01 Try it now")


def test_pictures_of_the_templates_are_served(comfy):
    for path in TEMPLATES:
        url = f"{comfy.url}/api/workflow_templates/{PACK_FOLDER}/{path.stem.replace(' ', '%20')}.jpg"
        with urllib.request.urlopen(url) as response:
            assert response.read(2) == b"\xff\xd8", path.stem


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_what_version_0_1_saved_opens_as_it_was(screen, path):
    screen.reset()
    screen.load(json.loads(path.read_text()))
    prompt = screen.prompt()
    assert set(prompt) == set(PROMPTS[path.stem])
    for key, node in PROMPTS[path.stem].items():
        assert prompt[key]["class_type"] == node["class_type"]
        assert prompt[key]["inputs"] | node["inputs"] == prompt[key]["inputs"], (key, node["class_type"])
        assert not prompt[key]["inputs"].get("views"), "what was added since and is on in new nodes stays off"
    assert not screen.errors, screen.errors


def test_empty_sidebar_says_what_comes_and_opens_the_first_template(screen):
    screen.reset()
    toggle = "() => app.extensionManager.sidebarTab.toggleSidebarTab('latent-clip-runs')"
    screen.js(toggle)
    sidebar = screen.page.locator(".latent-clip-no-runs")
    sidebar.get_by_text("appears here after each run").wait_for()
    screen.screenshot("no-runs")
    sidebar.get_by_role("button").click()
    screen.page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'LatentCLIPSelect')")
    screen.page.wait_for_function(
        "() => app.extensionManager.workflow.activeWorkflow.filename.startsWith('01 Try it now')"
    )
    screen.js(toggle)
    assert not screen.errors, screen.errors
