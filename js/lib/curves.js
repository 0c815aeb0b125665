/**
 * The panel of curves on Optimize Noise: what the run does, while it does it and afterwards.
 */

import { hideCard, openCard } from "./card.js";
import { decimalsOf, drawChart, iterationAt, shape } from "./chart.js";
import { copyPng, copyText, toPng } from "./copying.js";
import { element, thumbnail } from "./dom.js";
import { formatNumber, formatWeight } from "./rows.js";
import {
    addEvent,
    formatDuration,
    gain,
    itemsOf,
    readTrace,
    seriesOf,
    shortNames,
    speedOf,
    toCsv,
    totalOf,
} from "./trace.js";

const PICTURE = { width: 760, height: 380 };
const HEADING = 66; // pixels of the picture
const NOTE_MILLISECONDS = 1500;
const ENDINGS = {
    iterations: "endIterations",
    stopped: "endStopped",
    patience: "endPatience",
    "watch turned down": "endWatch",
    "target reached": "endTarget",
    "non-finite reward": "endNoNumber",
    "non-finite gradient": "endNoNumber",
};

/**
 * Make an empty panel.
 *
 * @param {object} options
 * @param {(key: string, values?: object) => string} options.text the words, see texts.js
 * @param {(trace: import("./trace.js").Trace) => Promise<boolean>} options.stop ask the server to end the run
 * @param {() => string} options.getTitle of the node, for pictures and file names
 * @returns {{element: HTMLElement, strip: HTMLElement, show: (message: object) => void, add: (event: object) => boolean,
 *     trace: () => import("./trace.js").Trace|null, end: () => void}} `show` draws the trace of a run that has ended,
 *     `add` a live event (false: iterations are missing in between), `end` says that the run is lost
 */
