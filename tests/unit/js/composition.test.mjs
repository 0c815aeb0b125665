import assert from "node:assert/strict";
import { test } from "node:test";

import { readComposition, shares } from "../../../js/lib/composition.js";

const scored = {
    kind: "scores",
    scores: [0.1, 0.7, null],
    terms: [
        { name: "match", weight: 2, values: [0.2, 0.4, null] },
        { name: "avoid", weight: -0.5, values: [0.6, 0.2, null] },
    ],
};

const optimised = {
    kind: "reno",
    terms: [{ name: "match", weight: 2 }, { name: "plain", weight: 1 }],
    iterations: [
        { index: 0, items: [0, 1], terms: { match: [0.1, 0.2], plain: [0, 0] } },
        { index: 1, items: [1], terms: { match: [0.5], plain: [null] } },
    ],
    best: [0.2, 1],
    best_iteration: [0, 1],
};

test("the best item of a scored batch, term by term", () => {
    assert.deepEqual(readComposition(scored), {
        index: 1,
        total: 0.7,
        parts: [
            { name: "match", weight: 2, value: 0.4, part: 0.8 },
            { name: "avoid", weight: -0.5, value: 0.2, part: -0.1 },
        ],
    });
});

test("the best item of a ReNO run, at the iteration that was its best", () => {
    assert.deepEqual(readComposition(optimised), {
        index: 1,
        total: 1,
        parts: [
            { name: "match", weight: 2, value: 0.5, part: 1 },
            { name: "plain", weight: 1, value: null, part: null },
        ],
    });
});

test("what has no terms or no number has no composition", () => {
    assert.equal(readComposition(undefined), null);
    assert.equal(readComposition({ kind: "classes", labels: ["cat"], probabilities: [{ cat: 1 }] }), null);
    assert.equal(readComposition({ ...scored, scores: [null, null] }), null);
    assert.equal(readComposition({ ...optimised, best: [null, null] }), null);
    assert.equal(readComposition({ ...optimised, iterations: [] }), null);
});

test("bars are measured against the largest part", () => {
    assert.deepEqual(shares([{ part: 0.8 }, { part: -0.2 }, { part: null }]), [1, -0.25, 0]);
    assert.deepEqual(shares([{ part: 0 }, { part: null }]), [0, 0]);
});
