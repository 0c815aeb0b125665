import assert from "node:assert/strict";
import { test } from "node:test";

import { livePanels } from "../../../js/lib/live.js";

const panelOf = (running = []) => ({
    added: [], ended: null, running,
    add(run) { this.added.push(run.prompt_id); },
    end(runs, before) { this.ended = { runs: runs.map((run) => run.prompt_id), before }; },
});

function world() {
    const inner = { id: 7, subgraph: null };
    const box = { id: 5, subgraph: { nodes: [inner] } };
    const root = { nodes: [box, { id: 8 }], subgraphs: new Map([["u-u", { nodes: [inner] }]]) };
    const panels = livePanels(() => root);
    return { panels, root, inner, box, other: root.nodes[1] };
}

const catchUp = (panels, runs) =>
    panels.catchUp(async () => runs, (panel) => [...panel.running], (panel, found, before) => panel.end(found, before));

test("a run finds the panel of its display node", () => {
    const { panels, inner, box } = world();
    const [inside, outside] = [panelOf(), panelOf()];
    panels.set(inner, inside);
    panels.set(box, outside);
    assert.equal(panels.of({ node: "5:7" }), inside);
    assert.equal(panels.of({ node: "5.0.1", display_node: "5" }), outside);
    assert.equal(panels.of({ node: "9" }), undefined);
    assert.deepEqual(panels.open(), [outside, inside]);
});

test("catching up adds runs to their panels and ends the others", async () => {
    const { panels, box, other } = world();
    const [one, two] = [panelOf(["a"]), panelOf(["b"])];
    panels.set(box, one);
    panels.set(other, two);
    await catchUp(panels, [{ prompt_id: "a", node: "5" }, { prompt_id: "x", node: "99" }]);
    assert.deepEqual(one.added, ["a"]);
    assert.deepEqual(two.added, []);
    assert.deepEqual(two.ended, { runs: ["a", "x"], before: ["b"] });
});

test("a run that begins during the request is not among those before", async () => {
    const { panels, box, other } = world();
    const [one, late] = [panelOf(), panelOf(["new"])];
    panels.set(box, one);
    const done = panels.catchUp(
        async () => { one.running.push("new"); panels.set(other, late); return []; },
        (panel) => [...panel.running], (panel, found, before) => panel.end(found, before),
    );
    await done;
    assert.deepEqual(one.ended.before, []);
    assert.deepEqual(late.ended.before, []);
});

test("without an answer nothing changes", async () => {
    const { panels, box } = world();
    const one = panelOf(["a"]);
    panels.set(box, one);
    await catchUp(panels, null);
    assert.equal(one.ended, null);
    assert.deepEqual(one.added, []);
});
