/**
 * The panel of bars: one row per latent, drawn with plain elements, so that it is the same on both of the page's renderers.
 */

import { hideCard, showCard } from "./card.js";
import { element, moveFocusByKeys, thumbnail } from "./dom.js";
import {
    barLength,
    decimalsFor,
    extent,
    formatNumber,
    formatPercent,
    readReport,
    sortRows,
    thresholdAt,
    thresholdByKey,
} from "./rows.js";

/** Rows that are drawn at most; the node's report output has all. */
export const MOST_ROWS = 512;

const PROBABILITIES = { min: 0, max: 1 };

/**
 * Make an empty panel.
 *
 * @param {object} options
 * @param {(key: string, values?: object) => string} options.text the words, see texts.js
 * @param {() => "best"|"batch"} options.getOrder
 * @param {(order: "best"|"batch") => void} options.setOrder
 * @param {() => number|null} [options.getThreshold] the node's minimum score; null where none is demanded
 * @param {(threshold: number) => void} [options.setThreshold]
 * @returns {{element: HTMLElement, list: HTMLElement, show: (message: object) => void, refresh: () => void}} `show` draws a
 *     node's message and leaves the panel alone where the message is no report; `refresh` follows a changed threshold
 */
export function createPanel({ text, getOrder, setOrder, getThreshold = () => null, setThreshold = () => {} }) {
    const summary = element("span", "latent-clip-summary");
    const button = element("button", "latent-clip-order");
    const list = element("ol", "latent-clip-rows");
    const axis = element("div", "latent-clip-axis");
    const handle = element("span", "latent-clip-threshold");
    const overlay = element("div", "latent-clip-overlay", element("div", "latent-clip-overlay-bar", handle));
    const body = element("div", "latent-clip-body", list, overlay);
    const empty = element("p", "latent-clip-empty", text("empty"));
    const header = element("header", "", summary, button);
    // what is inside has no size of its own for the node's layout, so results never move a thing
    const root = element("section", "latent-clip-panel", element("div", "latent-clip-inside", empty, header, body, axis));
    let [report, range, format] = [null, null, null];

    button.type = "button";
    button.addEventListener("click", () => {
        setOrder(getOrder() === "best" ? "batch" : "best");
        draw();
    });
    list.setAttribute("role", "list");
    list.dataset.captureWheel = "true";
    moveFocusByKeys(list, "li[data-index]");
    moveThreshold(handle, () => range, getThreshold, (threshold) => {
        setThreshold(threshold);
        drawThreshold();
    });
    showCards(list, (index) => report.rows[index], () => report.kind, text);
    draw();

    function draw() {
        root.classList.toggle("latent-clip-has-rows", report !== null);
        if (report === null) return;
        const { kind, rows } = report;
        const values = rows.map((row) => row.value);
        range = kind === "classes" ? PROBABILITIES : kind === "safety" ? withZero(extent(values)) : extent(values);
        const decimals = decimalsFor(values);
        format = kind === "classes" ? formatPercent : (value) => formatNumber(value, decimals);
        const order = getOrder();

        root.dataset.kind = kind;
        root.dataset.selects = report.selects;
        root.style.setProperty("--digits", String(rows.length).length);
        root.style.setProperty("--value-width", `${Math.max(...values.map((value) => format(value).length))}ch`);
        summary.textContent = summaryOf(report, text);
        const best = kind === "safety" ? text("worst") : text("best");
        const showBest = kind === "safety" ? text("showWorst") : text("showBest");
        button.textContent = `⇅ ${order === "best" ? best : text("batch")}`;
        button.title = order === "best" ? text("showBatch") : showBest;
        button.hidden = rows.length < 2;

        const shown = sortRows(rows, order).slice(0, MOST_ROWS);
        list.replaceChildren(...shown.map((row) => rowElement(row, range, format, text)));
        if (rows.length > MOST_ROWS) {
            list.append(element("li", "latent-clip-more", text("more", { count: rows.length - MOST_ROWS })));
        }
        list.firstChild?.setAttribute("tabindex", "0");
        drawThreshold();
    }

    /** The minimum score across all bars, or a gate's thresholds at 0; and what the bars mean, below them. */
    function drawThreshold() {
        if (report === null) return;
        const threshold = report.kind === "safety" ? 0 : getThreshold();
        overlay.hidden = threshold === null || range === null || range.min === range.max;
        drawAxis(axis, range, format, text, report.kind);
        if (threshold === null) return;
        handle.style.left = `${100 * barLength(threshold, range)}%`;
        if (report.kind === "safety") return;
        const reached = report.rows.filter(({ value }) => value !== null && value >= threshold).length;
        axis.textContent = text("threshold", { value: formatNumber(threshold, 3), count: reached, total: report.rows.length });
        axis.title = text("thresholdHelp");
        handle.tabIndex = 0;
        handle.title = text("thresholdHelp");
        handle.setAttribute("role", "slider");
        handle.setAttribute("aria-label", text("thresholdLabel"));
        handle.setAttribute("aria-valuenow", threshold);
        handle.setAttribute("aria-valuetext", axis.textContent);
        if (range !== null) {
            handle.setAttribute("aria-valuemin", range.min);
            handle.setAttribute("aria-valuemax", range.max);
        }
    }

    return {
        element: root,
        list,
        refresh: drawThreshold,
        show(message) {
            const next = readReport(message);
            if (next === null) return;
            hideCard();
            report = next;
            draw();
        },
    };
}

