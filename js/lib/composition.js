/**
 * What each term adds to the best score of a run. Pure functions.
 *
 * @typedef {{name: string, weight: number|null, value: number|null, part: number|null}} Part a term, its value and weight × value
 * @typedef {{index: number, total: number|null, parts: Part[]}} Composition of the best item; `index` from 0
 */

import { readReport } from "./rows.js";
import { itemsOf, readTrace } from "./trace.js";

/**
 * Read a node's ui output: of a list of latents, what the best of all is made of.
 *
 * @param {object[]|object|undefined} messages
 * @returns {Composition|null} null where nothing was scored by terms
 */
export function readComposition(messages) {
    let [best, offset] = [null, 0];
    for (const message of [messages].flat()) {
        const trace = readTrace(message);
        const found = trace === null ? ofReport(message) : ofTrace(trace);
        if (found !== null && (best === null || found.total > best.total)) best = { ...found, index: found.index + offset };
        offset += trace === null ? readReport(message)?.rows.length ?? 0 : itemsOf(trace);
    }
    return best;
}

function ofReport(message) {
    const report = readReport(message);
    if (report?.kind !== "scores") return null;
    const best = report.rows.find((row) => row.rank === 1);
    return best ? { index: best.index, total: best.value, parts: best.details.map(withPart) } : null;
}

function ofTrace({ terms, iterations, best, bestIteration: when }) {
    const numbers = best.filter((value) => value !== null);
    if (numbers.length === 0) return null;
    const index = best.indexOf(Math.max(...numbers));
    const moment = iterations.find((iteration) => iteration.index === when[index]);
    const place = moment?.items.indexOf(index) ?? -1;
    if (place < 0) return null;
    const parts = terms.map(({ name, weight }) => withPart({ name, weight, value: moment.terms[name]?.[place] ?? null }));
    return { index, total: best[index], parts };
}

function withPart({ name, weight, value }) {
    return { name, weight, value, part: value === null || weight === null ? null : weight * value };
}

/**
 * How far the bar of each part reaches, against the largest of them: −1 to 1.
 *
 * @param {Part[]} parts
 * @returns {number[]} 0 where there is no number
 */
export function shares(parts) {
    const largest = Math.max(...parts.map(({ part }) => Math.abs(part ?? 0)));
    return parts.map(({ part }) => (largest > 0 ? (part ?? 0) / largest : 0));
}
