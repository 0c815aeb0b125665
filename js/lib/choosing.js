/**
 * The question of a search: the candidates that are still in it as large pictures, some of which a person lets go on.
 */

import { hideCard, openCard } from "./card.js";
import { element, thumbnail } from "./dom.js";
import { decimalsFor, formatNumber } from "./rows.js";
import { askedOf, keyOf, placeOf, questionOf, scoreOf, tileColumns, toggled } from "./search.js";
import { formatDuration } from "./trace.js";

/**
 * Make the tiles and buttons of a question.
 *
 * @param {object} options
 * @param {(key: string, values?: object) => string} options.text
 * @param {(run: import("./search.js").Search, ids: number[]) => Promise<string>} options.choose tell the server; returns why it
 *     did not take the answer, or nothing
 * @returns {{element: HTMLElement, tiles: HTMLElement, clock: HTMLElement, draw: (run: import("./search.js").Search) => void,
 *     end: () => void}} `clock` shows the time that is left, `draw` for a run that asks, `end` when nothing is asked any more
 */
export function createChoosing({ text, choose }) {
    const clock = element("span", "latent-clip-clock");
    const tiles = element("div", "latent-clip-tiles");
    const refused = element("p", "latent-clip-refused");
    const go = button("latent-clip-go");
    const propose = button("latent-clip-propose", text("takeProposal"));
    const root = element("div", "latent-clip-choosing", tiles, refused, element("footer", "", go, propose));
    let [run, question, ids, chosen, sending, timer] = [null, "", [], new Set(), false, null];

    tiles.setAttribute("role", "group");
    tiles.dataset.captureWheel = "true"; // Nodes 2.0 lets it scroll while it has the focus
    refused.setAttribute("role", "alert");
    go.addEventListener("click", () => answer([...chosen]));
    propose.addEventListener("click", () => answer(run.ask.proposed));
    tiles.addEventListener("click", ({ target }) => {
        const tile = target.closest("[data-id]");
        if (tile) toggle(Number(tile.dataset.id));
    });
    root.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (moveFocus(event.key) || pickByKey(event.key)) consume(event);
        else if (event.key === "Enter" || event.key === " ") event.stopPropagation(); // the button's own, not the canvas's
    });
    tiles.addEventListener("pointerover", ({ target }) => {
        const tile = target.closest("[data-id]");
        if (tile) openCard(root, large(run.thumbnails[tile.dataset.id] ?? "")); // beside them all, over none of them
    });
    new ResizeObserver(fit).observe(tiles);
    for (const gone of ["pointerleave", "scroll", "wheel"]) tiles.addEventListener(gone, hideCard, { passive: true });

    function draw(next) {
        run = next;
        if (questionOf(run) !== question) begin();
        ids.forEach((id, place) => showPicture(tiles.children[place], run.thumbnails[id] ?? ""));
        mark();
        tick();
    }

    function begin() {
        question = questionOf(run);
        [ids, chosen, sending] = [askedOf(run), new Set(run.ask.proposed), false];
        refused.textContent = "";
        const scores = ids.map((id) => scoreOf(run, id));
        const decimals = decimalsFor(scores);
        tiles.replaceChildren(...ids.map((id, place) => tileOf(id, keyOf(place), scores[place], decimals)));
        tiles.scrollTop = 0;
        fit();
        clearInterval(timer);
        timer = setInterval(tick, 500);
    }

    /** As large as they can be with all of them to be seen, where that is possible. */
    function fit() {
        tiles.style.setProperty("--columns", tileColumns(ids.length, tiles.clientWidth, tiles.clientHeight));
    }

    function tileOf(id, key, score, decimals) {
        const words = element("span", "latent-clip-tile-words", element("span", "", `#${id}`), element("b", "", formatNumber(score, decimals)));
        const made = button("latent-clip-tile", thumbnail(""), element("kbd", "", key), element("span", "latent-clip-tick-mark", "✓"), words);
        made.dataset.id = id;
        const proposed = run.ask.proposed.includes(id);
        made.classList.toggle("latent-clip-proposed", proposed);
        const facts = [text("item", { index: id }), score === null ? text("noNumber") : formatNumber(score, decimals), proposed && text("proposed")];
        made.setAttribute("aria-label", facts.filter(Boolean).join(", "));
        return made;
    }

    function toggle(id) {
        if (sending) return;
        chosen = toggled(chosen, id);
        mark();
    }

    function mark() {
        for (const tile of tiles.children) tile.setAttribute("aria-pressed", chosen.has(Number(tile.dataset.id)));
        go.title = text("chooseHelp", { keep: run.keep });
        go.textContent = text(sending ? "goingOn" : chosen.size === 0 ? "chooseSome" : "goOn", { count: chosen.size });
        go.disabled = sending || chosen.size === 0;
        propose.hidden = run.ask.proposed.length === 0;
        propose.disabled = sending;
        root.classList.toggle("latent-clip-sending", sending);
    }

    /** The time that is left. */
    function tick() {
        const deadline = run?.ask?.deadline ?? null;
        clock.hidden = deadline === null;
        if (deadline === null) return;
        const left = Math.max(0, (deadline - Date.now()) / 1000);
        clock.textContent = formatDuration(left);
        clock.title = text("clockHelp");
        clock.classList.toggle("latent-clip-soon", left < SOON);
    }

    async function answer(keep) {
        const asked = question;
        [sending, refused.textContent] = [true, ""];
        mark();
        const reason = await choose(run, keep);
        if (question !== asked || !reason) return; // the run goes on and says so itself
        [sending, refused.textContent] = [false, reason];
        mark();
    }

    function pickByKey(key) {
        const id = ids[placeOf(key) ?? -1];
        if (id === undefined) return false;
        toggle(id);
        return true;
    }

    /** Arrows go from tile to tile, up and down by as many as a row holds. */
    function moveFocus(key) {
        const all = [...tiles.children];
        const at = all.indexOf(document.activeElement);
        if (at < 0) return false;
        const row = all.filter((tile) => tile.offsetTop === all[0].offsetTop).length;
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - row, ArrowDown: at + row, Home: 0, End: all.length - 1 }[key];
        if (to === undefined) return false;
        all[to]?.focus();
        return true;
    }

    return {
        element: root,
        tiles,
        clock,
        draw,
        end() {
            clearInterval(timer);
            clock.hidden = true;
            [run, question, timer] = [null, "", null];
        },
    };
}

const SOON = 30; // seconds

function button(className, ...children) {
    const made = element("button", `latent-clip-button ${className}`, ...children);
    made.type = "button";
    return made;
}

function large(source) {
    const picture = thumbnail(source);
    picture.classList.add("latent-clip-large");
    return picture;
}

/** Keep the image element while only its picture changes: a new one would flash. */
function showPicture(tile, source) {
    const shown = tile.firstChild;
    if (shown.getAttribute("src") !== (source || null)) shown.replaceWith(thumbnail(source));
}

function consume(event) {
    event.preventDefault();
    event.stopPropagation();
}