const withZero = (range) => range && { min: Math.min(0, range.min), max: Math.max(0, range.max) };

function summaryOf({ kind, rows, selects }, text) {
    const count = text(rows.length === 1 ? "oneLatent" : "latents", { count: rows.length });
    if (kind === "safety") return `${count}, ${text("blockedCount", { count: rows.filter((row) => row.blocked).length })}`;
    return selects ? `${count}, ${text("keptCount", { count: rows.filter((row) => row.kept).length })}` : count;
}

function rowElement(row, range, format, text) {
    const fill = element("span", "latent-clip-fill");
    fill.style.width = `${100 * barLength(row.value, range)}%`;
    const bar = element("span", "latent-clip-bar", fill, element("span", "latent-clip-label", row.label));
    const mark = row.blocked ? "✕" : row.kept ? "✓" : row.best && row.kept === null ? "★" : "";
    const made = element(
        "li",
        "",
        element("span", "latent-clip-rank", row.rank === null ? "–" : String(row.rank)),
        thumbnail(row.thumbnail),
        element("span", "latent-clip-index", `#${row.index}`),
        bar,
        element("span", "latent-clip-value", format(row.value)),
        element("span", "latent-clip-mark", mark),
    );
    made.dataset.index = row.index;
    made.classList.toggle("latent-clip-best", row.best);
    made.classList.toggle("latent-clip-blocked", row.blocked);
    made.classList.toggle("latent-clip-dropped", row.kept === false);
    made.tabIndex = -1;
    made.setAttribute("aria-label", describe(row, format, text));
    return made;
}

function describe(row, format, text) {
    const parts = [
        text("item", { index: row.index }),
        row.label,
        row.value === null ? text("noNumber") : format(row.value),
        row.rank !== null && text("rank", { rank: row.rank }),
        row.kept === true && text("kept"),
        row.blocked && text("blocked"),
    ];
    return parts.filter(Boolean).join(", ");
}

function drawAxis(axis, range, format, text, kind) {
    const equal = range !== null && range.min === range.max;
    axis.title = range === null ? "" : text(equal ? "allEqualHelp" : kind === "classes" ? "classAxisHelp" : "scoreAxisHelp");
    if (range === null) axis.textContent = text("noNumbers");
    else if (kind === "safety") [axis.textContent, axis.title] = [text("safetyAxis"), text("safetyAxisHelp")];
    else if (equal) axis.textContent = text("allEqual");
    else axis.textContent = text("axis", { min: format(range.min), max: format(range.max) });
}

/** Drag the line of the minimum score, or move it by keys. */
function moveThreshold(handle, getRange, getThreshold, setThreshold) {
    handle.addEventListener("pointerdown", (event) => {
        if (event.button !== 0 || handle.tabIndex < 0) return;
        handle.setPointerCapture(event.pointerId);
        event.stopPropagation(); // the node does not come along
    });
    handle.addEventListener("pointermove", (event) => {
        if (!handle.hasPointerCapture(event.pointerId)) return;
        const { left, width } = handle.parentElement.getBoundingClientRect();
        setThreshold(thresholdAt((event.clientX - left) / width, getRange()));
    });
    handle.addEventListener("keydown", (event) => {
        const next = thresholdByKey(event.key, getThreshold(), getRange());
        if (next === null) return;
        event.preventDefault();
        event.stopPropagation();
        setThreshold(next);
    });
}

function showCards(list, rowAt, kind, text) {
    const show = ({ target }) => {
        const anchor = target.closest("li[data-index]");
        if (anchor) showCard(anchor, rowAt(Number(anchor.dataset.index)), kind(), text);
    };
    list.addEventListener("pointerover", show);
    list.addEventListener("focusin", show);
    for (const gone of ["pointerleave", "focusout", "wheel"]) list.addEventListener(gone, hideCard, { passive: true });
    list.addEventListener("scroll", () => {
        // keys scroll the list too, and then the card goes with the row
        const focused = list.querySelector("li:focus-visible");
        if (focused) show({ target: focused });
        else hideCard();
    });
}
