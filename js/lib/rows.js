/**
 * What the nodes report, as rows that a panel can draw. Pure functions: no page, no canvas.
 *
 * @typedef {{name: string, value: number|null, weight: number|null, threshold?: number|null}} Detail one term of a score, one
 *     label's probability, or a category's log-odds with its threshold
 * @typedef {object} Row
 * @property {number} index place in the batch, from 0
 * @property {number|null} value what the bar shows; null where the node returned no finite number
 * @property {number|null} rank 1 is best, equal values share a rank; null without a value
 * @property {boolean} best of rank 1, in a batch whose values differ
 * @property {boolean|null} kept by a selection; null where nothing is selected
 * @property {boolean} blocked by a gate
 * @property {string} reason why it is blocked, else empty
 * @property {string} label the best label of a classified latent, the worst category of a gated one, or why it has none, else empty
 * @property {string} thumbnail data URL, or empty
 * @property {Detail[]} details what the value is made of
 *
 * @typedef {{kind: "scores"|"classes"|"safety", rows: Row[], selects: boolean}} Report
 */

const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const list = (value) => (Array.isArray(value) ? value : []);

/**
 * Read a node's messages. There are several where a list of latents came in and the host ran the node for each: their rows
 * are one report, numbered on from one to the next.
 *
 * @param {object[]|object|undefined} messages what the node put into its ui output
 * @returns {Report|null} null for anything that is not a report of scores, classes or a gate
 */
export function readReport(messages) {
    const reports = [messages].flat().map(readOne).filter((report) => report !== null);
    const [first] = reports;
    if (first === undefined) return null;
    const rows = reports.filter(({ kind }) => kind === first.kind).flatMap((report) => report.rows);
    const ranked = rank(rows.map((row, index) => ({ ...row, index })));
    return {
        kind: first.kind,
        rows: first.kind === "safety" ? ranked.map((row) => ({ ...row, best: false })) : ranked,
        selects: first.selects,
    };
}

function readOne(message) {
    if (message?.kind === "scores" && Array.isArray(message.scores)) {
        return { kind: "scores", rows: scoreRows(message), selects: Array.isArray(message.kept) };
    }
    if (message?.kind === "classes" && Array.isArray(message.labels)) {
        return { kind: "classes", rows: classRows(message), selects: false };
    }
    if (message?.kind === "safety" && Array.isArray(message.blocked)) {
        return { kind: "safety", rows: safetyRows(message), selects: false };
    }
    return null;
}

function scoreRows({ scores, terms, thumbnails, kept }) {
    return scores.map((score, index) => ({
        index,
        value: finite(score),
        kept: Array.isArray(kept) ? kept.includes(index) : null,
        blocked: false,
        reason: "",
        label: "",
        thumbnail: list(thumbnails)[index] ?? "",
        details: list(terms).map(({ name, weight, values }) => ({
            name: String(name),
            value: finite(list(values)[index]),
            weight: finite(weight),
        })),
    }));
}

function classRows({ labels, probabilities, thumbnails }) {
    return labels.map((label, index) => {
        const table = Object.entries(list(probabilities)[index] ?? {});
        const details = table.map(([name, value]) => ({ name, value: finite(value), weight: null }));
        details.sort((a, b) => (b.value ?? -1) - (a.value ?? -1));
        return {
            index,
            value: details.find((detail) => detail.name === label)?.value ?? null,
            kept: null,
            blocked: false,
            reason: "",
            label: String(label),
            thumbnail: list(thumbnails)[index] ?? "",
            details,
        };
    });
}

/** The value is the log-odds of the worst category less its threshold: from 0 on, a gate blocks. */
function safetyRows({ names, thresholds, scores, blocked, reasons, thumbnails }) {
    return blocked.map((isBlocked, index) => {
        const details = list(names).map((name, category) => ({
            name: String(name),
            value: finite(list(list(scores)[index])[category]),
            threshold: finite(list(thresholds)[category]),
            weight: null,
        }));
        const over = ({ value, threshold }) => (value === null ? Infinity : value - (threshold ?? 0));
        details.sort((a, b) => over(b) - over(a));
        const [worst] = details;
        const reason = String(list(reasons)[index] ?? "");
        const value = worst ? finite(over(worst)) : null;
        return {
            index,
            value,
            kept: null,
            blocked: Boolean(isBlocked),
            reason,
            label: value === null ? reason : worst.name,
            thumbnail: list(thumbnails)[index] ?? "",
            details,
        };
    });
}

