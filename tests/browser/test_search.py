"""The lanes on Search Best Images, and the question who goes on, in the real page."""

import json

import pytest

from latent_clip.tests.browser_page import ComfyPage
from latent_clip.tools.comfy_server import PACK_ROOT

WORKFLOW = PACK_ROOT / "workflows" / "02 Optimize noise, demo.json"
NODE = "LatentCLIPSearch"
RENO = "LatentCLIPOptimizeNoise"


@pytest.fixture
def desk(page):
    page.page.set_default_timeout(60_000)
    page.js("""() => {
        window.searches = [];
        app.api.addEventListener('latent_clip.search', ({ detail }) => window.searches.push(detail));
    }""")
    yield page
    page.js("() => app.api.interrupt()")
    page.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def search_prompt(comfy, seed: int, **settings) -> dict:
    """Shapes World with a search in eight steps."""
    prompt = comfy.workflow_to_prompt(WORKFLOW)
    (reno,) = [key for key, node in prompt.items() if node["class_type"] == RENO]
    for key, node in list(prompt.items()):
        if node["class_type"] == "BasicScheduler":
            node["inputs"]["steps"] = 8
        if node["class_type"] == "RandomNoise":
            node["inputs"]["noise_seed"] = seed
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"]["batch_size"] = 1
        if node["class_type"] in {"VAEDecode", "ImageScaleBy", "SaveImage"}:
            del prompt[key]
    wires = {name: value for name, value in prompt[reno]["inputs"].items() if isinstance(value, list)}
    widgets = {
        "candidates": 6, "keep": 2, "look": "drafts", "budget": 0.6, "variety": 0.0, "chooses": "reward", "time_out": 300.0,
        "cuts": "", "draft_steps": 0, "draft_scheduler": "simple", "images_at_once": 0,
    }  # fmt: skip
    prompt["90"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    prompt[reno] = {"class_type": NODE, "inputs": {**wires, "sampler": ["90", 0], **widgets, **settings}}
    prompt["91"] = {"class_type": "PreviewAny", "inputs": {"source": [reno, 3]}}
    return {key: {part: node[part] for part in ("class_type", "inputs")} for key, node in prompt.items()}


def load(page, comfy, seed: int, **settings) -> None:
    """Open the graph with the node in front. Another seed for each renderer: nothing comes from the host's cache."""
    page.load_prompt(search_prompt(comfy, seed + 100 * (page.renderer == "nodes2"), **settings))
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
    return page.page.locator(".latent-clip-search").first


def status(page) -> str:
    return panel_of(page).locator(".latent-clip-summary").inner_text()


def wait_for_question(page) -> None:
    page.page.locator(".latent-clip-search.latent-clip-asks").wait_for()


def wait_for_end(page, ended: str = "done") -> None:
    page.page.locator(f".latent-clip-search[data-ended={ended}]").wait_for()


def tiles(page, pressed: bool | None = None) -> list[int]:
    """Ids of the candidates to choose from, all or those that are chosen."""
    which = "" if pressed is None else f"[aria-pressed={str(pressed).lower()}]"
    found = panel_of(page).locator(f".latent-clip-tile{which}").all()
    return [int(tile.get_attribute("data-id")) for tile in found]


def report_of(result) -> list[dict]:
    assert result.ok, result.error
    (reports,) = [output["latent_clip"] for output in result.outputs.values() if "latent_clip" in output]
    return reports


def lanes(page) -> list[dict]:
    """What the rows show, from top to bottom."""
    return panel_of(page).evaluate("""panel => [...panel.querySelectorAll('li.latent-clip-lane')].map(row => ({
        id: Number(row.dataset.id),
        place: row.querySelector('.latent-clip-lane-place').textContent,
        fell: row.classList.contains('latent-clip-fell'),
        looks: [...row.querySelectorAll('.latent-clip-look b')].map(b => b.textContent),
        picture: Boolean(row.querySelector('img')?.naturalWidth),
    }))""")


def check_lanes(shown: list[dict], report: dict) -> None:
    """Winners in front with their marks, the others greyed, every score that there was."""
    assert [lane["id"] for lane in shown[: len(report["winners"])]] == report["winners"]
    assert [lane["place"] for lane in shown if lane["place"]] == [f"★{i + 1}" for i in range(len(report["winners"]))]
    assert {lane["id"] for lane in shown if lane["fell"]} == set(range(report["candidates"])) - set(report["winners"])
    assert all(lane["picture"] for lane in shown)
    for lane in shown:
        scores = [one["scores"][str(lane["id"])] for one in report["rounds"] if lane["id"] in one["alive"]]
        assert [float(text.replace("−", "-")) for text in lane["looks"]] == pytest.approx(scores, abs=6e-3)


def test_lanes_while_it_runs_and_afterwards(desk, comfy):
    load(desk, comfy, 1, look="both", candidates=12, budget=0.8)
    before = panel_of(desk).bounding_box()
    assert "appear here" in panel_of(desk).inner_text()
    (report,) = report_of(desk.run())
    wait_for_end(desk)
    desk.page.wait_for_timeout(300)
    assert panel_of(desk).bounding_box() == before, "results must not resize or move anything"
    check_lanes(lanes(desk), report)
    names = panel_of(desk).locator(".latent-clip-lane-head").inner_text().split()
    assert names == [one["name"] for one in report["rounds"]]
    share = round(100 * report["cost_spent"] / report["cost_plain"])
    assert f"{share}% of the full cost" in panel_of(desk).locator(".latent-clip-cost").inner_text()
    assert str(report["cost_plain"]) in panel_of(desk).locator(".latent-clip-cost").get_attribute("title")
    assert "2 of 12 kept" in status(desk)
    spent = desk.js("() => searches.map(({ cost_spent }) => cost_spent)")
    assert len(spent) > 2 and spent == sorted(spent), "the cost is told while it runs"
    desk.screenshot("search-dark")

    panel_of(desk).locator("li.latent-clip-lane").first.focus()
    card = desk.page.locator(".latent-clip-card")
    assert "winner 1" in card.inner_text() and "of seed" in card.inner_text()
    assert card.locator("img").count() == len(report["rounds"]), "its picture at each look"
    desk.page.keyboard.press("End")
    assert "dropped at draft" in card.inner_text()
    desk.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    desk.page.wait_for_timeout(300)
    desk.screenshot("search-light")
    panel_of(desk).get_by_text("Best first").click()
    assert [lane["id"] for lane in lanes(desk)] == list(range(12))


def test_choosing_by_hand_with_keys_and_clicks(desk, comfy):
    load(desk, comfy, 2, chooses="me")
    prompt_id = desk.start()
    wait_for_question(desk)
    offered = tiles(desk)
    assert sorted(offered) == list(range(6))
    assert tiles(desk, pressed=True) == [], "nothing is proposed"
    assert panel_of(desk).locator(".latent-clip-propose").is_hidden()
    go = panel_of(desk).locator(".latent-clip-go")
    assert go.is_disabled() and go.inner_text() == "Choose who goes on"
    assert panel_of(desk).locator(".latent-clip-tile img").count() == 6
    for key in ("1", "3", "3", "4"):  # the keys work at once, without a click
        desk.page.keyboard.press(key)
    panel_of(desk).locator(".latent-clip-tile").nth(5).click()
    assert tiles(desk, pressed=True) == [offered[0], offered[3], offered[5]]
    minutes, seconds = panel_of(desk).locator(".latent-clip-clock").inner_text().split(":")
    assert 240 < 60 * int(minutes) + int(seconds) <= 300
    desk.screenshot("search-ask")
    panel_of(desk).get_by_text("Go on with these 3").click()
    (report,) = report_of(comfy.wait(prompt_id))
    assert sorted(report["rounds"][0]["kept"]) == sorted([offered[0], offered[3], offered[5]])
    wait_for_end(desk)
    check_lanes(lanes(desk), report)


def test_taking_the_proposal(desk, comfy):
    load(desk, comfy, 3, chooses="reward proposes, I confirm", time_out=0.0)
    prompt_id = desk.start()
    wait_for_question(desk)
    proposed = desk.js("() => searches.at(-1).waiting.proposed")
    assert sorted(tiles(desk, pressed=True)) == sorted(proposed) != []
    assert panel_of(desk).locator(".latent-clip-clock").is_hidden(), "it waits for ever"
    panel_of(desk).locator(".latent-clip-tile[aria-pressed=true]").first.click()
    panel_of(desk).get_by_text("Take the proposal").click()
    (report,) = report_of(comfy.wait(prompt_id))
    assert sorted(report["rounds"][0]["kept"]) == sorted(proposed)


def test_reload_while_it_waits_and_a_cancel(desk, comfy):
    load(desk, comfy, 4, chooses="me")
    prompt_id = desk.start()
    wait_for_question(desk)
    offered = tiles(desk)
    desk.reload()
    if not desk.js("kind => app.graph.nodes.some(node => node.type === kind)", NODE):
        load(desk, comfy, 4, chooses="me")
    lay_out(desk)
    wait_for_question(desk)
    assert tiles(desk) == offered
    assert panel_of(desk).locator(".latent-clip-tile img").count() == 6
    desk.page.keyboard.press("1")
    assert tiles(desk, pressed=True) == offered[:1]
    desk.js("() => app.api.interrupt()")
    wait_for_end(desk, "interrupted")
    assert "interrupted" in status(desk)
    assert len(lanes(desk)) == 6, "what was seen stays"
    assert not comfy.wait(prompt_id).ok


def test_reward_decides_when_the_time_is_out(desk, comfy):
    load(desk, comfy, 5, chooses="me", time_out=2.0)
    prompt_id = desk.start()
    wait_for_question(desk)
    assert panel_of(desk).locator(".latent-clip-soon").count() == 1
    report_of(comfy.wait(prompt_id))
    wait_for_end(desk)
    assert panel_of(desk).locator(".latent-clip-choosing").is_hidden()


def test_answer_that_does_not_arrive_can_be_given_again(desk, comfy):
    load(desk, comfy, 6, chooses="me")
    prompt_id = desk.start()
    wait_for_question(desk)
    desk.page.keyboard.press("2")
    desk.page.route("**/latent_clip/choose", lambda route: route.abort())
    panel_of(desk).locator(".latent-clip-go").click()
    panel_of(desk).get_by_text("did not take the answer").wait_for()
    desk.page.unroute("**/latent_clip/choose")
    desk.errors.clear()  # the browser logs the lost request, as it should
    panel_of(desk).locator(".latent-clip-go").click()
    report_of(comfy.wait(prompt_id))


def test_answer_about_an_earlier_run_does_not_take_the_place_of_the_question(desk, comfy):
    """What the page asked the server while one search waited, comes when the next one does."""
    load(desk, comfy, 16, chooses="me")
    first, held = desk.start(), []
    wait_for_question(desk)
    desk.page.route("**/latent_clip/runs*", lambda route: held.append((route, route.fetch())))
    desk.js("() => { app.api.dispatchEvent(new CustomEvent('reconnected')); }")
    while len(held) < 2:  # the panels of both nodes ask
        desk.page.wait_for_timeout(50)
    assert all([run["prompt_id"] for run in answer.json()["runs"]] == [first] for _, answer in held)
    desk.page.keyboard.press("1")
    panel_of(desk).locator(".latent-clip-go").click()
    report_of(comfy.wait(first))
    wait_for_end(desk)
    desk.js("() => { app.graph.nodes.find(({ type }) => type === 'RandomNoise').widgets[0].value += 1; }")
    second = desk.start()
    wait_for_question(desk)
    for route, answer in held:
        route.fulfill(response=answer)
    desk.page.unroute("**/latent_clip/runs*")
    desk.page.wait_for_timeout(500)
    offered = tiles(desk)
    desk.page.keyboard.press("2")
    panel_of(desk).locator(".latent-clip-go").click()
    (report,) = report_of(comfy.wait(second))
    assert report["rounds"][0]["kept"] == offered[1:2]


def test_refused_answer_shows_what_is_asked_now(desk, comfy):
    """Something has told the page of a question that is none any more."""
    load(desk, comfy, 18, chooses="me")
    prompt_id = desk.start()
    wait_for_question(desk)
    desk.js("""() => app.api.dispatchEvent(new CustomEvent('latent_clip.search', {
        detail: { ...searches.at(-1), prompt_id: 'gone', serial: undefined },
    }))""")
    desk.settle()
    desk.page.keyboard.press("1")
    panel_of(desk).locator(".latent-clip-go").click()
    desk.page.wait_for_function("() => document.querySelectorAll('.latent-clip-tile[aria-pressed=true]').length === 0")
    desk.errors.clear()  # the browser logs the refused request, as it should
    offered = tiles(desk)
    desk.page.keyboard.press("3")
    panel_of(desk).locator(".latent-clip-go").click()
    (report,) = report_of(comfy.wait(prompt_id))
    assert report["rounds"][0]["kept"] == offered[2:3]


def test_another_client_is_not_asked(desk, chromium, comfy):
    other = ComfyPage(chromium, comfy, desk.renderer)
    try:
        other.page.set_default_timeout(60_000)
        load(other, comfy, 7, chooses="me")
        load(desk, comfy, 7, chooses="me")
        prompt_id = desk.start()
        wait_for_question(desk)
        with other.page.expect_response(lambda response: "/latent_clip/runs" in response.url) as asked:
            other.js("() => app.api.dispatchEvent(new CustomEvent('reconnected'))")
        assert asked.value.json() == {"runs": []}
        other.page.wait_for_timeout(300)
        assert "appear here" in panel_of(other).inner_text()
        desk.page.keyboard.press("1")
        panel_of(desk).locator(".latent-clip-go").click()
        report_of(comfy.wait(prompt_id))
        assert not other.errors
    finally:
        other.close()


def test_list_of_latents_asks_for_one_after_the_other(desk, comfy):
    load(desk, comfy, 8, chooses="me")
    desk.js("""kind => {
        const search = app.graph.nodes.find(({ type }) => type === kind);
        const slot = search.findInputSlot('latent_image');
        const source = search.getInputNode(slot);
        source.widgets.find(({ name }) => name === 'batch_size').value = 2;
        const list = LiteGraph.createNode('TestLatentList');
        app.graph.add(list);
        source['connect'](0, list, 0);
        list['connect'](0, search, slot);
    }""", NODE)  # fmt: skip
    desk.settle()
    prompt_id = desk.start()
    chosen = []
    for place in range(2):
        wait_for_question(desk)
        desk.page.wait_for_function(
            "place => searches.at(-1)?.waiting && searches.at(-1).list_index === place", arg=place
        )
        desk.settle()
        assert tiles(desk, pressed=True) == [], "the last answer is not taken for this one"
        desk.page.keyboard.press(str(place + 2))
        chosen.append(tiles(desk, pressed=True))
        panel_of(desk).locator(".latent-clip-go").click()
    reports = report_of(comfy.wait(prompt_id))
    assert [report["rounds"][0]["kept"] for report in reports] == chosen
    wait_for_end(desk)
    desk.page.wait_for_function("() => document.querySelector('.latent-clip-pager').innerText.includes('/2')")
    for report, title in zip(reports, ("Earlier in the list", "Later in the list")):
        turn = panel_of(desk).get_by_title(title)
        if turn.is_enabled():
            turn.click()
        check_lanes(lanes(desk), report)


def test_search_inside_a_subgraph(desk, comfy):
    load(desk, comfy, 9, chooses="me")
    desk.js("""kind => {
        const { subgraph } = app.graph.convertToSubgraph(new Set(app.graph.nodes.filter(node => node.type === kind)));
        app.canvas.setGraph(subgraph);
    }""", NODE)  # fmt: skip
    lay_out(desk)
    prompt_id = desk.start()
    wait_for_question(desk)
    desk.page.keyboard.press("1")
    panel_of(desk).locator(".latent-clip-go").click()
    comfy.wait(prompt_id)
    wait_for_end(desk)
    desk.js("() => app.canvas.setGraph(app.rootGraph)")


def test_whoever_looks_elsewhere_is_told(desk, comfy):
    load(desk, comfy, 10, chooses="me")
    desk.js("() => { app.canvas.ds.offset = [-5000, -5000]; app.canvas.setDirty(true, true); }")
    desk.page.wait_for_timeout(300)
    desk.start()
    desk.page.get_by_text("waits for your choice").first.wait_for()
    desk.screenshot("search-toast")


def test_whoever_has_another_workflow_open_is_told_and_asked_on_coming_back(desk, comfy):
    load(desk, comfy, 14, chooses="me", candidates=32, draft_steps=6, budget=0.9)
    workflow = desk.graph()
    desk.start()
    desk.js("() => app.graph.clear()")
    desk.page.get_by_text("Open the workflow that was queued").first.wait_for()
    desk.load(workflow)
    lay_out(desk)
    wait_for_question(desk)
    assert len(tiles(desk)) == 32
    desk.screenshot("search-ask-32")


def test_search_that_fails_says_so(desk, comfy):
    load(desk, comfy, 15)
    desk.js("""kind => {
        const search = app.graph.nodes.find(({ type }) => type === kind);
        const broken = LiteGraph.createNode('TestMakeLatent');
        broken.widgets.find(({ name }) => name === 'batch_size').value = 1;
        broken.widgets.find(({ name }) => name === 'std').value = 1e39;
        app.graph.add(broken);
        broken['connect'](0, search, search.findInputSlot('latent_image'));
    }""", NODE)  # fmt: skip
    result = desk.run()
    assert "no candidate that could be scored" in result.error
    wait_for_end(desk, "failed")
    assert "failed" in status(desk)
    assert [lane["looks"] for lane in lanes(desk)] == [["–"]] * 6
    desk.page.keyboard.press("Escape")  # the host's own message
    desk.errors.clear()


def test_sixty_four_candidates_and_the_saved_outputs(desk, comfy):
    load(desk, comfy, 11, candidates=64, keep=4, look="cuts", cuts="50% → 16")
    result = desk.run()
    (report,) = report_of(result)
    wait_for_end(desk)
    desk.settle()
    shown = lanes(desk)
    assert len(shown) == 64 and [lane["id"] for lane in shown[:4]] == report["winners"]
    panel_of(desk).locator("li.latent-clip-lane").first.focus()
    desk.page.keyboard.press("End")
    last = panel_of(desk).locator("li.latent-clip-lane").last
    assert last.evaluate("""row => {
        const [box, list] = [row.getBoundingClientRect(), row.closest('.latent-clip-lanes').getBoundingClientRect()];
        return row === document.activeElement && box.bottom <= list.bottom + 1 && box.top >= list.top;
    }""")
    desk.screenshot("search-64")

    desk.load(desk.graph())  # the nodes are new objects now
    lay_out(desk)
    assert "appear here" in panel_of(desk).inner_text()
    desk.js("outputs => { app.nodeOutputs = outputs; }", result.outputs)
    wait_for_end(desk)
    desk.settle()
    assert [(lane["id"], lane["looks"]) for lane in lanes(desk)] == [(lane["id"], lane["looks"]) for lane in shown]


def test_the_panel_leaves_no_trace_in_workflow_and_prompt(desk, comfy):
    load(desk, comfy, 12)
    (saved,) = [node for node in desk.graph()["nodes"] if node["type"] == NODE]
    assert len(saved["widgets_values"]) == 11
    (inputs,) = [node["inputs"] for node in desk.prompt().values() if node["class_type"] == NODE]
    assert "latent_clip_search" not in json.dumps(inputs)


def test_sidebar_lists_the_search(desk, comfy):
    load(desk, comfy, 13)
    desk.run()
    desk.js("() => app.extensionManager.sidebarTab.toggleSidebarTab('latent-clip-runs')")
    entry = desk.page.locator(".latent-clip-run").first
    assert "Search Best Images" in entry.inner_text()
    assert (
        "6 latents" in entry.inner_text()
        and "2 kept" in entry.inner_text()
        and "of the full cost" in entry.inner_text()
    )
    desk.screenshot("search-runs")
    desk.js("() => app.extensionManager.sidebarTab.toggleSidebarTab('latent-clip-runs')")
