/**
 * The lanes of a search: a row per candidate, a column per look, the dropped ones greyed where they fell.
 */

import { hideCard, openCard } from "./card.js";
import { element, moveFocusByKeys, thumbnail } from "./dom.js";
import { barLength, decimalsFor, extent, formatNumber } from "./rows.js";
import { lanesOf } from "./search.js";

/**
 * Make an empty table.
 *
 * @param {(key: string, values?: object) => string} text
 * @returns {{element: HTMLElement, draw: (run: import("./search.js").Search, order: "best"|"batch") => void}} `element` scrolls
 */
export function createLanes(text) {
    const head = element("div", "latent-clip-lane latent-clip-lane-head");
    const list = element("ol", "latent-clip-lane-list");
    const root = element("div", "latent-clip-lanes", head, list);
    const rows = new Map(); // candidate → its row, and what it shows
    let [run, columns] = [null, []];

    head.setAttribute("aria-hidden", "true"); // each row says it all
    list.setAttribute("role", "list");
    root.dataset.captureWheel = "true"; // Nodes 2.0 lets it scroll while it has the focus
    moveFocusByKeys(list, "li");
    for (const shown of ["pointerover", "focusin"]) list.addEventListener(shown, showPicture);
    for (const gone of ["pointerleave", "focusout"]) list.addEventListener(gone, hideCard);
    root.addEventListener("wheel", hideCard, { passive: true });
    root.addEventListener("scroll", () => {
        // keys scroll the rows too, and then the card goes with the row
        const focused = list.querySelector("li:focus-visible");
        if (focused) showPicture({ target: focused });
        else hideCard();
    });

    function draw(next, order) {
        const before = columns.length;
        run = next;
        columns = run.looks.map((look) => columnOf(look, text));
        root.style.setProperty("--looks", columns.length);
        root.style.setProperty("--digits", String(run.candidates).length);
        head.replaceChildren(element("span", "latent-clip-lane-who"), ...columns.map(({ label }) => element("span", "", label)));
        const lanes = lanesOf(run, order);
        const shown = lanes.map(rowOf);
        for (const id of rows.keys()) if (id >= run.candidates) rows.delete(id);
        // what has the focus keeps it, and nothing is moved in vain
        if (shown.length !== list.children.length || shown.some((row, place) => list.children[place] !== row)) list.replaceChildren(...shown);
        if (columns.length > before) root.scrollLeft = root.scrollWidth; // the newest look
        if (!list.querySelector("[tabindex='0']")) shown[0]?.setAttribute("tabindex", "0");
    }

    /** The candidate's row, drawn again where it has changed: a new image element would flash. */
    function rowOf(lane) {
        const state = JSON.stringify([lane, columns]);
        const known = rows.get(lane.id);
        if (known?.state === state) return known.row;
        const row = known?.row ?? element("li", "latent-clip-lane");
        fill(row, lane, columns, text);
        rows.set(lane.id, { row, lane, state });
        return row;
    }

    function showPicture({ target }) {
        const row = target.closest("li");
        if (row) openCard(row, ...cardOf(rows.get(Number(row.dataset.id)).lane, run, columns, text));
    }

    return { element: root, draw };
}

/** The name of a look as the page writes it. */
export const lookName = (name, text) => ({ draft: text("lookDraft"), final: text("lookFinal") })[name] ?? name;

function columnOf(look, text) {
    const values = [...look.scores.values()];
    return { label: lookName(look.name, text), range: extent(values), decimals: decimalsFor(values) };
}

function fill(row, lane, columns, text) {
    const place = element("span", "latent-clip-lane-place", lane.place === null ? "" : `★${lane.place}`);
    const picture = row.querySelector("img")?.getAttribute("src") === lane.thumbnail ? row.querySelector("img") : thumbnail(lane.thumbnail);
    const who = element("span", "latent-clip-lane-who", place, picture, element("span", "latent-clip-index", `#${lane.id}`));
    row.replaceChildren(who, ...lane.cells.map((cell, index) => cellOf(cell, columns[index], lane.thumbnail)));
    row.dataset.id = lane.id;
    row.classList.toggle("latent-clip-winner", lane.place !== null);
    row.classList.toggle("latent-clip-fell", lane.fell !== null);
    if (!row.hasAttribute("tabindex")) row.tabIndex = -1;
    row.setAttribute("aria-label", describe(lane, columns, text));
}

/** With its picture, where that is another one than the lane's own. */
function cellOf({ score, state, thumbnail: source }, { range, decimals }, latest) {
    if (state === "out") return element("span", "");
    const bar = element("i", "latent-clip-fill");
    bar.style.width = `${100 * barLength(score, range)}%`;
    const picture = source && source !== latest ? [thumbnail(source)] : [];
    const made = element("span", `latent-clip-look latent-clip-look-${state}`, bar, ...picture, element("b", "", formatNumber(score, decimals)));
    if (state === "fell") made.append(element("span", "latent-clip-cross", "✕"));
    return made;
}

function describe(lane, columns, text) {
    const seen = lane.cells.map((cell, index) => [cell, columns[index]]).filter(([{ state }]) => state !== "out");
    const looks = seen.map(([{ score }, { label, decimals }]) => `${label} ${score === null ? text("noNumber") : formatNumber(score, decimals)}`);
    return [text("item", { index: lane.id }), fateOf(lane, columns, text), ...looks].filter(Boolean).join(", ");
}

function fateOf(lane, columns, text) {
    if (lane.place !== null) return text("winner", { place: lane.place });
    return lane.fell === null ? "" : text("fell", { look: columns[lane.fell].label });
}

function cardOf(lane, run, columns, text) {
    const pictures = element("div", "latent-clip-stages", ...stagesOf(lane, columns));
    const facts = [text("item", { index: lane.id }), fateOf(lane, columns, text)].filter(Boolean).join(" · ");
    const looks = lane.cells.map(({ score, state }, index) => state !== "out" &&
        element("tr", "", element("td", "", columns[index].label), element("td", "", formatNumber(score, columns[index].decimals))));
    const noise = run.batchIndex[lane.id] ?? null;
    const origin = noise !== null && run.seed !== null && element("div", "latent-clip-origin", text("noiseOf", { index: noise, seed: run.seed }));
    return [pictures, element("div", "", element("p", "", facts), element("table", "", ...looks.filter(Boolean)), ...[origin].filter(Boolean))];
}

/** A candidate's pictures, look by look where there are several. */
function stagesOf(lane, columns) {
    const seen = lane.cells.map(({ thumbnail: source }, index) => [source, columns[index].label]).filter(([source]) => source);
    const shown = seen.length > 0 ? seen.slice(-MOST_STAGES) : [[lane.thumbnail, ""]];
    return shown.map(([source, label]) => {
        const picture = thumbnail(source);
        if (shown.length === 1) picture.classList.add("latent-clip-large");
        return element("figure", "", picture, ...(shown.length > 1 ? [element("figcaption", "", label)] : []));
    });
}

const MOST_STAGES = 4;
