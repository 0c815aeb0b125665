/**
 * A run of Search Best Images: read what the node sends, follow every candidate through the looks, choose some of them.
 * Pure functions: no page, no canvas.
 *
 * @typedef {object} Look a draft or a cut: the candidates are judged, and some go on
 * @property {string} name such as "draft" or "20%"
 * @property {number[]} alive candidates that were judged
 * @property {number[]} kept those that go on; empty until it is decided
 * @property {Map<number, number|null>} scores by candidate; null where the reward gave no finite number
 * @property {Object<number, string>} thumbnails of candidates at this look, as far as they are known: a message has only those
 *     of everyone's latest look
 *
 * @typedef {object} Search
 * @property {string} node execution id, empty in a finished run
 * @property {string} promptId likewise
 * @property {number} listIndex which of a list of latents it runs for, 0 where there is no list
 * @property {number|null} serial of the message, in the order in which the server made them; null in a finished run
 * @property {number} candidates how many there are; their ids are 0 to candidates − 1
 * @property {number} keep how many of them are wanted
 * @property {number|null} seed of the noise
 * @property {number[]} batchIndex which noise of that seed each candidate has
 * @property {{spent: number|null, plan: number|null, plain: number|null}} cost in evaluations of the model: so far, of the
 *     whole run, and of a plain batch of all candidates
 * @property {Look[]} looks
 * @property {Object<number, string>} thumbnails data URL by candidate: as it was seen last
 * @property {number[]} winners best first
 * @property {Ask|null} ask while the node waits for a person
 * @property {""|"done"|"interrupted"|"failed"} ended
 *
 * @typedef {object} Ask
 * @property {number} look which look it is about
 * @property {number[]} ids who may be chosen
 * @property {number[]} proposed by the reward; empty where it proposes nothing
 * @property {number|null} deadline in milliseconds since 1970, when the reward decides; null: it waits
 *
 * @typedef {object} Lane
 * @property {number} id of the candidate
 * @property {number|null} place among the winners, from 1
 * @property {number|null} fell the look at which it was dropped
 * @property {string} thumbnail as it was seen last
 * @property {{score: number|null, state: "open"|"kept"|"fell"|"out", thumbnail: string}[]} cells one for each look
 */

import { isOlder } from "./order.js";

const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const list = (value) => (Array.isArray(value) ? value : []);

/**
 * Read what a run left in the node's ui output: a message for each of a list of latents.
 *
 * @param {object[]|object|undefined} messages
 * @returns {Search[]} empty for anything else
 */
export const readSearches = (messages) => [messages].flat().map(readSearch).filter((run) => run !== null);

/**
 * Read one message.
 *
 * @param {object|undefined} message
 * @returns {Search|null} null for anything that is not a search
 */
export function readSearch(message) {
    if (message?.kind !== "search" || !Array.isArray(message.rounds)) return null;
    const ended = message.ended ?? "done";
    return {
        node: String(message.node ?? ""),
        promptId: String(message.prompt_id ?? ""),
        listIndex: message.list_index ?? 0,
        serial: finite(message.serial),
        candidates: finite(message.candidates) ?? 0,
        keep: finite(message.keep) ?? 0,
        seed: finite(message.seed),
        batchIndex: list(message.batch_index),
        cost: { spent: finite(message.cost_spent), plan: finite(message.cost_plan), plain: finite(message.cost_plain) },
        looks: looksOf(message),
        thumbnails: message.thumbnails ?? {},
        winners: list(message.winners),
        ask: ended === "" ? readAsk(message.waiting) : null,
        ended,
    };
}

function looksOf({ rounds, thumbnails }) {
    const looks = rounds.map(({ name, alive, kept, scores }) => {
        const table = Object.entries(scores ?? {}).map(([id, score]) => [Number(id), finite(score)]);
        return { name: String(name), alive: list(alive), kept: list(kept), scores: new Map(table), thumbnails: {} };
    });
    for (const [id, picture] of Object.entries(thumbnails ?? {})) {
        const latest = looks.findLast(({ alive }) => alive.includes(Number(id)));
        if (latest) latest.thumbnails[id] = picture;
    }
    return looks;
}

function readAsk(waiting) {
    if (!waiting) return null;
    return { look: waiting.round, ids: list(waiting.ids), proposed: list(waiting.proposed), deadline: finite(waiting.deadline_ms) };
}

const sameRun = (one, other) => ["promptId", "node", "listIndex"].every((name) => one[name] === other[name]);

/**
 * The runs that a node shows, with a live message added. A new prompt takes the place of the last one; of one prompt there are
 * several runs where a list of latents came in, or where the node has expanded into a loop. A message that a later one has
 * overtaken changes nothing: what was asked for and what the server says by itself come on two ways.
 *
 * @param {Search[]} runs
 * @param {Search} next
 * @returns {Search[]}
 */
export function withSearch(runs, next) {
    const samePrompt = runs[0]?.promptId === next.promptId;
    const place = runs.findIndex((run) => sameRun(run, next));
    const since = samePrompt ? runs.slice(place, place + 1) : runs;
    if (since.some(({ serial }) => isOlder(next.serial, serial))) return runs;
    if (!samePrompt) return [next];
    if (place < 0) return [...runs, next];
    const known = runs[place];
    return runs.with(place, {
        ...next,
        thumbnails: { ...known.thumbnails, ...next.thumbnails },
        looks: next.looks.map((look, index) => ({ ...look, thumbnails: { ...known.looks[index]?.thumbnails, ...look.thumbnails } })),
    });
}

