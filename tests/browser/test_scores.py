"""The bars on Score, Select and Classify, in the real page after a real run."""

import pytest

from latent_clip.tests.checkpoints import save_latent_clip

NODES = {"LatentCLIPScore": 0, "LatentCLIPSelect": 1, "LatentCLIPClassify": 2}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def judging(seed: int, batch_size: int = 6, keep: int = 2) -> dict:
    """A batch that is scored by two terms, selected from, and classified."""
    return {
        "1": node("LatentCLIPLoader", file="bars.safetensors", dtype="fp32"),
        "2": node(
            "TestMakeLatent", batch_size=batch_size, channels=4, height=64, width=64, seed=seed, std=7.0,
            with_mask=False, with_batch_index=False,
        ),
        "3": node("LatentCLIPTextReward", latent_clip=["1", 0], text="a red fox", text_to_avoid="", weight=1.0, fit="tiles"),
        "4": node("LatentCLIPTextReward", latent_clip=["1", 0], text="blurry", text_to_avoid="", weight=-0.5, fit="tiles"),
        "5": node("LatentCLIPCombineRewards", **{"rewards.reward_0": ["3", 0], "rewards.reward_1": ["4", 0]}),
        "6": node("LatentCLIPScore", latent=["2", 0], reward=["5", 0]),
        "7": node(
            "LatentCLIPSelect", latent=["2", 0], reward=["5", 0], keep=keep, use_threshold=False, threshold=0.2, variety=0
        ),
        "8": node(
            "LatentCLIPClassify", latent=["2", 0], latent_clip=["1", 0], labels="a photo\na drawing", templates="a {}",
            route="", fit="tiles",
        ),
    }  # fmt: skip


@pytest.fixture
def desk(page, comfy):
    """The page, with a way to lay the three nodes out side by side and to look at one."""
    path = comfy.models_dir / "latent_clip" / "bars.safetensors"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        save_latent_clip(path)
    page.page.set_default_timeout(10_000)
    yield page
    page.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def lay_out(page) -> None:
    """Put the nodes with bars on the screen, the others below."""
    page.js(
        """places => {
            for (const node of app.canvas.graph.nodes) {
                const column = places[node.type];
                node.pos = column === undefined ? [20 + 300 * (Number(node.id) % 4), 900] : [20 + 440 * column, 80];
            }
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [60, 20];
            app.canvas.setDirty(true, true);
        }""",
        NODES,
    )
    page.page.wait_for_timeout(300)


def panel_of(page, kind: str):
    """The panel of the node of a kind, wherever the renderer has put it."""
    page.js("""() => {
        for (const node of app.canvas.graph.nodes) {
            const widget = node.widgets?.find(w => w.name === 'latent_clip_scores');
            if (widget) widget.element.dataset.node = node.type;
        }
    }""")
    return page.page.locator(f'.latent-clip-panel[data-node="{kind}"]')


def rows(panel) -> list[list[str]]:
    """[rank, index, label, value, mark] of every row, in the order shown."""
    parts = ("rank", "index", "label", "value", "mark")
    return [
        [(row.locator(f".latent-clip-{part}").text_content() or "").strip() for part in parts]
        for row in panel.locator("li").all()
    ]


def settles_to(panel, expected: list[list[str]]) -> bool:
    """Whether the rows become `expected` within two seconds: the page draws new outputs when it comes to it."""
    for _ in range(20):
        if (seen := rows(panel)) == expected:
            return True
        panel.page.wait_for_timeout(100)
    raise AssertionError(f"the rows are {seen}, expected {expected}")


def number(text: str) -> float:
    return float(text.replace("−", "-").rstrip("%"))


def load(page, seed: int, **options) -> None:
    """Open the graph; the seed is another one for each renderer, so that nothing comes from the host's cache."""
    page.load_prompt(judging(seed + 100 * (page.renderer == "nodes2"), **options))
    page.js("""() => {
        for (const node of app.graph.nodes) {
            const after = node.widgets?.find(widget => widget.name === 'control_after_generate');
            if (after) after.value = 'fixed';
        }
    }""")
    lay_out(page)


def run(page) -> dict:
    """Run what is open: node id → its ui data."""
    result = page.run()
    assert result.ok, result.error
    page.page.wait_for_timeout(200)
    return result.outputs


