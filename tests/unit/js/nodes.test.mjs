import assert from "node:assert/strict";
import { test } from "node:test";

import { nodeByExecutionId, nodesByLocator } from "../../../js/lib/nodes.js";

const inner = { nodes: [{ id: 7, name: "inside" }] };
const root = { nodes: [{ id: 5, name: "box", subgraph: inner }, { id: 7, name: "outside" }], subgraphs: new Map([["u-u", inner]]) };

test("an execution id leads through subgraphs", () => {
    assert.equal(nodeByExecutionId(root, "7").name, "outside");
    assert.equal(nodeByExecutionId(root, 7).name, "outside");
    assert.equal(nodeByExecutionId(root, "5:7").name, "inside");
    for (const gone of ["8", "5:8", "7:7", "9:7", ""]) assert.equal(nodeByExecutionId(root, gone), null);
});

test("every node has the key of its output", () => {
    assert.deepEqual([...nodesByLocator(root)].map(([key, { name }]) => [key, name]), [["5", "box"], ["7", "outside"], ["u-u:7", "inside"]]);
});
