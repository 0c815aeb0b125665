"""The curves on Optimize Noise, in the real page: while it runs, when it is stopped, after a reload, afterwards."""

import csv
import io
import json

import pytest
from PIL import Image

from latent_clip.tests.browser_page import ComfyPage
from latent_clip.tests.host_server import TestServer
from latent_clip.tools.comfy_server import PACK_ROOT

WORKFLOW = PACK_ROOT / "workflows" / "02 Optimize noise, demo.json"
NODE = "LatentCLIPOptimizeNoise"
LONG = 1000  # iterations that nobody waits for


@pytest.fixture
def desk(page):
    page.page.set_default_timeout(60_000)
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield page
    page.js("() => app.api.interrupt()")
    page.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def two_terms(comfy) -> dict:
    """The shipped graph with a second term in the reward."""
    prompt = comfy.workflow_to_prompt(WORKFLOW)
    (reward,) = [key for key, node in prompt.items() if node["class_type"] == "LatentCLIPTextReward"]
    (reno,) = [key for key, node in prompt.items() if node["class_type"] == NODE]
    inputs = prompt[reward]["inputs"]
    prompt["80"] = {"class_type": "LatentCLIPTextReward", "inputs": {**inputs, "text": "a red star", "weight": -0.25}}
    combined = {"rewards.reward_0": [reward, 0], "rewards.reward_1": ["80", 0]}
    prompt["81"] = {"class_type": "LatentCLIPCombineRewards", "inputs": combined}
    prompt[reno]["inputs"]["reward"] = ["81", 0]
    return {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in prompt.items()}


def load(page, comfy, seed: int, iterations: int, **settings) -> None:
    """Open the graph with the node in front. Another seed for each renderer: nothing comes from the host's cache."""
    prompt = two_terms(comfy)
    for node in prompt.values():
        if node["class_type"] == "RandomNoise":
            node["inputs"]["noise_seed"] = seed + 100 * (page.renderer == "nodes2")
        if node["class_type"] == NODE:
            node["inputs"].update(iterations=iterations, **settings)
    page.load_prompt(prompt)
    page.js("""() => {
        for (const node of app.graph.nodes) {
            const after = node.widgets?.find(widget => widget.name === 'control_after_generate');
            if (after) after.value = 'fixed';
        }
    }""")
    lay_out(page)


def lay_out(page) -> None:
    page.js(
        """kind => {
            for (const node of app.canvas.graph.nodes) {
                node.pos = node.type === kind ? [40, 60] : [600 + 330 * (Number(node.id) % 3), 60 + 300 * (Number(node.id) % 5)];
            }
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [60, 20];
            app.canvas.setDirty(true, true);
        }""",
        NODE,
    )
    page.page.wait_for_timeout(300)


def panel_of(page):
    return page.page.locator(".latent-clip-curves").first


def last_iteration(page) -> int:
    return int(panel_of(page).locator(".latent-clip-chart").get_attribute("aria-valuemax") or -1)


def wait_for_iteration(page, index: int) -> None:
    """Of the run that goes on; the page may still show an earlier one."""
    page.page.wait_for_function(
        """index => {
            const panel = document.querySelector('.latent-clip-curves.latent-clip-has-rows');
            const running = panel && !panel.querySelector('.latent-clip-stop').hidden;
            return running && Number(panel.querySelector('.latent-clip-chart').getAttribute('aria-valuemax')) >= index;
        }""",
        arg=index,
    )


def wait_for_end(page) -> None:
    panel_of(page).locator(".latent-clip-stop").wait_for(state="hidden")


def status(page) -> str:
    return panel_of(page).locator(".latent-clip-summary").inner_text()


def legend(page) -> list[tuple[str, str]]:
    """[(line, value)] as shown."""
    entries = panel_of(page).locator(".latent-clip-series").all()
    return [(entry.locator("span").text_content(), entry.locator("b").text_content()) for entry in entries]


def stop(page) -> None:
    panel_of(page).locator(".latent-clip-stop").click()
    wait_for_end(page)


