/**
 * The chart of a trace, as SVG: sharp at every zoom of the canvas, and the same on both of the page's renderers.
 */

import { decimalsFor, formatNumber } from "./rows.js";
import { columnsOf, pathOf, rangeOf } from "./trace.js";

const MARGIN = { top: 10, right: 10, bottom: 18, left: 52 };
const MOST_OTHERS = 32; // lines of other items behind the chosen one

/**
 * Draw into an SVG element, in place of what it shows.
 *
 * @param {SVGElement} svg
 * @param {{width: number, height: number}} size in pixels of the layout
 * @param {object} view
 * @param {import("./trace.js").Trace} view.trace
 * @param {import("./trace.js").Series[]} view.series
 * @param {number} view.line the series whose axis is shown
 * @param {number} view.item
 * @param {number|null} view.cursor an iteration to point at
 */
export function drawChart(svg, { width, height }, { trace, series, line, item, cursor }) {
    const columns = columnsOf(trace);
    const x = scale(0, columns - 1, MARGIN.left, width - MARGIN.right);
    const yOf = (range) => scale(range.min, range.max, height - MARGIN.bottom, MARGIN.top);
    const ranges = series.map(({ values }) => rangeOf(values));
    const y = yOf(ranges[line]);
    const others = series[line].values.slice(0, MOST_OTHERS).filter((_, index) => index !== item);
    const best = series[line].values[item]?.[trace.bestIteration[item]] ?? null;

    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(
        ...axes(ranges[line], columns, x, y, width, height),
        ...others.map((values) => curve(values, x, y, "latent-clip-line latent-clip-line-other", line)),
        ...series
            .map(({ values }, index) => index !== line && curve(values[item], x, yOf(ranges[index]), "latent-clip-line", index))
            .filter(Boolean),
        curve(series[line].values[item], x, y, "latent-clip-line latent-clip-line-chosen", line),
        ...targetLine(trace, line, ranges[line], x, y, columns),
        ...(best === null ? [] : [star(x(trace.bestIteration[item]), y(best))]),
        ...pointer(series, ranges, item, cursor, x, yOf, height),
    );
}

/**
 * The iteration under a horizontal place of the chart.
 *
 * @param {number} share 0 to 1 of the chart's width
 * @param {number} width in pixels of the layout
 * @param {import("./trace.js").Trace} trace
 * @returns {number|null} null before the first iteration
 */
export function iterationAt(share, width, trace) {
    const last = trace.iterations.length - 1;
    if (last < 0) return null;
    const columns = columnsOf(trace);
    const at = scale(MARGIN.left, width - MARGIN.right, 0, columns - 1)(share * width);
    return Math.min(last, Math.max(0, Math.round(at)));
}

/** Digits for the numbers of one line. */
export const decimalsOf = (values) => Math.max(3, decimalsFor(values.flat()));

const scale = (from, to, start, end) => (value) => start + ((value - from) / (to - from)) * (end - start);

function axes(range, columns, x, y, width, height) {
    const decimals = Math.min(5, Math.max(2, decimalsFor([range.min, range.max])));
    const levels = [range.min, (range.min + range.max) / 2, range.max];
    const lines = levels.map((level) => shape("line", "latent-clip-grid", {
        x1: MARGIN.left, x2: width - MARGIN.right, y1: y(level), y2: y(level),
    }));
    const numbers = levels.map((level) =>
        words(formatNumber(level, decimals), { x: MARGIN.left - 6, y: y(level) + 4, "text-anchor": "end" }));
    const ends = [[0, "start"], [columns - 1, "end"]].map(([column, anchor]) =>
        words(String(column), { x: x(column), y: height - 4, "text-anchor": anchor }));
    return [...lines, ...numbers, ...ends];
}

function targetLine({ settings }, line, { min, max }, x, y, columns) {
    const target = line === 0 ? settings.target : null;
    if (typeof target !== "number" || target < min || target > max) return [];
    return [shape("line", "latent-clip-target", { x1: x(0), x2: x(columns - 1), y1: y(target), y2: y(target) })];
}

function pointer(series, ranges, item, cursor, x, yOf, height) {
    if (cursor === null) return [];
    const dots = series.map(({ values }, index) => {
        const value = values[item]?.[cursor] ?? null;
        return value === null ? null : colored(shape("circle", "latent-clip-dot", { cx: x(cursor), cy: yOf(ranges[index])(value), r: 3 }), index);
    });
    const rule = shape("line", "latent-clip-cursor", { x1: x(cursor), x2: x(cursor), y1: MARGIN.top, y2: height - MARGIN.bottom });
    return [rule, ...dots.filter(Boolean)];
}

function curve(values, x, y, className, index) {
    return colored(shape("path", className, { d: pathOf(values ?? [], x, y) }), index);
}

/** A line's colour comes from the style sheet; six of them, then they repeat. */
function colored(made, index) {
    made.style.setProperty("--line", `var(--line-${index % 6})`);
    return made;
}

function star(x, y) {
    const points = Array.from({ length: 10 }, (_, i) => {
        const [radius, angle] = [i % 2 ? 2.6 : 6.5, (Math.PI * i) / 5];
        return `${(x + radius * Math.sin(angle)).toFixed(1)},${(y - radius * Math.cos(angle)).toFixed(1)}`;
    });
    return shape("polygon", "latent-clip-star", { points: points.join(" ") });
}

function words(content, attributes) {
    const made = shape("text", "latent-clip-tick", attributes);
    made.textContent = content;
    return made;
}

/**
 * Make an SVG element.
 *
 * @param {string} tag
 * @param {string} className
 * @param {object} attributes
 * @returns {SVGElement}
 */
export function shape(tag, className, attributes = {}) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    made.setAttribute("class", className);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
}
