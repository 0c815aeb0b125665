/**
 * The runs of this page as short facts, newest first. Pure functions.
 *
 * @typedef {object} Run
 * @property {string} node execution id
 * @property {string} title of the node
 * @property {number} time in milliseconds since 1970
 * @property {"reno"|"scores"|"classes"|"safety"|"search"} kind
 * @property {string} thumbnail of its best item
 * @property {number} count of its items
 * @property {number|null} best its best score; null where there is none
 * @property {number} blocked items that a gate blocked
 * @property {number} [kept] winners of a search
 * @property {number|null} [share] what a search has cost, of a plain batch
 * @property {string[]} lines terms with their weights, then settings
 */

import { decimalsFor, formatNumber, formatWeight, readReport } from "./rows.js";
import { readSearches, scoreOf } from "./search.js";
import { itemsOf, readTrace } from "./trace.js";

export const MOST_RUNS = 50;

/**
 * Read a node's ui output.
 *
 * @param {object[]|object|undefined} messages one for each of a list of latents
 * @param {{node: string, title: string, time: number}} about
 * @returns {Run|null} null for anything that is not ours
 */
export function readRun(messages, about) {
    const trace = readTrace(messages);
    if (trace !== null) return renoRun(trace, about);
    const searches = readSearches(messages);
    if (searches.length > 0) return searchRun(searches, about);
    const report = readReport(messages);
    return report && reportRun(report, [messages].flat().flatMap(({ terms }) => terms ?? []), about);
}

function renoRun(trace, about) {
    const place = highest(trace.best);
    const { iterations, learning_rate: rate, optimizer } = trace.settings;
    const settings = [optimizer, rate !== undefined && `lr ${formatWeight(rate)}`, iterations && `${trace.iterations.length}/${iterations}`];
    return {
        ...about,
        kind: "reno",
        thumbnail: trace.thumbnails[place] ?? "",
        count: itemsOf(trace),
        best: trace.best[place] ?? null,
        blocked: 0,
        lines: [...termLines(trace.terms), settings.filter(Boolean).join(", ")].filter(Boolean),
    };
}

function searchRun(searches, about) {
    const first = searches.map((search) => ({ score: scoreOf(search, search.winners[0]), thumbnail: search.thumbnails[search.winners[0]] ?? "" }));
    const place = highest(first.map(({ score }) => score));
    const total = (name) => searches.reduce((sum, { cost }) => sum + (cost[name] ?? 0), 0);
    return {
        ...about,
        kind: "search",
        thumbnail: first[place].thumbnail,
        count: searches.reduce((sum, { candidates }) => sum + candidates, 0),
        best: first[place].score,
        blocked: 0,
        kept: searches.reduce((sum, { winners }) => sum + winners.length, 0),
        share: total("plain") > 0 ? total("spent") / total("plain") : null,
        lines: [searches[0].looks.map((look) => `${look.name} → ${look.kept.length}`).join(", ")].filter(Boolean),
    };
}

function reportRun({ kind, rows }, terms, about) {
    const place = highest(rows.map(({ value }) => value));
    return {
        ...about,
        kind,
        thumbnail: kind === "safety" ? "" : rows[place]?.thumbnail ?? "",
        count: rows.length,
        best: kind === "scores" ? rows[place]?.value ?? null : null,
        blocked: rows.filter(({ blocked }) => blocked).length,
        lines: kind === "scores" ? termLines(terms) : [...new Set(rows.map(({ label }) => label))].filter(Boolean),
    };
}

const termLines = (terms) => [...new Set(terms.map(({ name, weight }) => (weight === 1 ? name : `${name} × ${formatWeight(weight)}`)))];

function highest(values) {
    let place = 0;
    values.forEach((value, index) => {
        if (value !== null && (values[place] === null || value > values[place])) place = index;
    });
    return place;
}

/** The list with a run in front, no longer than it may be. */
export const withRun = (runs, run) => [run, ...runs].slice(0, MOST_RUNS);

/** A best score with as many decimals as it needs. */
export const formatBest = (value) => formatNumber(value, Math.max(3, decimalsFor([value])));