/**
 * Whether it is settled who goes on after a look.
 *
 * @param {Search} run
 * @param {number} index of the look
 */
const decided = (run, index) => index < run.looks.length - 1 || run.looks[index].kept.length > 0;

/**
 * Every candidate's way through the looks.
 *
 * @param {Search} run
 * @param {"best"|"batch"} order best: winners, then who came furthest, then by the last score; batch: by id
 * @returns {Lane[]}
 */
export function lanesOf(run, order) {
    const lanes = Array.from({ length: run.candidates }, (_, id) => laneOf(run, id));
    return order === "batch" ? lanes : lanes.sort(better);
}

function laneOf(run, id) {
    const winner = run.winners.indexOf(id);
    const cells = run.looks.map((look, index) => {
        const state = !look.alive.includes(id) ? "out" : !decided(run, index) ? "open" : look.kept.includes(id) ? "kept" : "fell";
        return { score: look.scores.get(id) ?? null, state, thumbnail: look.thumbnails[id] ?? "" };
    });
    const last = cells.findLastIndex(({ state }) => state !== "out");
    const gone = cells.length > 0 && winner < 0 && (cells[last]?.state === "fell" || last < cells.length - 1);
    return {
        id,
        place: winner < 0 ? null : winner + 1,
        fell: gone ? Math.max(0, last) : null,
        thumbnail: run.thumbnails[id] ?? "",
        cells,
    };
}

function better(one, other) {
    const reach = (lane) => lane.fell ?? Infinity;
    return (one.place ?? Infinity) - (other.place ?? Infinity) || reach(other) - reach(one) || byScore(lastScore(one), lastScore(other)) || one.id - other.id;
}

const lastScore = ({ cells }) => cells.findLast(({ state }) => state !== "out")?.score ?? null;

/** Compare two scores, the higher one first, none last. */
const byScore = (one, other) => (one === other ? 0 : (other ?? -Infinity) - (one ?? -Infinity));

/**
 * Candidates that are still in it.
 *
 * @param {Search} run
 * @returns {number[]}
 */
export function aliveOf(run) {
    if (run.winners.length > 0) return run.winners;
    const last = run.looks.length - 1;
    if (last < 0) return Array.from({ length: run.candidates }, (_, id) => id);
    return decided(run, last) ? run.looks[last].kept : run.looks[last].alive;
}

/**
 * The score that a candidate had last.
 *
 * @param {Search} run
 * @param {number} id
 * @returns {number|null}
 */
export const scoreOf = (run, id) => run.looks.findLast(({ alive }) => alive.includes(id))?.scores.get(id) ?? null;

/**
 * The costs as shares of what a plain batch of all candidates costs.
 *
 * @param {Search} run
 * @returns {{spent: number|null, plan: number|null}} null where a number is missing
 */
export function sharesOf({ cost: { spent, plan, plain } }) {
    const share = (value) => (value === null || !(plain > 0) ? null : value / plain);
    return { spent: share(spent), plan: share(plan) };
}

/**
 * Who may be chosen, best score first.
 *
 * @param {Search} run that asks
 * @returns {number[]}
 */
export const askedOf = (run) => [...run.ask.ids].sort((one, other) => byScore(scoreOf(run, one), scoreOf(run, other)) || one - other);

/**
 * What tells one question from the next, in whichever order its parts come.
 *
 * @param {Search} run
 * @returns {string} empty while nothing is asked
 */
export const questionOf = (run) => (run.ask === null ? "" : [run.promptId, run.node, run.listIndex, run.ask.look].join("/"));

/**
 * A choice with one candidate put in or taken out.
 *
 * @param {Set<number>} chosen
 * @param {number} id
 * @returns {Set<number>} a new one
 */
export const toggled = (chosen, id) => new Set(chosen.has(id) ? [...chosen].filter((other) => other !== id) : [...chosen, id]);

/**
 * The key for the tile at a place: 1 to 9, then 0.
 *
 * @param {number} place from 0
 * @returns {string} empty for later tiles
 */
export const keyOf = (place) => (place < 9 ? String(place + 1) : place === 9 ? "0" : "");

/**
 * The place of the tile that a key is for.
 *
 * @param {string} key
 * @returns {number|null}
 */
export const placeOf = (key) => (/^\d$/.test(key) ? (Number(key) + 9) % 10 : null);

const TILE = { least: 88, words: 24, gap: 6 }; // pixels

/**
 * Columns in which square pictures are largest while all of them are seen; where they cannot be, as many as still fit.
 *
 * @param {number} count
 * @param {number} width in pixels of the layout
 * @param {number} height
 * @returns {number} at least 1
 */
export function tileColumns(count, width, height) {
    const most = Math.max(1, Math.floor((width + TILE.gap) / (TILE.least + TILE.gap)));
    for (let columns = 1; columns < most; columns++) {
        const side = (width + TILE.gap) / columns - TILE.gap;
        if (Math.ceil(count / columns) * (side + TILE.words + TILE.gap) - TILE.gap <= height) return columns;
    }
    return most;
}