export function createCurves({ text, stop, getTitle }) {
    const status = element("span", "latent-clip-summary");
    const stopButton = button("latent-clip-stop", text("stop"), text("stopHelp"));
    const csvButton = button("", "CSV", text("copyCsvHelp"));
    const pngButton = button("", "PNG", text("copyPngHelp"));
    const svg = shape("svg", "latent-clip-svg", { "aria-hidden": "true" });
    const chart = element("div", "latent-clip-chart", svg);
    const legend = element("div", "latent-clip-legend");
    const strip = element("div", "latent-clip-items");
    const note = element("p", "latent-clip-note");
    note.hidden = true;
    const header = element("header", "", status, stopButton, csvButton, pngButton);
    const empty = element("p", "latent-clip-empty", text("traceEmpty"));
    const root = element(
        "section",
        "latent-clip-panel latent-clip-curves",
        element("div", "latent-clip-inside", empty, header, chart, legend, strip, note),
    );
    let [trace, series, line, item, cursor, stopping, scheduled] = [null, [], 0, 0, null, false, false];

    chart.tabIndex = 0;
    chart.setAttribute("role", "slider"); // of iterations, moved by the arrow keys
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", text("termsLabel"));
    strip.setAttribute("role", "radiogroup");
    strip.setAttribute("aria-label", text("itemsLabel"));
    new ResizeObserver(schedule).observe(chart);

    stopButton.addEventListener("click", async () => {
        stopping = true;
        schedule();
        if (!(await stop(trace))) stopping = false;
        schedule();
    });
    csvButton.addEventListener("click", () => copy(csvButton, () => copyText(toCsv(trace), fileName("csv"))));
    pngButton.addEventListener("click", () => copy(pngButton, async () => copyPng(await picture(), fileName("png"))));
    chart.addEventListener("pointermove", (event) => {
        const box = chart.getBoundingClientRect();
        moveCursor(trace && iterationAt((event.clientX - box.left) / box.width, chart.clientWidth, trace));
    });
    chart.addEventListener("pointerleave", () => moveCursor(null));
    chart.addEventListener("blur", () => moveCursor(null));
    chart.addEventListener("keydown", (event) => {
        const last = (trace?.iterations.length ?? 0) - 1;
        const at = cursor ?? trace?.bestIteration[item] ?? 0;
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last, Escape: null }[event.key];
        if (to === undefined || last < 0) return;
        consume(event);
        moveCursor(to === null ? null : Math.min(last, Math.max(0, to)));
    });
    strip.addEventListener("keydown", (event) => {
        const count = itemsOf(trace);
        const to = { ArrowLeft: item - 1, ArrowRight: item + 1, Home: 0, End: count - 1 }[event.key];
        if (to === undefined) return;
        consume(event);
        choose((to + count) % count);
        strip.children[item].focus();
    });
    strip.addEventListener("click", ({ target }) => {
        const chosen = target.closest("[data-index]");
        if (chosen) choose(Number(chosen.dataset.index));
    });
    legend.addEventListener("click", ({ target }) => {
        const chosen = target.closest("[data-index]");
        if (!chosen) return;
        line = Number(chosen.dataset.index);
        schedule();
    });
    for (const shown of ["pointerover", "focusin"]) strip.addEventListener(shown, showPictures);
    for (const gone of ["pointerleave", "focusout", "scroll"]) strip.addEventListener(gone, hideCard, { passive: true });
    draw();

    function moveCursor(to) {
        if (to === cursor) return;
        cursor = to;
        schedule();
    }

    function choose(index) {
        item = index;
        schedule();
    }

    /** Draw once, before the next frame, however many events ask for it. */
    function schedule() {
        if (scheduled) return;
        scheduled = true;
        requestAnimationFrame(() => {
            scheduled = false;
            draw();
        });
    }

    function use(next) {
        if (trace === null || next.promptId !== trace.promptId) stopping = false;
        trace = next;
        series = seriesOf(trace);
        line = Math.min(line, series.length - 1);
        item = Math.min(item, Math.max(0, itemsOf(trace) - 1));
        if (cursor !== null && cursor >= trace.iterations.length) cursor = null;
        schedule();
    }

    function draw() {
        const shown = trace !== null && trace.iterations.length > 0;
        root.classList.toggle("latent-clip-has-rows", shown);
        if (!shown) return;
        const running = trace.ended === "";
        status.textContent = statusOf(trace, series[0], item, text);
        status.title = running ? status.textContent : statusOf(trace, series[0], item, text, "bestAt");
        stopButton.hidden = !running;
        stopButton.disabled = stopping;
        stopButton.textContent = stopping ? text("stopping") : text("stop");
        csvButton.hidden = pngButton.hidden = running;
        note.hidden = trace.noiseLostWith.length === 0;
        note.textContent = note.title = note.hidden ? "" : text("noiseLost", { samplers: trace.noiseLostWith.join(", ") });
        describeChart();
        drawChart(svg, { width: chart.clientWidth || 320, height: chart.clientHeight || 120 }, { trace, series, line, item, cursor });
        drawLegend();
        drawItems();
    }

    function describeChart() {
        const at = cursor ?? trace.bestIteration[item];
        const { name, values } = series[line];
        const value = formatNumber(values[item]?.[at] ?? null, decimalsOf(values));
        chart.setAttribute("aria-label", text("chartLabel"));
        chart.setAttribute("aria-valuemin", 0);
        chart.setAttribute("aria-valuemax", trace.iterations.length - 1);
        chart.setAttribute("aria-valuenow", at);
        chart.setAttribute("aria-valuetext", `${text("atIteration", { iteration: at })}: ${name || text("sum")} ${value}`);
    }

    /** One button per line, with its value at the cursor, or at the best iteration. The buttons stay, so focus does too. */
    function drawLegend() {
        const at = cursor ?? trace.bestIteration[item];
        keep(legend, series.length, () => {
            const made = button("latent-clip-series", "", "");
            made.append(element("i", "latent-clip-swatch"), element("span", "latent-clip-name"), element("b", ""));
            return made;
        });
        const labels = lineNames();
        series.forEach(({ name, weight, values }, index) => {
            const entry = legend.children[index];
            const label = name || text("sum");
            const [swatch, words, number] = entry.children;
            entry.style.setProperty("--line", `var(--line-${index % 6})`);
            entry.setAttribute("aria-pressed", index === line);
            entry.title = weight === null ? label : `${label} × ${formatWeight(weight)}`;
            swatch.hidden = series.length === 1;
            words.textContent = labels[index];
            number.textContent = formatNumber(values[item]?.[at] ?? null, decimalsOf(values));
        });
    }

    function lineNames() {
        const names = shortNames(series.filter(({ name, watched }) => name && !watched).map(({ name }) => name));
        const watched = series.filter((line) => line.watched).map(({ name }) => text("watched", { name }));
        return [...(series[0].name ? [] : [text("sum")]), ...names, ...watched];
    }

    function drawItems() {
        const highest = Math.max(...trace.best.map((value) => value ?? -Infinity));
        keep(strip, itemsOf(trace), () => {
            const made = button("latent-clip-item", "", "");
            made.setAttribute("role", "radio");
            made.append(thumbnail(""), element("span", ""));
            return made;
        });
        trace.best.forEach((value, index) => {
            const entry = strip.children[index];
            const mark = value === highest && itemsOf(trace) > 1 ? "★" : "";
            showThumbnail(entry, trace.thumbnails[index] ?? "");
            entry.lastChild.textContent = `${mark}#${index}`;
            entry.classList.toggle("latent-clip-over", trace.ended === "" && Boolean(trace.stopReasons[index]));
            entry.setAttribute("aria-checked", index === item);
            entry.setAttribute("aria-label", `${text("item", { index })}, ${formatNumber(value, decimalsOf(series[0].values))}`);
            entry.tabIndex = index === item ? 0 : -1;
        });
    }

    function keep(parent, count, make) {
        while (parent.children.length > count) parent.lastChild.remove();
        while (parent.children.length < count) {
            const made = make();
            made.dataset.index = parent.children.length;
            parent.append(made);
        }
    }

    function showPictures({ target }) {
        const entry = target.closest("[data-index]");
        const index = Number(entry?.dataset.index);
        const best = trace?.thumbnails[index];
        if (!entry || !best) return;
        const decimals = decimalsOf(series[0].values);
        const shown = [];
        if (trace.firstThumbnails[index]) shown.push([trace.firstThumbnails[index], text("first"), series[0].values[index][0]]);
        shown.push([best, text("bestOne"), trace.best[index]]);
        openCard(entry, ...shown.map(([source, label, value]) =>
            element("figure", "", thumbnail(source), element("figcaption", "", `${label} ${formatNumber(value, decimals)}`))));
    }

    async function picture() {
        const { width, height } = PICTURE;
        const copy = shape("svg", "latent-clip-svg latent-clip-hidden");
        root.append(copy);
        try {
            drawChart(copy, { width, height: height - HEADING }, { trace, series, line, item, cursor: null });
            copy.setAttribute("viewBox", `0 ${-HEADING} ${width} ${height}`);
            const title = shape("text", "latent-clip-picture-title", { x: 12, y: 26 - HEADING });
            title.textContent = `${getTitle()} · ${text("item", { index: item })}`;
            const subtitle = shape("text", "latent-clip-tick", { x: 12, y: 44 - HEADING });
            subtitle.textContent = statusOf(trace, series[0], item, text, "bestAt");
            const names = shape("text", "latent-clip-tick", { x: 12, y: 60 - HEADING });
            names.append(...lineNames().map((name, index) => {
                const made = shape("tspan", "latent-clip-line-name", { dx: index ? 12 : 0 });
                made.style.setProperty("--line", `var(--line-${index % 6})`);
                made.textContent = `■ ${name}`;
                return made;
            }));
            copy.append(title, subtitle, names);
            return await toPng(copy, PICTURE, getComputedStyle(root).backgroundColor);
        } finally {
            copy.remove();
        }
    }

    async function copy(pressed, act) {
        const label = pressed.dataset.label ?? (pressed.dataset.label = pressed.textContent);
        try {
            pressed.textContent = text(await act());
        } catch (error) {
            if (!(error instanceof DOMException)) throw error;
            pressed.textContent = text("notCopied"); // the browser does not allow it
        }
        setTimeout(() => (pressed.textContent = label), NOTE_MILLISECONDS);
    }

    const fileName = (ending) => `${getTitle().replace(/[^\p{L}\p{N}]+/gu, "-").toLowerCase()}-trace.${ending}`;

    return {
        element: root,
        strip,
        trace: () => trace,
        show(message) {
            const next = readTrace(message);
            if (next !== null) use(next);
        },
        add(event) {
            const next = addEvent(trace, event);
            if (next !== null) use(next);
            return next !== null;
        },
        end() {
            if (trace?.ended === "") use({ ...trace, ended: "interrupted" });
        },
    };
}

