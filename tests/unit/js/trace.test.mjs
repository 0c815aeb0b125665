import assert from "node:assert/strict";
import { test } from "node:test";

import {
    addEvent,
    columnsOf,
    formatDuration,
    gain,
    itemsOf,
    pathOf,
    rangeOf,
    readTrace,
    seriesOf,
    shortNames,
    speedOf,
    toCsv,
    totalOf,
} from "../../../js/lib/trace.js";

/** Iteration `index` of two items, the second of which ends after iteration 1. */
const iteration = (index) => ({
    index,
    items: index < 2 ? [0, 1] : [0],
    rewards: index < 2 ? [index, 10 + index] : [index],
    terms: { "match: a, b": index < 2 ? [2 * index, 0] : [2 * index], plain: index < 2 ? [null, 1] : [3] },
    norms: [8, 8],
    gradient_norms: [],
    seconds: index / 4,
});

const message = (start, end, more = {}) => ({
    kind: "reno",
    node: "7",
    prompt_id: "p",
    settings: { iterations: 10 },
    terms: [{ name: "match: a, b", weight: 1 }, { name: "plain", weight: -0.5 }],
    start,
    iterations: Array.from({ length: end - start }, (_, i) => iteration(start + i)),
    best: [1, 11],
    best_iteration: [1, 1],
    stop_reasons: ["", "patience"],
    thumbnails: ["data:a"],
    ended: "",
    ...more,
});

const watching = (end, terms) => {
    const watched = message(0, end, { watch: terms });
    watched.iterations = watched.iterations.map((one) => ({ ...one, watch: one.items.map((item) => 100 * item + one.index) }));
    return watched;
};

test("a reward that is only watched has a line and a column of its own", () => {
    const trace = readTrace(watching(3, [{ name: "pixels match: a", weight: 1 }, { name: "more", weight: 2 }]));
    const last = seriesOf(trace).at(-1);
    assert.deepEqual([last.name, last.watched, last.weight], ["pixels match: a + more", true, null]);
    assert.deepEqual(last.values, [[0, 1, 2], [100, 101, null]]);
    assert.equal(seriesOf(trace).length, 4);
    const lines = toCsv(trace).trim().split("\r\n").map((line) => line.split(","));
    assert.equal(lines[0].at(-1), "watch");
    assert.deepEqual(lines.slice(1).map((cells) => cells.at(-1)), ["0", "100", "1", "101", "2"]);
    const single = readTrace({ ...watching(2, [{ name: "more", weight: 1 }]), terms: [{ name: "plain", weight: 1 }] });
    assert.deepEqual(seriesOf(single).map(({ name }) => name), ["plain", "more"]);
});

test("samplers that lose the optimised noise are named", () => {
    assert.deepEqual(readTrace(message(0, 2, { noise_lost_with: ["lcm", "ddpm"] })).noiseLostWith, ["lcm", "ddpm"]);
    assert.deepEqual(readTrace(message(0, 2)).noiseLostWith, []); // while it runs, and in results of before
});

test("without a watch nothing says so", () => {
    const trace = readTrace(message(0, 3));
    assert.ok(!seriesOf(trace).some(({ watched }) => watched));
    assert.ok(!toCsv(trace).includes("watch"));
});

test("what is no trace is left alone", () => {
    for (const other of [undefined, null, {}, { kind: "scores" }, { kind: "reno" }]) assert.equal(readTrace(other), null);
});

test("a finished trace has ended, whatever it does not say", () => {
    const { kind, iterations, best } = message(0, 2);
    const trace = readTrace({ kind, iterations, best });
    assert.equal(trace.ended, "done");
    assert.deepEqual(trace.thumbnails, []);
    assert.equal(itemsOf(trace), 2);
    assert.equal(totalOf(trace), 2);
});

test("events join to one trace, and an event that comes twice changes nothing", () => {
    let trace = addEvent(null, message(0, 1));
    trace = addEvent(trace, message(1, 3));
    assert.deepEqual(trace.iterations.map(({ index }) => index), [0, 1, 2]);
    assert.equal(addEvent(trace, message(1, 3)).iterations.length, 3);
    assert.equal(totalOf(trace), 10);
    assert.deepEqual(addEvent(trace, message(3, 4, { thumbnails: [] })).thumbnails, ["data:a"], "none means: as before");
});

test("a gap is noticed: after a reload, and in another run", () => {
    assert.equal(addEvent(null, message(3, 4)), null);
    const trace = addEvent(null, message(0, 3));
    assert.equal(addEvent(trace, message(5, 6)), null);
    assert.equal(addEvent(trace, message(3, 4, { prompt_id: "q" })), null);
    assert.equal(addEvent(trace, message(0, 1, { prompt_id: "q" })).iterations.length, 1);
    assert.equal(addEvent(trace, { kind: "scores" }), null);
});

