import assert from "node:assert/strict";
import { test } from "node:test";

import { readRun } from "../../../js/lib/runs.js";
import {
    aliveOf,
    askedOf,
    keyOf,
    lanesOf,
    placeOf,
    questionOf,
    readSearch,
    readSearches,
    scoreOf,
    sharesOf,
    tileColumns,
    toggled,
    withSearch,
} from "../../../js/lib/search.js";

/** Four candidates: 3 could not be judged, 0 falls at the draft, 2 at the cut, 1 wins. */
const DRAFT = { name: "draft", step: 3, alive: [0, 1, 2, 3], kept: [2, 1], scores: { 0: 0.1, 1: 0.2, 2: 0.3, 3: null } };
const CUT = { name: "20%", step: 4, alive: [1, 2], kept: [1], scores: { 1: 0.5, 2: 0.4 } };

const message = (more = {}) => ({
    kind: "search", node: "7", display_node: "7", prompt_id: "p", list_index: 0, candidates: 4, keep: 1, seed: 5, batch_index: [0, 1, 2, 3],
    cost_spent: 12, cost_plan: 20, cost_plain: 40, rounds: [DRAFT, CUT], thumbnails: { 1: "one", 2: "two" }, winners: [1],
    waiting: null, ended: "", ...more,
});
const read = (more) => readSearch(message(more));
const states = (lane) => lane.cells.map(({ state }) => state);

test("what is no search is left alone", () => {
    for (const other of [undefined, null, {}, { kind: "reno" }, { kind: "search" }]) assert.deepEqual(readSearches(other), []);
    assert.deepEqual(readSearches([message(), { kind: "scores" }, message()]).length, 2);
});

test("a saved run has ended, whatever it does not say, and asks nothing", () => {
    const run = readSearch({ kind: "search", rounds: [] });
    assert.deepEqual([run.ended, run.ask, run.candidates, run.winners], ["done", null, 0, []]);
    assert.equal(read({ ended: "interrupted", waiting: { round: 1, ids: [1], proposed: [], deadline_ms: null } }).ask, null);
});

test("a lane says where its candidate fell, and which one won", () => {
    const lanes = lanesOf(read(), "batch");
    assert.deepEqual(lanes.map(({ id, place, fell }) => [id, place, fell]), [[0, null, 0], [1, 1, null], [2, null, 1], [3, null, 0]]);
    assert.deepEqual(lanes.map(states), [["fell", "out"], ["kept", "kept"], ["kept", "fell"], ["fell", "out"]]);
    assert.deepEqual(lanes[3].cells[0].score, null);
    assert.deepEqual(lanes.map(({ thumbnail }) => thumbnail), ["", "one", "two", ""]);
});

test("best first: winners, then who came furthest, then the last score, those without a number last", () => {
    const ids = (more) => lanesOf(read(more), "best").map(({ id }) => id);
    assert.deepEqual(ids(), [1, 2, 0, 3]);
    assert.deepEqual(ids({ winners: [], rounds: [] }), [0, 1, 2, 3]);
    assert.deepEqual(ids({ winners: [], rounds: [{ ...DRAFT, kept: [] }] }), [2, 1, 0, 3]);
});

test("nobody has fallen at a look that is not decided yet", () => {
    const run = read({ rounds: [DRAFT, { ...CUT, kept: [] }], winners: [] });
    const lanes = lanesOf(run, "batch");
    assert.deepEqual(lanes.map(({ fell }) => fell), [0, null, null, 0]);
    assert.deepEqual(states(lanes[2]), ["kept", "open"]);
    assert.deepEqual(aliveOf(run), [1, 2]);
    assert.deepEqual(aliveOf(read({ rounds: [], winners: [] })), [0, 1, 2, 3]);
    assert.deepEqual(aliveOf(read({ rounds: [DRAFT], winners: [] })), [2, 1]);
    assert.deepEqual(aliveOf(read()), [1]);
});

test("who is missing at a later look fell at the last one that saw it", () => {
    const run = read({ rounds: [{ ...DRAFT, kept: [1, 2, 3] }, CUT], winners: [] });
    assert.equal(lanesOf(run, "batch")[3].fell, 0);
});

test("the last score counts", () => {
    assert.deepEqual([0, 1, 2, 3, 9].map((id) => scoreOf(read(), id)), [0.1, 0.5, 0.4, null, null]);
});

test("costs are shares of a plain batch, or nothing", () => {
    assert.deepEqual(sharesOf(read()), { spent: 0.3, plan: 0.5 });
    assert.deepEqual(sharesOf(read({ cost_plain: 0 })), { spent: null, plan: null });
    assert.deepEqual(sharesOf(read({ cost_plan: null })), { spent: 0.3, plan: null });
});

const waiting = { round: 0, ids: [0, 1, 2, 3], proposed: [2, 1], deadline_ms: 1000 };

