import assert from "node:assert/strict";
import { test } from "node:test";

import {
    barLength,
    decimalsFor,
    extent,
    formatNumber,
    formatPercent,
    formatWeight,
    readReport,
    sortRows,
    thresholdAt,
    thresholdByKey,
} from "../../../js/lib/rows.js";

const scores = (values, more = {}) => ({ kind: "scores", scores: values, terms: [], thumbnails: [], kept: null, ...more });
const indices = (rows) => rows.map((row) => row.index);

test("a message that is no report is left alone", () => {
    for (const message of [undefined, null, {}, { kind: "trace" }, { kind: "scores" }, { kind: "classes", labels: 3 }]) {
        assert.equal(readReport(message), null);
    }
});

test("rows carry value, thumbnail and every term of their own latent", () => {
    const terms = [
        { name: "match: a fox", weight: 1, values: [0.2, 0.3] },
        { name: "match: snow", weight: -0.5, values: [0.1, 0] },
    ];
    const { kind, rows, selects } = readReport(scores([0.15, 0.3], { terms, thumbnails: ["data:a", "data:b"] }));
    assert.equal(kind, "scores");
    assert.equal(selects, false);
    assert.deepEqual(rows[1], {
        index: 1,
        value: 0.3,
        rank: 1,
        best: true,
        kept: null,
        blocked: false,
        reason: "",
        label: "",
        thumbnail: "data:b",
        details: [
            { name: "match: a fox", value: 0.3, weight: 1 },
            { name: "match: snow", value: 0, weight: -0.5 },
        ],
    });
});

test("sorted by score, equal scores in batch order and of one rank, missing numbers last", () => {
    const { rows } = readReport(scores([0.1, NaN, 0.4, 0.1, null, 0.4]));
    const sorted = sortRows(rows, "best");
    assert.deepEqual(indices(sorted), [2, 5, 0, 3, 1, 4]);
    assert.deepEqual(sorted.map((row) => row.rank), [1, 1, 3, 3, null, null]);
    assert.deepEqual(sorted.map((row) => row.best), [true, true, false, false, false, false]);
    assert.deepEqual(indices(sortRows(rows, "batch")), [0, 1, 2, 3, 4, 5]);
    assert.deepEqual(indices(rows), [0, 1, 2, 3, 4, 5], "sorting must not change its argument");
});

test("where all are equal, or there is only one, none is best", () => {
    assert.ok(readReport(scores([0.3, 0.3])).rows.every((row) => !row.best && row.rank === 1));
    assert.equal(readReport(scores([0.3])).rows[0].best, false);
    assert.deepEqual(readReport(scores([])).rows, []);
    assert.equal(readReport(scores([NaN])).rows[0].rank, null);
});

test("kept latents are marked, also when none is kept", () => {
    const report = readReport(scores([1, 2, 3], { kept: [2, 0] }));
    assert.equal(report.selects, true);
    assert.deepEqual(report.rows.map((row) => row.kept), [true, false, true]);
    assert.deepEqual(readReport(scores([1], { kept: [] })).rows.map((row) => row.kept), [false]);
});

test("missing thumbnails and short or missing terms leave holes, not errors", () => {
    const { rows } = readReport({ kind: "scores", scores: [1, 2], terms: [{ name: "t", weight: 1, values: [1] }] });
    assert.deepEqual(rows.map((row) => row.thumbnail), ["", ""]);
    assert.equal(rows[1].details[0].value, null);
});

test("classes: the value is the top label's probability, details go from likely to unlikely", () => {
    const { kind, rows } = readReport({
        kind: "classes",
        labels: ["a drawing", "a photo"],
        probabilities: [{ "a photo": 0.2, "a drawing": 0.8 }, { "a photo": 0.6, "a drawing": 0.4 }],
        thumbnails: ["data:a"],
    });
    assert.equal(kind, "classes");
    assert.deepEqual(rows.map((row) => [row.label, row.value, row.rank]), [["a drawing", 0.8, 1], ["a photo", 0.6, 2]]);
    assert.deepEqual(rows[0].details.map((detail) => detail.name), ["a drawing", "a photo"]);
});