test("an event that a later one has overtaken changes nothing, whichever prompt it is of", () => {
    const trace = addEvent(null, message(0, 3, { serial: 5 }));
    assert.equal(addEvent(trace, message(0, 2, { serial: 4 })), trace);
    assert.equal(addEvent(trace, message(0, 2, { prompt_id: "q", serial: 4 })), trace);
    assert.equal(addEvent(trace, message(0, 2, { prompt_id: "q", serial: 6 })).promptId, "q");
});

test("a run that starts again, as after running out of memory, replaces what was there", () => {
    const trace = addEvent(addEvent(null, message(0, 3)), message(0, 1));
    assert.equal(trace.iterations.length, 1);
});

test("one line per term after the sum, with holes where an item has ended or gave no number", () => {
    const [total, match, plain] = seriesOf(readTrace(message(0, 3)));
    assert.deepEqual(total, { name: "", weight: null, values: [[0, 1, 2], [10, 11, null]] });
    assert.deepEqual(match.values[0], [0, 2, 4]);
    assert.equal(plain.weight, -0.5);
    assert.deepEqual(plain.values, [[null, null, 3], [1, 1, null]]);
});

test("a single term needs no line of its own", () => {
    const series = seriesOf(readTrace(message(0, 3, { terms: [{ name: "plain", weight: 2 }] })));
    assert.deepEqual(series.map(({ name }) => name), ["plain"]);
    assert.deepEqual(series[0].values[0], [0, 1, 2]);
});

test("names lose what they share before a colon, and nothing else", () => {
    assert.deepEqual(shortNames(["match: a fox", "match: snow"]), ["a fox", "snow"]);
    assert.deepEqual(shortNames(["match: a fox", "avoid: snow"]), ["match: a fox", "avoid: snow"]);
    assert.deepEqual(shortNames(["match: a fox"]), ["match: a fox"]);
    assert.deepEqual(shortNames(["match: ", "match: snow"]), ["match: ", "match: snow"]);
    assert.deepEqual(shortNames([]), []);
});

test("the range holds all numbers and always has a length", () => {
    assert.deepEqual(rangeOf([[1, null], [-2, 0]]), { min: -2, max: 1 });
    assert.deepEqual(rangeOf([[null], []]), { min: 0, max: 1 });
    const { min, max } = rangeOf([[5, 5]]);
    assert.ok(min < 5 && max > 5);
    assert.ok(rangeOf([[0]]).max > 0);
});

test("a path breaks at holes, and a lone value is a dot", () => {
    const path = (values) => pathOf(values, (i) => 10 * i, (v) => v);
    assert.equal(path([1, 2, null, 3, 4]), "M0 1L10 2M30 3L40 4");
    assert.equal(path([1]), "M0 1h0");
    assert.equal(path([1, null, 2]), "M0 1h0M20 2h0");
    assert.equal(path([null, null]), "");
    assert.equal(path([1.23456, 2]), "M0 1.2L10 2");
});

test("speed and remaining time come from the last iterations", () => {
    assert.deepEqual(speedOf(readTrace(message(0, 1))), { perSecond: null, left: null });
    const { perSecond, left } = speedOf(readTrace(message(0, 5)));
    assert.equal(perSecond, 4);
    assert.equal(left, 5 / 4);
});

test("durations", () => {
    assert.deepEqual([0, 0.2, 59.5, 61, 3723, -4].map(formatDuration), ["0:00", "0:01", "1:00", "1:01", "1:02:03", "0:00"]);
});

test("a short run has room for all iterations from the start, a long one for twice as many when it must", () => {
    const room = (done, total, ended = "") => columnsOf(readTrace(message(0, done, { settings: { iterations: total }, ended })));
    assert.deepEqual([room(1, 50), room(1, 1000), room(64, 1000), room(65, 1000), room(600, 1000)], [50, 64, 64, 128, 1000]);
    assert.deepEqual([room(1, 1), room(1, 50, "done"), room(7, 50, "done")], [2, 2, 7]);
});

test("a gain needs both numbers", () => {
    assert.equal(gain(1, 3), 2);
    assert.equal(gain(null, 3), null);
});

test("CSV has a line per iteration and item, quotes what needs it, and leaves holes empty", () => {
    const lines = toCsv(readTrace(message(0, 3))).split("\r\n");
    assert.equal(lines[0], 'iteration,item,seconds,reward,"match: a, b",plain,norm,gradient_norm');
    assert.equal(lines[1], "0,0,0,0,0,,8,");
    assert.equal(lines[2], "0,1,0,10,0,1,8,");
    assert.equal(lines[5], "2,0,0.5,2,4,3,8,");
    assert.equal(lines.length, 7);
});