test("a question: who may be chosen, best first, and which question it is", () => {
    const run = read({ rounds: [{ ...DRAFT, kept: [] }], winners: [], waiting });
    assert.deepEqual(askedOf(run), [2, 1, 0, 3]);
    assert.equal(questionOf(run), "p/7/0/0");
    assert.equal(questionOf(read()), "");
    assert.deepEqual([run.ask.proposed, run.ask.deadline], [[2, 1], 1000]);
    assert.equal(read({ waiting: { ...waiting, deadline_ms: null } }).ask.deadline, null);
});

test("choosing by hand and by number keys", () => {
    const chosen = toggled(toggled(new Set([2]), 1), 2);
    assert.deepEqual([...chosen], [1]);
    assert.deepEqual([0, 8, 9, 10].map(keyOf), ["1", "9", "0", ""]);
    assert.deepEqual(["1", "9", "0", "a", "10", ""].map(placeOf), [0, 8, 9, null, null, null]);
});

test("live messages: pictures add up, a list is several runs, a new prompt starts afresh", () => {
    let runs = withSearch([], read());
    runs = withSearch(runs, read({ thumbnails: { 1: "newer" }, cost_spent: 14 }));
    assert.deepEqual([runs.length, runs[0].cost.spent, runs[0].thumbnails], [1, 14, { 1: "newer", 2: "two" }]);
    runs = withSearch(runs, read({ list_index: 1 }));
    assert.deepEqual(runs.map(({ listIndex }) => listIndex), [0, 1]);
    runs = withSearch(runs, read({ node: "7.0.0.5" }));
    assert.equal(runs.length, 3, "an expanded node runs under several ids");
    assert.equal(withSearch(runs, read({ prompt_id: "q" })).length, 1);
});

test("each look keeps the picture that it brought", () => {
    const draft = read({ rounds: [DRAFT], thumbnails: { 0: "draft 0", 1: "draft 1" }, winners: [] });
    const [run] = withSearch(withSearch([], draft), read({ thumbnails: { 1: "cut 1" } }));
    const pictures = (id) => lanesOf(run, "batch")[id].cells.map(({ thumbnail }) => thumbnail);
    assert.deepEqual([0, 1, 2].map(pictures), [["draft 0", ""], ["draft 1", "cut 1"], ["", ""]]);
    assert.deepEqual(lanesOf(run, "batch").map(({ thumbnail }) => thumbnail), ["draft 0", "cut 1", "", ""]);
    const saved = lanesOf(read({ ended: "done" }), "batch");
    assert.deepEqual(saved.map(({ cells }) => cells.map(({ thumbnail }) => thumbnail)), [["", ""], ["", "one"], ["", "two"], ["", ""]]);
});

test("a message that a later one has overtaken changes nothing", () => {
    const runs = withSearch([], read({ ended: "done", serial: 9 }));
    assert.equal(withSearch(runs, read({ serial: 8 })), runs);
    const asking = withSearch([], read({ waiting, serial: 5 }));
    assert.equal(withSearch(asking, read({ serial: 4 })), asking, "a question is not taken away");
    const answered = withSearch(asking, read({ serial: 6 }));
    assert.equal(withSearch(answered, read({ waiting, serial: 5 })), answered, "nor asked again");
    assert.equal(withSearch(answered, read({ cost_spent: 3, serial: 7 }))[0].cost.spent, 3, "a second attempt starts again");
});

test("an earlier prompt does not take the place of a later one", () => {
    const runs = withSearch([], read({ prompt_id: "q", waiting, serial: 5 }));
    assert.equal(withSearch(runs, read({ waiting, serial: 3 })), runs);
    assert.equal(withSearch(runs, read({ prompt_id: "r", serial: 6 }))[0].promptId, "r");
    assert.equal(withSearch(runs, read({ ended: "done" }))[0].promptId, "p", "a finished run that is shown has no serial");
    const list = withSearch(runs, read({ prompt_id: "q", list_index: 1, serial: 4 }));
    assert.deepEqual(list.map(({ listIndex }) => listIndex), [0, 1], "of one prompt all runs are kept");
});

test("the sidebar knows the kind", () => {
    const about = { node: "7", title: "Mine", time: 1 };
    assert.deepEqual(readRun([message({ ended: "done" })], about), {
        ...about, kind: "search", thumbnail: "one", count: 4, best: 0.5, blocked: 0, kept: 1, share: 0.3, lines: ["draft → 2, 20% → 1"],
    });
    const several = readRun([message(), message({ rounds: [DRAFT, { ...CUT, scores: { 1: 0.9 } }], thumbnails: { 1: "better" } })], about);
    assert.deepEqual([several.count, several.kept, several.best, several.thumbnail], [8, 2, 0.9, "better"]);
    assert.equal(readRun([message({ winners: [], cost_plain: null })], about).share, null);
});

test("tiles are as large as they can be with all to be seen", () => {
    assert.deepEqual([1, 2, 3, 4, 8, 64].map((count) => tileColumns(count, 390, 230)), [2, 2, 3, 4, 4, 4]);
    assert.equal(tileColumns(4, 390, 440), 2, "a larger node shows larger pictures");
    assert.equal(tileColumns(64, 800, 700), 8, "what cannot fit scrolls");
    assert.equal(tileColumns(3, 0, 0), 1);
});