def picture_on_the_clipboard(page) -> list[int]:
    """The PNG, as soon as there is one."""
    for _ in range(50):
        data = page.js("""async () => {
            const [item] = await navigator.clipboard.read();
            if (!item?.types.includes('image/png')) return null;
            return [...new Uint8Array(await (await item.getType('image/png')).arrayBuffer())];
        }""")
        if data:
            return data
        page.page.wait_for_timeout(100)
    raise AssertionError("no picture on the clipboard")


def test_curve_grows_and_stop_keeps_the_best(desk, comfy):
    load(desk, comfy, 1, LONG)
    before = panel_of(desk).bounding_box()
    assert "appears here" in panel_of(desk).inner_text()
    prompt_id = desk.start()
    wait_for_iteration(desk, 3)
    first = last_iteration(desk)
    wait_for_iteration(desk, first + 5)
    assert "of 1000" in status(desk)
    assert "left" in status(desk)
    assert panel_of(desk).locator(".latent-clip-item img").count() == 4
    desk.screenshot("trace-live")
    stop(desk)
    result = comfy.wait(prompt_id)
    assert result.ok, result.error
    (trace,) = [output["latent_clip"][0] for output in result.outputs.values() if "latent_clip" in output]
    desk.page.wait_for_function("() => seen.some(([kind]) => kind === 'execution_success')")
    assert trace["stop_reasons"] == ["stopped"] * 4
    assert last_iteration(desk) == len(trace["iterations"]) - 1
    assert "stopped after" in status(desk)
    assert panel_of(desk).bounding_box() == before, "results must not resize or move anything"
    assert [name for name, _ in legend(desk)] == [
        "reward",
        *(term["name"].removeprefix("match: ") for term in trace["terms"]),
    ]
    assert float(legend(desk)[0][1].replace("−", "-")) == pytest.approx(trace["best"][0], abs=2e-3)


def test_reload_while_it_runs_and_a_reload_after(desk, comfy):
    load(desk, comfy, 2, LONG)
    prompt_id = desk.start()
    wait_for_iteration(desk, 10)
    desk.reload()
    if not desk.js("kind => app.graph.nodes.some(node => node.type === kind)", NODE):
        load(desk, comfy, 2, LONG)
    lay_out(desk)
    wait_for_iteration(desk, 12)
    path = panel_of(desk).locator(".latent-clip-line-chosen").get_attribute("d")
    assert path.startswith("M52 "), "the curve begins at the first iteration, not at the reload"
    assert panel_of(desk).locator(".latent-clip-item img").count() == 4
    stop(desk)
    outputs = comfy.wait(prompt_id).outputs
    assert "stopped after" in status(desk)
    before = status(desk), legend(desk)

    desk.load(desk.graph())  # the nodes are new objects now
    lay_out(desk)
    assert "appears here" in panel_of(desk).inner_text()
    desk.js("outputs => { app.nodeOutputs = outputs; }", outputs)
    desk.page.wait_for_function("document.querySelector('.latent-clip-curves.latent-clip-has-rows')")
    desk.settle()
    assert (status(desk), legend(desk)) == before


def test_items_and_terms_by_keyboard(desk, comfy):
    load(desk, comfy, 3, 12)
    result = desk.run()
    (trace,) = [output["latent_clip"][0] for output in result.outputs.values() if "latent_clip" in output]
    wait_for_end(desk)
    panel = panel_of(desk)
    panel.locator(".latent-clip-item").first.focus()
    desk.page.keyboard.press("ArrowRight")
    desk.settle()
    chosen = panel.locator(".latent-clip-item[aria-checked=true]")
    assert chosen.evaluate("item => item === document.activeElement && item.dataset.index === '1'")
    assert (
        panel.locator(".latent-clip-summary")
        .get_attribute("title")
        .split(" · ")[0]
        .endswith(f"at {trace['best_iteration'][1]}")
    )

    panel.locator(".latent-clip-series").nth(1).click()
    panel.locator(".latent-clip-chart").focus()
    desk.page.keyboard.press("Home")
    desk.settle()
    name = trace["terms"][0]["name"]
    shown = float(legend(desk)[1][1].replace("−", "-"))
    assert shown == pytest.approx(trace["iterations"][0]["terms"][name][1], abs=2e-3)
    assert name in panel.locator(".latent-clip-chart").get_attribute("aria-valuetext")
    desk.screenshot("trace-dark")

    desk.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    panel.locator(".latent-clip-item").nth(2).hover()
    desk.page.wait_for_timeout(300)
    card = desk.page.locator(".latent-clip-card")
    assert card.locator("img").count() == 2
    assert "first" in card.inner_text()
    desk.screenshot("trace-light")


