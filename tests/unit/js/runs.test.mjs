import assert from "node:assert/strict";
import { test } from "node:test";

import { formatBest, MOST_RUNS, readRun, withRun } from "../../../js/lib/runs.js";

const about = { node: "5:7", title: "Mine", time: 12 };

test("what is not ours is no run", () => {
    for (const other of [undefined, {}, { images: [] }, { kind: "other" }]) assert.equal(readRun(other, about), null);
});

test("a ReNO run shows its best item, its terms and its settings", () => {
    const run = readRun({
        kind: "reno",
        settings: { iterations: 50, learning_rate: 5, optimizer: "nesterov" },
        terms: [{ name: "match: fox", weight: 1 }, { name: "blurry", weight: -0.5 }],
        iterations: [{ index: 0 }],
        best: [0.1, null, 0.3],
        best_iteration: [0, 0, 0],
        thumbnails: ["a", "b", "c"],
    }, about);
    assert.deepEqual(run, {
        ...about, kind: "reno", thumbnail: "c", count: 3, best: 0.3, blocked: 0,
        lines: ["match: fox", "blurry × −0.5", "nesterov, lr 5, 1/50"],
    });
});

test("scores, classes and gates", () => {
    const scores = readRun({ kind: "scores", scores: [null, -1, -2], terms: [{ name: "t", weight: 1, values: [] }], thumbnails: ["", "b"] }, about);
    assert.deepEqual([scores.best, scores.thumbnail, scores.lines], [-1, "b", ["t"]]);
    const classes = readRun({ kind: "classes", labels: ["cat", "dog", "cat"], probabilities: [] }, about);
    assert.deepEqual([classes.count, classes.best, classes.lines], [3, null, ["cat", "dog"]]);
    const gate = readRun({ kind: "safety", names: ["hate"], thresholds: [0], scores: [[1]], blocked: [true], thumbnails: ["x"] }, about);
    assert.deepEqual([gate.blocked, gate.thumbnail, gate.best], [1, "", null], "a blocked picture is not shown here");
});

test("an empty batch has no best", () => {
    assert.equal(readRun({ kind: "scores", scores: [] }, about).best, null);
    assert.equal(formatBest(null), "–");
    assert.equal(formatBest(0.25), "0.250");
});

test("the newest run is first, and the list does not grow without end", () => {
    let runs = [];
    for (let i = 0; i < MOST_RUNS + 5; i++) runs = withRun(runs, i);
    assert.equal(runs.length, MOST_RUNS);
    assert.equal(runs[0], MOST_RUNS + 4);
});
