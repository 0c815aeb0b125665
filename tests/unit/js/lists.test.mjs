import assert from "node:assert/strict";
import { test } from "node:test";

import { readComposition } from "../../../js/lib/composition.js";
import { readReport } from "../../../js/lib/rows.js";
import { readRun } from "../../../js/lib/runs.js";
import { addEvent, readTrace, seriesOf, toCsv } from "../../../js/lib/trace.js";

const about = { node: "7", title: "Mine", time: 1 };
const scores = (values, more = {}) => ({
    kind: "scores", scores: values, kept: null, thumbnails: values.map(String),
    terms: [{ name: "fox", weight: 2, values: values.map((value) => value / 2) }], ...more,
});

test("the rows of a list of latents are numbered on and ranked together", () => {
    const { rows, selects } = readReport([scores([0.2, 0.4], { kept: [1] }), scores([0.9], { kept: [] }), scores([0.1], { kept: [0] })]);
    assert.deepEqual(rows.map(({ index, value, rank, kept }) => [index, value, rank, kept]), [
        [0, 0.2, 3, false], [1, 0.4, 2, true], [2, 0.9, 1, false], [3, 0.1, 4, true],
    ]);
    assert.equal(selects, true);
    assert.deepEqual(rows.map(({ thumbnail }) => thumbnail), ["0.2", "0.4", "0.9", "0.1"]);
    assert.deepEqual(rows[2].details, [{ name: "fox", value: 0.45, weight: 2 }]);
});

test("a latent that is blocked is seen wherever in the list it is", () => {
    const gate = (blocked, score) => ({
        kind: "safety", names: ["hate"], thresholds: [0], scores: [[score]], blocked: [blocked], reasons: [blocked ? "hate" : ""], thumbnails: [""],
    });
    const messages = [gate(false, -3), gate(false, -2), gate(true, 1)];
    const { rows } = readReport(messages);
    assert.deepEqual(rows.map(({ index, blocked, best }) => [index, blocked, best]), [[0, false, false], [1, false, false], [2, true, false]]);
    const run = readRun(messages, about);
    assert.deepEqual([run.count, run.blocked], [3, 1]);
});

test("classes keep the labels of each, also where the list of labels differs", () => {
    const { rows } = readReport([
        { kind: "classes", labels: ["cat"], probabilities: [{ cat: 0.7, dog: 0.3 }], thumbnails: [] },
        { kind: "classes", labels: ["car"], probabilities: [{ car: 0.9, bus: 0.1 }], thumbnails: [] },
    ]);
    assert.deepEqual(rows.map(({ label, value, rank }) => [label, value, rank]), [["cat", 0.7, 2], ["car", 0.9, 1]]);
});

test("one message, a list of one and nothing", () => {
    assert.deepEqual(readReport([scores([1, 2])]), readReport(scores([1, 2])));
    assert.equal(readReport([]), null);
    assert.equal(readTrace([]), null);
    assert.equal(readRun(undefined, about), null);
    assert.equal(readReport([{ kind: "reno", iterations: [] }]), null);
});

/** A run of `count` items over some iterations, one per second. */
const reno = (rewards, more = {}) => ({
    kind: "reno", settings: { iterations: 3 }, terms: [{ name: "fox", weight: 1 }],
    iterations: rewards.map((values, index) => ({
        index, items: values.map((_, item) => item), rewards: values, terms: { fox: values }, norms: values.map(() => 8), gradient_norms: [], seconds: index + 1,
    })),
    best: rewards.at(-1), best_iteration: rewards.at(-1).map(() => rewards.length - 1), stop_reasons: rewards.at(-1).map(() => "iterations"),
    thumbnails: [], first_thumbnails: [], ...more,
});
const LIST = [reno([[1, 2], [3, 4], [5, 6]], { thumbnails: ["a", "b"] }), reno([[7], [8]], { thumbnails: ["c"], stop_reasons: ["stopped"] })];

test("the curves of a list of runs are drawn side by side", () => {
    const trace = readTrace(LIST);
    assert.deepEqual(trace.best, [5, 6, 8]);
    assert.deepEqual(trace.bestIteration, [2, 2, 1]);
    assert.deepEqual(trace.stopReasons, ["iterations", "iterations", "stopped"]);
    assert.deepEqual(trace.thumbnails, ["a", "b", "c"]);
    assert.equal(trace.ended, "done");
    assert.deepEqual(seriesOf(trace)[0].values, [[1, 3, 5], [2, 4, 6], [7, 8, null]]);
    assert.deepEqual(trace.iterations.map(({ seconds }) => seconds), [2, 4, 5], "the time of all runs");
});

test("a missing thumbnail does not move those of the next run", () => {
    const trace = readTrace([reno([[1, 2]], { thumbnails: ["a"] }), reno([[3]], { thumbnails: ["c"] })]);
    assert.deepEqual(trace.thumbnails, ["a", "", "c"]);
});

test("terms that only one of the runs has", () => {
    const other = reno([[9]], { terms: [{ name: "owl", weight: 0.5 }] });
    other.iterations[0].terms = { owl: [18] };
    const [, fox, owl] = seriesOf(readTrace([LIST[1], other]));
    assert.deepEqual([fox.name, fox.values], ["fox", [[7, 8], [null, null]]]);
    assert.deepEqual([owl.name, owl.values], ["owl", [[null, null], [18, null]]]);
});

test("a table has the seconds of the run that a line belongs to", () => {
    const lines = toCsv(readTrace(LIST)).trim().split("\r\n").map((line) => line.split(",").slice(0, 4));
    assert.deepEqual(lines, [
        ["iteration", "item", "seconds", "reward"],
        ["0", "0", "1", "1"], ["0", "1", "1", "2"], ["0", "2", "1", "7"],
        ["1", "0", "2", "3"], ["1", "1", "2", "4"], ["1", "2", "2", "8"],
        ["2", "0", "3", "5"], ["2", "1", "3", "6"],
    ]);
});

test("the sidebar sums a list up as one run", () => {
    const run = readRun(LIST, about);
    assert.deepEqual([run.count, run.best, run.thumbnail], [3, 8, "c"]);
    assert.deepEqual(readRun([scores([1]), scores([2])], about).lines, ["fox × 2"], "a term is listed once");
});

test("Combine Rewards shows the best of all, by its own weights", () => {
    const parts = readComposition([scores([0.2, 0.4]), scores([0.9]), scores([null])]);
    assert.deepEqual([parts.index, parts.total, parts.parts], [2, 0.9, [{ name: "fox", weight: 2, value: 0.45, part: 0.9 }]]);
    assert.deepEqual([readComposition(LIST).index, readComposition(LIST).total], [2, 8]);
    assert.equal(readComposition([scores([null])]), null);
});

test("a live run of the next latent of a list begins afresh", () => {
    const event = (index, start, values, thumbnails) => ({
        ...reno(values, { thumbnails }), node: "7", prompt_id: "p", list_index: index, start, ended: "",
    });
    const first = addEvent(null, event(0, 0, [[1], [2]], ["a"]));
    const second = addEvent(first, event(1, 0, [[5]], []));
    assert.deepEqual(second.iterations.map(({ rewards }) => rewards), [[5]]);
    assert.deepEqual(second.thumbnails, [], "not the picture of the latent before");
    assert.equal(addEvent(first, event(1, 1, [[5]], [])), null, "its beginning is missing");
});
