/**
 * The card beside a row that is pointed at: its picture, and what its value is made of. There is one for the page.
 */

import { element, thumbnail } from "./dom.js";
import { decimalsFor, formatNumber, formatPercent, formatWeight } from "./rows.js";

const GAP = 8;
const MOST_LINES = 12;

let card = null;

/**
 * Show the card beside an element.
 *
 * @param {HTMLElement} anchor
 * @param {import("./rows.js").Row} row
 * @param {"scores"|"classes"|"safety"} kind
 * @param {(key: string, values?: object) => string} text
 */
export function showCard(anchor, row, kind, text) {
    const lines = row.details.slice(0, MOST_LINES).map((detail) => line(detail, row, kind, text));
    if (row.details.length > MOST_LINES) {
        lines.push(element("tr", "", element("td", "", text("more", { count: row.details.length - MOST_LINES }))));
    }
    const facts = [
        text("item", { index: row.index }),
        row.best && text("bestOne"),
        row.kept === true && text("kept"),
        row.kept === false && text("notKept"),
        row.blocked && text("blocked"),
        row.value === null && text("noNumber"),
    ];
    const heading = element("p", "", facts.filter(Boolean).join(" · "));
    const reason = row.reason ? [element("div", "latent-clip-reason", row.reason)] : [];
    const picture = thumbnail(row.thumbnail);
    picture.classList.toggle("latent-clip-blurred", row.blocked);
    openCard(anchor, picture, element("div", "", heading, ...reason, element("table", "", ...lines)));
}

/**
 * Show a card of any content beside an element.
 *
 * @param {HTMLElement} anchor
 * @param {...HTMLElement} children
 */
export function openCard(anchor, ...children) {
    hideCard();
    card = element("div", "latent-clip-card", ...children);
    card.setAttribute("role", "tooltip");
    document.body.append(card);
    place(card, anchor.getBoundingClientRect());
}

/** Take the card away. */
export function hideCard() {
    card?.remove();
    card = null;
}

function line({ name, value, weight, threshold }, row, kind, text) {
    const decimals = Math.max(kind === "safety" ? 2 : 4, decimalsFor(row.details.map((detail) => detail.value)));
    const cells = [name, kind === "classes" ? formatPercent(value) : formatNumber(value, decimals)];
    if (kind === "safety") cells[1] = text("overThreshold", { value: cells[1], threshold: formatNumber(threshold, 2) });
    if (weight !== null && (weight !== 1 || row.details.length > 1)) cells.push(`× ${formatWeight(weight)}`);
    return element("tr", "", ...cells.map((cell) => element("td", "", cell)));
}

function place(box, anchor) {
    const { width, height } = box.getBoundingClientRect();
    const right = anchor.right + GAP;
    const left = right + width <= window.innerWidth ? right : anchor.left - GAP - width;
    box.style.left = `${Math.max(GAP, left)}px`;
    box.style.top = `${Math.max(GAP, Math.min(anchor.top, window.innerHeight - height - GAP))}px`;
}
