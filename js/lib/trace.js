/**
 * A run of Optimize Noise as curves: read what the node sends, put the pieces of a live run together, measure, export.
 * Pure functions: no page, no canvas.
 *
 * @typedef {object} Series one line of the chart
 * @property {string} name of a reward's term; empty for the weighted sum; of a watch, all its terms
 * @property {boolean} [watched] the line of a reward that is only watched
 * @property {number|null} weight null for the sum
 * @property {(number|null)[][]} values per item, per iteration; null where the item took no part or gave no number
 *
 * @typedef {object} Trace
 * @property {string} node execution id, empty in a finished trace
 * @property {string} promptId likewise
 * @property {number} listIndex which of a list of latents it runs for, 0 where there is no list
 * @property {number|null} serial of the latest message, in the order in which the server made them; null in a finished trace
 * @property {object} settings as the node has them
 * @property {object[]} iterations as the node sends them
 * @property {{name: string, weight: number}[]} terms
 * @property {{name: string, weight: number}[]} watch terms of the reward that is only watched; empty without one
 * @property {(number|null)[]} best per item
 * @property {number[]} bestIteration per item
 * @property {string[]} stopReasons per item; empty while it goes on
 * @property {string[]} noiseLostWith samplers in the graph that get the optimised noise and draw over it
 * @property {string[]} thumbnails of the best latents, perhaps of the first items only
 * @property {string[]} firstThumbnails
 * @property {""|"done"|"interrupted"|"failed"} ended
 */

import { isOlder } from "./order.js";

const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const list = (value) => (Array.isArray(value) ? value : []);

/**
 * Read what a run that has ended left in the node's ui output. Of a list of latents there is one message for each, and
 * their items are drawn together.
 *
 * @param {object[]|object|undefined} messages
 * @returns {Trace|null} null for anything else
 */
export function readTrace(messages) {
    const traces = [messages].flat().map(readOne).filter((trace) => trace !== null);
    return traces.length > 1 ? joined(traces) : traces[0] ?? null;
}

function readOne(message) {
    if (message?.kind !== "reno" || !Array.isArray(message.iterations)) return null;
    return {
        node: String(message.node ?? ""),
        promptId: String(message.prompt_id ?? ""),
        listIndex: message.list_index ?? 0,
        serial: finite(message.serial),
        settings: message.settings ?? {},
        iterations: message.iterations,
        terms: list(message.terms).map(readTerm),
        watch: list(message.watch).map(readTerm),
        best: list(message.best).map(finite),
        bestIteration: list(message.best_iteration),
        stopReasons: list(message.stop_reasons).map(String),
        noiseLostWith: list(message.noise_lost_with).map(String),
        thumbnails: list(message.thumbnails),
        firstThumbnails: list(message.first_thumbnails),
        ended: message.ended ?? "done",
    };
}

const readTerm = ({ name, weight }) => ({ name: String(name), weight: finite(weight) });

/** Runs that came one after the other as if side by side; the seconds of an iteration are those of all of them. */
function joined(traces) {
    const counts = traces.map(itemsOf);
    const offsets = counts.map((_, place) => sum(counts.slice(0, place)));
    const padded = (name) => traces.flatMap((trace, place) => Array.from({ length: counts[place] }, (_, item) => trace[name][item] ?? ""));
    const terms = new Map();
    for (const { name, weight } of traces.flatMap((trace) => trace.terms)) {
        terms.set(name, { name, weight: terms.has(name) && terms.get(name).weight !== weight ? null : weight });
    }
    const columns = Math.max(...traces.map((trace) => trace.iterations.length));
    return {
        ...traces[0],
        terms: [...terms.values()],
        iterations: Array.from({ length: columns }, (_, column) => joinedIteration(traces, offsets, column, [...terms.keys()])),
        best: traces.flatMap((trace) => trace.best),
        bestIteration: traces.flatMap((trace) => trace.bestIteration),
        stopReasons: padded("stopReasons"),
        thumbnails: padded("thumbnails"),
        firstThumbnails: padded("firstThumbnails"),
        ended: traces.find((trace) => trace.ended !== "done")?.ended ?? "done",
    };
}