function rank(rows) {
    const range = extent(rows.map((row) => row.value));
    return rows.map((row) => {
        const better = rows.filter((other) => other.value !== null && other.value > row.value).length;
        const place = row.value === null ? null : 1 + better;
        return { ...row, rank: place, best: place === 1 && range.max > range.min };
    });
}

/**
 * Rows in the order to draw them in. Equal values keep the order of the batch; rows without a value come last, but first
 * where they are blocked: what could not be judged is what to look at.
 *
 * @param {Row[]} rows
 * @param {"best"|"batch"} order
 * @returns {Row[]} a new array
 */
export function sortRows(rows, order) {
    const missing = (row) => (row.blocked ? 0 : Infinity);
    const key = order === "batch" ? (row) => row.index : (row) => row.rank ?? missing(row);
    return [...rows].sort((a, b) => key(a) - key(b) || a.index - b.index);
}

/**
 * The range of the finite values.
 *
 * @param {(number|null)[]} values
 * @returns {{min: number, max: number}|null} null if there is no finite value
 */
export function extent(values) {
    const numbers = values.filter((value) => finite(value) !== null);
    if (numbers.length === 0) return null;
    return numbers.reduce(({ min, max }, value) => ({ min: Math.min(min, value), max: Math.max(max, value) }), {
        min: Infinity,
        max: -Infinity,
    });
}

/**
 * Length of a bar on the axis `range`.
 *
 * @param {number|null} value
 * @param {{min: number, max: number}|null} range
 * @returns {number} 0 to 1; 0 without a value; 0.5 on an axis without length, where a bar can say nothing
 */
export function barLength(value, range) {
    if (finite(value) === null || range === null) return 0;
    if (range.max <= range.min) return 0.5;
    return Math.min(1, Math.max(0, (value - range.min) / (range.max - range.min)));
}

/**
 * A threshold at a place on the axis `range`, with no more digits than the node's widget keeps.
 *
 * @param {number} share 0 to 1
 * @param {{min: number, max: number}} range
 * @returns {number}
 */
export function thresholdAt(share, { min, max }) {
    return roundThreshold(min + Math.min(1, Math.max(0, share)) * (max - min));
}

/**
 * The threshold that a key leads to: arrows move by a hundredth of the axis, Page Up and Down by a tenth.
 *
 * @param {string} key
 * @param {number} threshold
 * @param {{min: number, max: number}} range
 * @returns {number|null} null for any other key
 */
export function thresholdByKey(key, threshold, { min, max }) {
    const small = Math.max(THRESHOLD_STEP, (max - min) / 100);
    const step = { ArrowRight: small, ArrowUp: small, ArrowLeft: -small, ArrowDown: -small, PageUp: 10 * small, PageDown: -10 * small }[key];
    if (key === "Home") return roundThreshold(min);
    if (key === "End") return roundThreshold(max);
    return step === undefined ? null : roundThreshold(threshold + step);
}

const THRESHOLD_STEP = 0.001; // of the node's widget
const roundThreshold = (value) => Number((Math.round(value / THRESHOLD_STEP) * THRESHOLD_STEP).toFixed(3));

/**
 * Decimals that tell the values of one column apart: three digits of their spread, between 2 and 6.
 *
 * @param {(number|null)[]} values
 * @returns {number}
 */
export function decimalsFor(values) {
    const range = extent(values);
    if (range === null) return 4;
    const spread = range.max - range.min || Math.abs(range.max);
    return spread > 0 ? Math.min(6, Math.max(2, 2 - Math.floor(Math.log10(spread)))) : 2;
}

/**
 * A number as text, with a real minus sign.
 *
 * @param {number|null} value
 * @param {number} decimals
 * @returns {string} an en dash where there is no number
 */
export function formatNumber(value, decimals) {
    if (finite(value) === null) return "–";
    return withMinus(value.toFixed(decimals));
}

/**
 * A factor as text, without needless zeros.
 *
 * @param {number|null} value
 * @returns {string}
 */
export function formatWeight(value) {
    return finite(value) === null ? "–" : withMinus(String(Number(value.toFixed(3))));
}

/**
 * A probability as text.
 *
 * @param {number|null} value 0 to 1
 * @returns {string}
 */
export function formatPercent(value) {
    if (finite(value) === null) return "–";
    const percent = 100 * value;
    const text = percent.toFixed(percent >= 99.95 || percent < 0.05 ? 0 : 1);
    // rounding must not turn "nearly" into "certainly"
    if (text === "100" && value < 1) return ">99.9%";
    if (text === "0" && value > 0) return "<0.1%";
    return `${text}%`;
}

const withMinus = (text) => (Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−"));