def test_rows_show_the_scores_that_the_node_returned(desk):
    load(desk, 1)
    outputs = run(desk)
    (report,) = outputs["6"]["latent_clip"]
    score = panel_of(desk, "LatentCLIPScore")
    shown = rows(score)
    order = sorted(range(6), key=lambda i: -report["scores"][i])
    assert [row[1] for row in shown] == [f"#{i}" for i in order]
    assert [number(row[3]) for row in shown] == pytest.approx([report["scores"][i] for i in order], abs=1e-3)
    assert shown[0][0] == "1"
    assert [row[4] for row in shown] == ["★"] + [""] * 5
    assert score.locator("img").count() == 6
    assert "6 latents" in score.inner_text()

    widths = [box["width"] for box in (fill.bounding_box() for fill in score.locator(".latent-clip-fill").all())]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(2, abs=0.5)

    score.locator("button").click()
    assert [row[1] for row in rows(score)] == [f"#{i}" for i in range(6)]
    desk.screenshot("scores-dark")
    desk.js("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    score.locator("li").nth(1).hover()
    desk.page.wait_for_timeout(300)
    card = desk.page.locator(".latent-clip-card")
    assert "a red fox" in card.inner_text()
    assert "× −0.5" in card.inner_text()
    desk.screenshot("scores-light")
    desk.page.mouse.move(5, 500)
    assert card.count() == 0


def test_select_marks_what_it_keeps(desk):
    load(desk, 2, keep=3)
    outputs = run(desk)
    (report,) = outputs["7"]["latent_clip"]
    shown = rows(panel_of(desk, "LatentCLIPSelect"))
    assert [row[1] for row in shown[:3]] == [f"#{i}" for i in report["kept"]]
    assert [row[4] for row in shown] == ["✓"] * 3 + [""] * 3
    assert panel_of(desk, "LatentCLIPSelect").locator(".latent-clip-dropped").count() == 3
    assert "3 kept" in panel_of(desk, "LatentCLIPSelect").inner_text()


def test_combine_rewards_shows_what_each_term_added(desk):
    load(desk, 12)
    panel = desk.page.locator(".latent-clip-composition")
    assert "after a run" in panel.inner_text()
    outputs = run(desk)
    (report,) = outputs["6"]["latent_clip"]
    best = max(range(6), key=lambda i: report["scores"][i])
    lines = panel.locator("li").all()
    assert [line.locator(".latent-clip-part-name").inner_text() for line in lines] == [
        f"Parts of the best, #{best}", *(term["name"] for term in report["terms"])
    ]  # fmt: skip
    assert [line.locator(".latent-clip-part-weight").inner_text() for line in lines[1:]] == ["× 1", "× −0.5"]
    parts = [term["weight"] * term["values"][best] for term in report["terms"]]
    shown = [number(line.locator(".latent-clip-value").inner_text()) for line in lines]
    assert shown == pytest.approx([report["scores"][best], *parts], abs=1e-3)
    desk.js("""() => {
        const node = app.graph.nodes.find(node => node.type === 'LatentCLIPCombineRewards');
        app.canvas.ds.offset = [500 - node.pos[0], 300 - node.pos[1]];
        app.canvas.setDirty(true, true);
    }""")
    desk.page.wait_for_timeout(500)
    desk.screenshot("composer")


def test_threshold_is_a_line_to_drag(desk):
    load(desk, 9)
    outputs = run(desk)
    scores = sorted(outputs["7"]["latent_clip"][0]["scores"])
    select = panel_of(desk, "LatentCLIPSelect")
    line = select.locator(".latent-clip-threshold")
    assert line.is_hidden()
    set_widget = """([name, value]) => {
        const node = app.graph.nodes.find(node => node.type === 'LatentCLIPSelect');
        const widget = node.widgets.find(widget => widget.name === name);
        widget.value = value;
        widget.callback?.(value, app.canvas, node);
    }"""
    threshold = (
        "() => app.graph.nodes.find(n => n.type === 'LatentCLIPSelect').widgets.find(w => w.name === 'threshold').value"
    )
    desk.js(set_widget, ["threshold", scores[0]])
    desk.js(set_widget, ["use_threshold", True])
    line.wait_for()
    assert "6 of 6 reach it" in select.inner_text() or "5 of 6 reach it" in select.inner_text()  # the widget rounds

    bar = select.locator(".latent-clip-bar").first.bounding_box()
    at = line.bounding_box()
    node_before = select.bounding_box()
    desk.page.mouse.move(at["x"] + at["width"] / 2, at["y"] + 40)
    desk.page.mouse.down()
    desk.page.mouse.move(bar["x"] + bar["width"] / 2, at["y"] + 45, steps=5)
    desk.page.mouse.up()
    middle = (scores[0] + scores[-1]) / 2
    assert desk.js(threshold) == pytest.approx(middle, abs=0.02 * (scores[-1] - scores[0]) + 1e-3)
    assert f"{sum(score >= desk.js(threshold) for score in scores)} of 6 reach it" in select.inner_text()
    assert select.bounding_box() == node_before, "the node must not come along"
    assert desk.prompt()["7"]["inputs"]["threshold"] == desk.js(threshold)
    desk.screenshot("scores-threshold")

    line.focus()
    before = desk.js(threshold)
    desk.page.keyboard.press("ArrowRight")
    assert desk.js(threshold) > before
    desk.page.keyboard.press("Home")
    assert desk.js(threshold) == pytest.approx(scores[0], abs=1e-3)
    desk.js(set_widget, ["use_threshold", False])
    assert line.is_hidden()


def test_gate_shows_the_worst_category_and_hides_what_it_blocked(desk):
    load(desk, 10)
    desk.js("""() => {
        const node = LiteGraph.createNode('LatentCLIPSafetyGate');
        app.graph.add(node);
        node.pos = [20, 80];
        for (const other of app.graph.nodes) if (other !== node) other.pos = [900, other.pos[1]];
        const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 8 });
        const context = canvas.getContext('2d');
        for (let i = 0; i < 64; i++) {
            context.fillStyle = `hsl(${i * 40} 80% 50%)`;
            context.fillRect(i % 8, Math.floor(i / 8), 1, 1);
        }
        const picture = canvas.toDataURL();
        node.onExecuted({ latent_clip: [{
            kind: 'safety', names: ['hate', 'violence', 'self-harm'], thresholds: [0, 1.5, 0],
            scores: [[-4.2, -1, -3], [-2, 3.25, -0.1], [null, null, null]],
            blocked: [false, true, true], reasons: ['', 'violence 3.25 of 1.50', 'could not be judged: NaN'],
            thumbnails: [picture, picture, picture],
        }] });
    }""")
    desk.page.wait_for_timeout(300)
    panel = panel_of(desk, "LatentCLIPSafetyGate")
    assert [(row[1], row[2], row[3], row[4]) for row in rows(panel)] == [
        ("#2", "could not be judged: NaN", "–", "✕"),
        ("#1", "violence", "1.75", "✕"),
        ("#0", "violence", "−2.50", ""),
    ]
    assert "3 latents, 2 blocked" in panel.inner_text()
    assert "Worst first" in panel.inner_text()
    filters = [img.evaluate("img => getComputedStyle(img).filter") for img in panel.locator("img").all()]
    assert filters == ["blur(4px)", "blur(4px)", "none"]
    panel.locator("li").nth(1).hover()
    card = desk.page.locator(".latent-clip-card")
    assert "#1 · blocked" in card.inner_text()
    assert "3.25 of 1.50" in card.inner_text()
    assert "self-harm" in card.inner_text()
    assert card.locator("img").evaluate("img => getComputedStyle(img).filter") == "blur(4px)"
    desk.screenshot("scores-gate")


def test_classify_shows_the_label_and_its_probability(desk):
    load(desk, 3)
    outputs = run(desk)
    (report,) = outputs["8"]["latent_clip"]
    classes = panel_of(desk, "LatentCLIPClassify")
    for _, index, label, value, _ in rows(classes):
        i = int(index[1:])
        assert label == report["labels"][i]
        assert number(value) == pytest.approx(100 * report["probabilities"][i][label], abs=0.06)
    assert "0% to 100%" in classes.inner_text()


def test_many_latents_scroll_inside_the_node(desk):
    load(desk, 4, batch_size=70)
    score = panel_of(desk, "LatentCLIPScore")
    before = score.bounding_box()
    outputs = run(desk)
    assert len(outputs["6"]["latent_clip"][0]["thumbnails"]) == 64
    assert score.locator("li").count() == 70
    assert score.bounding_box() == before, "results must not resize or move anything"
    score.locator("li").first.click()
    desk.page.keyboard.press("End")
    assert score.locator("li").last.evaluate("row => row === document.activeElement")
    desk.screenshot("scores-many")


def test_one_latent_has_nothing_to_sort(desk):
    load(desk, 5, batch_size=1, keep=1)
    run(desk)
    score = panel_of(desk, "LatentCLIPScore")
    assert len(rows(score)) == 1
    assert score.locator("button").is_hidden()
    assert "All equal" in score.inner_text()


def test_the_panel_leaves_no_trace_in_workflow_and_prompt(desk):
    prompt = judging(6)
    desk.load_prompt(prompt)
    saved = {n["type"]: n for n in desk.graph()["nodes"]}
    assert saved["LatentCLIPScore"].get("widgets_values", []) == ["mean"]
    assert saved["LatentCLIPSelect"]["widgets_values"] == [2, False, 0.2, 0, "mean"]
    assert saved["LatentCLIPClassify"]["widgets_values"] == ["a photo\na drawing", "a {}", "", "tiles"]
    defaults = {"LatentCLIPScore": {"frames": "mean"}, "LatentCLIPSelect": {"frames": "mean"}}
    assert {key: n["inputs"] for key, n in desk.prompt().items()} == {
        key: defaults.get(n["class_type"], {}) | n["inputs"] for key, n in prompt.items()
    }
    desk.load(desk.graph())
    assert desk.prompt()["7"]["inputs"]["threshold"] == 0.2


def test_results_return_with_the_outputs_of_an_earlier_run(desk):
    load(desk, 7)
    outputs = run(desk)
    before = rows(panel_of(desk, "LatentCLIPScore"))
    desk.load(desk.graph())  # the nodes are new objects now, as after a change of the workflow tab
    lay_out(desk)
    assert rows(panel_of(desk, "LatentCLIPScore")) == []
    desk.js("outputs => { app.nodeOutputs = outputs; }", outputs)
    assert settles_to(panel_of(desk, "LatentCLIPScore"), before)

    desk.load(desk.graph())
    lay_out(desk)
    run(desk)  # nothing has changed, so the host sends what it has kept
    assert settles_to(panel_of(desk, "LatentCLIPScore"), before)


def test_bars_inside_a_subgraph(desk):
    load(desk, 8)
    desk.js("""() => {
        const inside = app.graph.nodes.filter(n => /Score|Select|Classify/.test(n.type));
        const { subgraph } = app.graph.convertToSubgraph(new Set(inside));
        app.canvas.setGraph(subgraph);
    }""")
    lay_out(desk)
    outputs = run(desk)
    before = rows(panel_of(desk, "LatentCLIPScore"))
    assert len(before) == 6
    desk.screenshot("scores-subgraph")

    desk.js("() => app.canvas.setGraph(app.rootGraph)")
    desk.load(desk.graph())
    desk.js("() => app.canvas.setGraph(app.rootGraph.subgraphs.values().next().value)")
    lay_out(desk)
    assert rows(panel_of(desk, "LatentCLIPScore")) == []
    desk.js(
        """outputs => {
        const { id } = app.canvas.graph;
        app.nodeOutputs = Object.fromEntries(
            Object.entries(outputs).map(([key, output]) => [`${id}:${key.split(":").at(-1)}`, output]),
        );
    }""",
        outputs,
    )
    assert settles_to(panel_of(desk, "LatentCLIPScore"), before)
    desk.js("() => app.canvas.setGraph(app.rootGraph)")


def test_list_of_latents_is_one_report(desk):
    """The host runs the nodes once for each latent; in 0.1 only the first was shown."""
    load(desk, 21, batch_size=3, keep=1)
    desk.js("""() => {
        const node = LiteGraph.createNode('TestLatentList');
        app.graph.add(node);
        const made = app.graph.nodes.find(({ type }) => type === 'TestMakeLatent');
        made['connect'](0, node, 0);
        for (const reader of app.graph.nodes.filter(({ type }) => /^LatentCLIP(Score|Select|Classify)$/.test(type)))
            node['connect'](0, reader, reader.findInputSlot('latent'));
    }""")
    desk.settle()
    outputs = run(desk)
    scores = [message["scores"][0] for message in outputs["6"]["latent_clip"]]
    assert len(scores) == len(outputs["7"]["latent_clip"]) == len(outputs["8"]["latent_clip"]) == 3
    panel = panel_of(desk, "LatentCLIPScore")
    panel.locator("li").nth(2).wait_for()
    shown = rows(panel)
    order = sorted(range(3), key=lambda i: -scores[i])
    assert [row[1] for row in shown] == [f"#{i}" for i in order]
    assert [number(row[3]) for row in shown] == pytest.approx([scores[i] for i in order], abs=1e-3)
    assert [row[4] for row in shown] == ["★", "", ""]
    assert "3 latents, 3 kept" in panel_of(desk, "LatentCLIPSelect").inner_text()
    assert panel_of(desk, "LatentCLIPClassify").locator("li").count() == 3


def test_graph_that_ends_in_select_runs(desk):
    """The server puts a Preview as Text behind it, which the page has no node for, and that does no harm."""
    load(desk, 22)
    desk.js("""() => {
        for (const node of app.graph.nodes.filter(({ type }) => /^LatentCLIP(Score|Classify)$/.test(type))) app.graph.remove(node);
    }""")
    desk.settle()
    outputs = run(desk)
    assert outputs["7"]["latent_clip"][0]["kept"]
    panel_of(desk, "LatentCLIPSelect").locator("li").nth(5).wait_for()