def test_copy_as_table_and_as_picture(desk, comfy, tmp_path):
    load(desk, comfy, 4, 6)
    result = desk.run()
    (trace,) = [output["latent_clip"][0] for output in result.outputs.values() if "latent_clip" in output]
    wait_for_end(desk)
    panel = panel_of(desk)
    panel.get_by_text("CSV").click()
    panel.get_by_text("Copied").wait_for()
    rows = list(csv.DictReader(io.StringIO(desk.js("() => navigator.clipboard.readText()"))))
    assert len(rows) == 6 * 4
    assert float(rows[-1]["reward"]) == trace["iterations"][-1]["rewards"][-1]
    assert {term["name"] for term in trace["terms"]} <= rows[0].keys()

    panel.get_by_text("PNG").click()
    data = picture_on_the_clipboard(desk)
    path = PACK_ROOT / "output" / "browser" / f"trace-picture-{desk.renderer}.png"
    path.write_bytes(bytes(data))
    with Image.open(path) as image:
        assert image.size == (1520, 760)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_interrupted_run_says_so_and_the_next_one_starts_afresh(desk, comfy):
    load(desk, comfy, 5, LONG)
    desk.start()
    wait_for_iteration(desk, 3)
    desk.js("() => app.api.interrupt()")
    wait_for_end(desk)
    assert "interrupted" in status(desk)
    desk.page.wait_for_function("() => seen.some(([kind]) => kind === 'execution_interrupted')")
    desk.js(
        "kind => { app.graph.nodes.find(n => n.type === kind).widgets.find(w => w.name === 'iterations').value = 4; }",
        NODE,
    )
    assert desk.run().ok
    desk.settle()
    assert last_iteration(desk) == 3
    assert "done in" in status(desk)


def test_run_inside_a_subgraph(desk, comfy):
    load(desk, comfy, 6, LONG)
    desk.js("""kind => {
        const { subgraph } = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(node => node.type === kind)));
        app.canvas.setGraph(subgraph);
    }""", NODE)  # fmt: skip
    lay_out(desk)
    desk.start()
    wait_for_iteration(desk, 3)
    stop(desk)
    assert "stopped after" in status(desk)
    desk.js("() => app.canvas.setGraph(app.rootGraph)")


def test_the_panel_leaves_no_trace_in_workflow_and_prompt(desk):
    desk.load(WORKFLOW)
    (saved,) = [node for node in desk.graph()["nodes"] if node["type"] == NODE]
    assert len(saved["widgets_values"]) == 12
    (inputs,) = [node["inputs"] for node in desk.prompt().values() if node["class_type"] == NODE]
    assert "latent_clip_trace" not in json.dumps(inputs)
    assert inputs["use_target"] is False


def test_sidebar_lists_the_run_and_leads_to_its_node(desk, comfy):
    load(desk, comfy, 7, 5)
    desk.run()
    desk.js("() => app.extensionManager.sidebarTab.toggleSidebarTab('latent-clip-runs')")
    entry = desk.page.locator(".latent-clip-run").first
    assert "Optimize Noise" in entry.inner_text()
    assert "4 latents" in entry.inner_text()
    desk.js("() => { app.canvas.ds.offset = [-3000, -3000]; app.canvas.setDirty(true, true); }")
    entry.click()
    desk.page.wait_for_timeout(300)
    assert desk.js("() => [...app.canvas.selectedItems].map(node => node.type)") == [NODE]
    desk.screenshot("runs")
    desk.js("() => app.graph.clear()")
    entry.click()
    desk.page.get_by_text("not in the open workflow").wait_for()
    desk.js("() => app.extensionManager.sidebarTab.toggleSidebarTab('latent-clip-runs')")