test("the range ignores what is no number", () => {
    assert.deepEqual(extent([3, null, -1, NaN, Infinity, 2]), { min: -1, max: 3 });
    assert.equal(extent([null, NaN]), null);
    assert.equal(extent([]), null);
});

test("bars fill the axis from its lowest to its highest value", () => {
    const range = { min: -2, max: 2 };
    assert.deepEqual([-2, 0, 2, 5, null, NaN].map((value) => barLength(value, range)), [0, 0.5, 1, 1, 0, 0]);
    assert.equal(barLength(0.3, { min: 0.3, max: 0.3 }), 0.5);
    assert.equal(barLength(0.3, null), 0);
});

test("as many decimals as tell a batch apart", () => {
    assert.equal(decimalsFor([0.2, 0.31]), 3);
    assert.equal(decimalsFor([0.28, 0.281]), 5);
    assert.equal(decimalsFor([0.28, 0.28 + 1e-9]), 6);
    assert.equal(decimalsFor([-12, 30]), 2);
    assert.equal(decimalsFor([0.25]), 3);
    assert.equal(decimalsFor([0, 0]), 2);
    assert.equal(decimalsFor([null]), 4);
});

test("numbers as text", () => {
    assert.equal(formatNumber(-0.25, 3), "−0.250");
    assert.equal(formatNumber(-0.0001, 2), "0.00");
    assert.equal(formatNumber(null, 3), "–");
    assert.equal(formatWeight(1), "1");
    assert.equal(formatWeight(-0.05), "−0.05");
    assert.equal(formatWeight(null), "–");
});

test("percentages never round to certainty", () => {
    assert.deepEqual([0, 0.0001, 0.123, 0.9996, 1, null].map(formatPercent), ["0%", "<0.1%", "12.3%", ">99.9%", "100%", "–"]);
});

const gate = (more = {}) => ({
    kind: "safety",
    names: ["hate", "violence"],
    thresholds: [0, 2],
    scores: [[-1, 1.5], [0.5, 1], [null, null]],
    blocked: [false, true, true],
    reasons: ["", "hate 0.50 of 0.00", "could not be judged"],
    thumbnails: ["data:a", "data:b"],
    ...more,
});

test("a gate's row is its worst category, as far as it is over that category's own threshold", () => {
    const { kind, rows } = readReport(gate());
    assert.equal(kind, "safety");
    assert.deepEqual(rows.map(({ label, value, blocked }) => [label, value, blocked]), [
        ["violence", -0.5, false],
        ["hate", 0.5, true],
        ["could not be judged", null, true],
    ]);
    assert.ok(rows.every(({ best }) => !best), "no item of a gate is the best one");
    assert.deepEqual(rows[0].details[0], { name: "violence", value: 1.5, threshold: 2, weight: null });
    assert.equal(rows[2].reason, "could not be judged");
});

test("what could not be judged comes first, and a gate without categories has rows too", () => {
    assert.deepEqual(indices(sortRows(readReport(gate()).rows, "best")), [2, 1, 0]);
    assert.deepEqual(indices(sortRows(readReport(gate()).rows, "batch")), [0, 1, 2]);
    const { rows } = readReport(gate({ names: [], thresholds: [], scores: [[], [], []], thumbnails: [] }));
    assert.deepEqual(rows.map(({ label, value, details }) => [label, value, details]), ["", "hate 0.50 of 0.00", "could not be judged"].map((reason) => [reason, null, []]));
});

test("the threshold follows the pointer along the axis, in steps of the widget", () => {
    const range = { min: 0.1, max: 0.3 };
    assert.deepEqual([0, 0.5, 0.123456, 1, 7, -1].map((share) => thresholdAt(share, range)), [0.1, 0.2, 0.125, 0.3, 0.3, 0.1]);
});

test("keys move the threshold, also out of the axis", () => {
    const range = { min: 0.1, max: 0.3 };
    const keys = ["ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown", "PageUp", "PageDown", "Home", "End", "Tab"];
    assert.deepEqual(keys.map((key) => thresholdByKey(key, 0.3, range)), [0.302, 0.302, 0.298, 0.298, 0.32, 0.28, 0.1, 0.3, null]);
    assert.equal(thresholdByKey("ArrowRight", 0.2, { min: 0.2, max: 0.201 }), 0.201, "at least one step of the widget");
});