function statusOf(trace, { values }, item, text, sentence = "bestWith") {
    const done = trace.iterations.length;
    if (trace.ended === "") {
        const { perSecond, left } = speedOf(trace);
        const parts = [text("progress", { done, total: totalOf(trace) })];
        if (perSecond !== null) {
            const rate = perSecond >= 1 ? text("perSecond", { count: perSecond.toFixed(1) }) : text("secondsEach", { count: (1 / perSecond).toFixed(1) });
            parts.push(rate, text("timeLeft", { time: formatDuration(left) }));
        }
        return parts.join(" · ");
    }
    const decimals = decimalsOf(values);
    const best = trace.best[item] ?? null;
    const more = gain(values[item]?.[0] ?? null, best);
    const parts = [text(sentence, {
        value: formatNumber(best, decimals),
        gain: `${more >= 0 ? "+" : ""}${formatNumber(more, decimals)}`,
        iteration: trace.bestIteration[item] ?? 0,
    })];
    parts.push(endingOf(trace, item, text));
    return parts.join(" · ");
}

function endingOf(trace, item, text) {
    if (trace.ended === "interrupted") return text("endInterrupted");
    if (trace.ended === "failed") return text("endFailed");
    const reason = ENDINGS[trace.stopReasons[item]] ?? "endIterations";
    return text(reason, { count: trace.iterations.length, time: formatDuration(trace.iterations.at(-1).seconds) });
}

function button(className, label, title) {
    const made = element("button", `latent-clip-button ${className}`.trim(), label);
    made.type = "button";
    made.title = title;
    return made;
}

/** Keep the image element while only its picture changes: a new one would flash. */
function showThumbnail(entry, source) {
    const shown = entry.firstChild;
    if (shown.tagName === "IMG" && source) {
        if (shown.getAttribute("src") !== source) shown.src = source;
    } else if (shown.tagName === "IMG" || source) {
        shown.replaceWith(thumbnail(source));
    }
}

function consume(event) {
    event.preventDefault();
    event.stopPropagation();
}