def test_second_tab_is_left_alone(desk, chromium, comfy):
    other = ComfyPage(chromium, comfy, desk.renderer)
    try:
        other.page.set_default_timeout(60_000)
        load(other, comfy, 32, 6)
        load(desk, comfy, 31, 6)
        desk.run()
        wait_for_end(desk)
        assert "done in" in status(desk) and "appears here" in panel_of(other).inner_text()
        before = status(desk)
        other.run()
        other.page.locator(".latent-clip-curves.latent-clip-has-rows").wait_for()
        wait_for_end(other)
        assert "done in" in status(other) and status(desk) == before
        assert not other.errors
    finally:
        other.close()


def test_another_user_with_the_same_workflow_sees_nothing_of_it(desk, chromium, comfy):
    """Not even when their page asks the server what is going on, as it does after a lost connection."""
    other = ComfyPage(chromium, comfy, desk.renderer)
    try:
        other.page.set_default_timeout(60_000)
        load(other, comfy, 33, LONG)
        load(desk, comfy, 33, LONG)
        desk.start()
        wait_for_iteration(desk, 3)
        with other.page.expect_response(lambda response: "/latent_clip/runs" in response.url) as asked:
            other.js("() => app.api.dispatchEvent(new CustomEvent('reconnected'))")
        assert asked.value.json() == {"runs": []}
        other.page.wait_for_timeout(300)
        assert "appears here" in panel_of(other).inner_text()
        with desk.page.expect_response(lambda response: "/latent_clip/runs" in response.url) as asked:
            desk.js("() => app.api.dispatchEvent(new CustomEvent('reconnected'))")
        assert len(asked.value.json()["runs"]) == 1
        stop(desk)
        assert "stopped after" in status(desk)
        assert not other.errors
    finally:
        other.close()


def test_list_of_latents_is_drawn_together(desk, comfy):
    load(desk, comfy, 8, 5)
    desk.js("""kind => {
        const reno = app.graph.nodes.find(({ type }) => type === kind);
        const slot = reno.findInputSlot('latent_image');
        const source = reno.getInputNode(slot);
        const list = LiteGraph.createNode('TestLatentList');
        app.graph.add(list);
        source['connect'](0, list, 0);
        list['connect'](0, reno, slot);
    }""", NODE)  # fmt: skip
    desk.settle()
    result = desk.run()
    (traces,) = [
        output["latent_clip"]
        for output in result.outputs.values()
        if output.get("latent_clip", [{}])[0].get("kind") == "reno"
    ]
    assert len(traces) == 4
    wait_for_end(desk)
    desk.page.wait_for_function("() => document.querySelectorAll('.latent-clip-curves .latent-clip-item').length === 4")
    best = [trace["best"][0] for trace in traces]
    labels = panel_of(desk).locator(".latent-clip-item").all_inner_texts()
    assert [label.strip() for label in labels] == [
        ("★" if b == max(best) else "") + f"#{i}" for i, b in enumerate(best)
    ]
    assert last_iteration(desk) == 4


def test_server_that_restarts_while_it_runs(chromium, comfy_tree, tmp_path):
    with TestServer(comfy_tree, tmp_path) as server:
        page = ComfyPage(chromium, server, "classic")
        try:
            page.page.set_default_timeout(60_000)
            load(page, server, 41, LONG)
            page.start()
            wait_for_iteration(page, 3)
            server.process.kill()
            server.process.wait()
            server.start()
            wait_for_end(page)
            assert "interrupted" in status(page)
            assert panel_of(page).locator(".latent-clip-line-chosen").count() == 1, "what was seen stays"
            load(page, server, 42, 4)
            page.run()
            wait_for_end(page)
            assert "done in" in status(page)
        finally:
            page.close()