function joinedIteration(traces, offsets, column, names) {
    const parts = traces.map((trace, place) => ({ iteration: trace.iterations[column], offset: offsets[place] })).filter((part) => part.iteration);
    const flat = (read) => parts.flatMap(({ iteration }) => list(iteration.items).map((_, place) => list(read(iteration))[place] ?? null));
    return {
        index: column,
        items: parts.flatMap(({ iteration, offset }) => list(iteration.items).map((item) => item + offset)),
        rewards: flat((iteration) => iteration.rewards),
        terms: Object.fromEntries(names.map((name) => [name, flat((iteration) => iteration.terms?.[name])])),
        norms: flat((iteration) => iteration.norms),
        gradient_norms: flat((iteration) => iteration.gradient_norms),
        watch: flat((iteration) => iteration.watch),
        seconds: sum(traces.map((trace) => trace.iterations[Math.min(column, trace.iterations.length - 1)]?.seconds ?? 0)),
        itemSeconds: parts.flatMap(({ iteration }) => list(iteration.items).map(() => iteration.seconds)),
    };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * The trace with a live event added.
 *
 * @param {Trace|null} trace what is known so far
 * @param {object} event
 * @returns {Trace|null} the same where a later event has overtaken this one; null when iterations between the two are missing
 */
export function addEvent(trace, event) {
    const piece = readTrace(event);
    if (piece === null) return null;
    if (trace !== null && isOlder(piece.serial, trace.serial)) return trace;
    const same = trace !== null && ["promptId", "node", "listIndex"].every((name) => trace[name] === piece[name]);
    const known = same ? trace.iterations : [];
    const start = event.start ?? 0;
    if (start > known.length) return null;
    const thumbnails = piece.thumbnails.length > 0 || !same ? piece.thumbnails : trace.thumbnails;
    return { ...piece, thumbnails, iterations: [...known.slice(0, start), ...piece.iterations] };
}

/** Number of items in the batch. */
export const itemsOf = (trace) => trace.best.length;

/** Iterations that the settings ask for. */
export const totalOf = (trace) => Math.max(trace.iterations.length, finite(trace.settings.iterations) ?? 0);

/**
 * Iterations that the chart has room for: all of them in a short run, so that nothing moves; a long one doubles its room.
 *
 * @param {Trace} trace
 * @returns {number} at least 2
 */
export function columnsOf(trace) {
    const done = trace.iterations.length;
    if (trace.ended !== "") return Math.max(2, done);
    const room = 2 ** Math.ceil(Math.log2(Math.max(SHORT, done)));
    return Math.max(2, Math.min(totalOf(trace), room));
}

const SHORT = 64; // iterations

/**
 * The lines that there are to draw: the weighted sum, its terms where there are several, and what is watched.
 *
 * @param {Trace} trace
 * @returns {Series[]} the sum first; with a single term the sum alone, under the term's name
 */
export function seriesOf(trace) {
    const line = (name, weight, read) => ({ name, weight, values: table(trace, read) });
    const total = (iteration) => iteration.rewards;
    const watched = trace.watch.length === 0 ? [] : [
        { ...line(trace.watch.map(({ name }) => name).join(" + "), null, (iteration) => iteration.watch), watched: true },
    ];
    if (trace.terms.length === 1) return [line(trace.terms[0].name, null, total), ...watched];
    return [
        line("", null, total),
        ...trace.terms.map(({ name, weight }) => line(name, weight, (iteration) => iteration.terms?.[name])),
        ...watched,
    ];
}

/**
 * Names without the word before the colon that they all begin with, as "match: " of several texts.
 *
 * @param {string[]} names
 * @returns {string[]} the names as they are where that would leave nothing to tell them by
 */
export function shortNames(names) {
    const prefix = names[0]?.match(/^[^:]*: /)?.[0];
    const shared = prefix && names.length > 1 && names.every((name) => name.startsWith(prefix) && name.length > prefix.length);
    return shared ? names.map((name) => name.slice(prefix.length)) : names;
}

function table(trace, read) {
    const rows = trace.best.map(() => new Array(trace.iterations.length).fill(null));
    trace.iterations.forEach((iteration, column) => {
        const values = list(read(iteration));
        list(iteration.items).forEach((item, place) => {
            if (rows[item]) rows[item][column] = finite(values[place]);
        });
    });
    return rows;
}

/**
 * The smallest range that holds every number, a little wider where all are equal.
 *
 * @param {(number|null)[][]} rows
 * @returns {{min: number, max: number}} 0 to 1 without numbers
 */
export function rangeOf(rows) {
    let [min, max] = [Infinity, -Infinity];
    for (const row of rows) {
        for (const value of row) {
            if (value === null) continue;
            min = Math.min(min, value);
            max = Math.max(max, value);
        }
    }
    if (min > max) return { min: 0, max: 1 };
    if (min < max) return { min, max };
    const margin = Math.abs(min) * 0.01 || 0.01;
    return { min: min - margin, max: max + margin };
}

/**
 * A line as the `d` of an SVG path; it breaks where a value is missing, and a value alone becomes a dot.
 *
 * @param {(number|null)[]} values
 * @param {(iteration: number) => number} x
 * @param {(value: number) => number} y
 * @returns {string}
 */
export function pathOf(values, x, y) {
    let [path, drawing] = ["", false];
    values.forEach((value, column) => {
        if (value !== null) {
            const alone = !drawing && (values[column + 1] ?? null) === null;
            path += `${drawing ? "L" : "M"}${round(x(column))} ${round(y(value))}${alone ? "h0" : ""}`;
        }
        drawing = value !== null;
    });
    return path;
}

const round = (value) => Math.round(value * 10) / 10;

/**
 * How fast a run goes, measured over its last iterations.
 *
 * @param {Trace} trace
 * @returns {{perSecond: number|null, left: number|null}} iterations per second, and seconds to its last iteration
 */
export function speedOf(trace) {
    const recent = trace.iterations.slice(-11);
    const seconds = recent.length < 2 ? 0 : recent.at(-1).seconds - recent[0].seconds;
    if (!(seconds > 0)) return { perSecond: null, left: null };
    const perSecond = (recent.length - 1) / seconds;
    return { perSecond, left: (totalOf(trace) - trace.iterations.length) / perSecond };
}

/**
 * A duration as short text.
 *
 * @param {number} seconds
 * @returns {string} "0:07", "12:30", "1:02:03"
 */
export function formatDuration(seconds) {
    const whole = Math.max(0, Math.ceil(seconds));
    const parts = [Math.floor(whole / 60) % 60, whole % 60];
    if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
    return parts.map((part, place) => (place === 0 ? String(part) : String(part).padStart(2, "0"))).join(":");
}

/**
 * A difference as text, with its sign.
 *
 * @param {number|null} first
 * @param {number|null} second
 * @returns {number|null} second − first; null where one is missing
 */
export function gain(first, second) {
    return finite(first) === null || finite(second) === null ? null : second - first;
}

/**
 * The trace as a table for a spreadsheet, one line per iteration and item.
 *
 * @param {Trace} trace
 * @returns {string}
 */
export function toCsv(trace) {
    const names = trace.terms.map(({ name }) => name);
    const watched = trace.watch.length > 0;
    const lines = [["iteration", "item", "seconds", "reward", ...names, "norm", "gradient_norm", ...(watched ? ["watch"] : [])]];
    for (const iteration of trace.iterations) {
        list(iteration.items).forEach((item, place) => {
            const at = (values) => list(values)[place] ?? "";
            lines.push([
                iteration.index, item, iteration.itemSeconds?.[place] ?? iteration.seconds, at(iteration.rewards),
                ...names.map((name) => at(iteration.terms?.[name])), at(iteration.norms), at(iteration.gradient_norms),
                ...(watched ? [at(iteration.watch)] : []),
            ]);
        });
    }
    return lines.map((cells) => cells.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function csvCell(value) {
    const text = String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
