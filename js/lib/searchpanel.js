/**
 * The panel of Search Best Images: how far every candidate came and what it cost, or the question who goes on.
 */

import { createChoosing } from "./choosing.js";
import { element } from "./dom.js";
import { createLanes, lookName } from "./lanes.js";
import { decimalsFor, formatNumber } from "./rows.js";
import { aliveOf, questionOf, readSearch, readSearches, scoreOf, sharesOf, withSearch } from "./search.js";

/**
 * Make an empty panel.
 *
 * @param {object} options
 * @param {(key: string, values?: object) => string} options.text the words, see texts.js
 * @param {(run: import("./search.js").Search, ids: number[]) => Promise<string>} options.choose answer the server's question;
 *     returns why it did not take the answer, or nothing
 * @param {(run: import("./search.js").Search) => void} options.asked a question has come up
 * @param {() => "best"|"batch"} options.getOrder
 * @param {(order: "best"|"batch") => void} options.setOrder
 * @returns {{element: HTMLElement, lists: HTMLElement[], show: (messages: object[]) => void, add: (event: object) => void,
 *     running: () => import("./search.js").Search[], end: (known: (run: object) => boolean) => void, dispose: () => void}}
 *     `lists` scroll, `show` draws a run that has ended, `add` a live message, `end` says of the runs
 *     that the server does not know that they are lost
 */
export function createSearchPanel({ text, choose, asked, getOrder, setOrder }) {
    const status = element("span", "latent-clip-summary");
    const pager = element("span", "latent-clip-pager");
    const [back, page, forth] = [button("‹", text("earlierRun")), element("span", ""), button("›", text("laterRun"))];
    const order = button("", "");
    const lanes = createLanes(text);
    const cost = element("div", "latent-clip-cost");
    const choosing = createChoosing({ text, choose });
    const empty = element("p", "latent-clip-empty", text("searchEmpty"));
    const header = element("header", "", status, pager, choosing.clock, order);
    const root = element("section", "latent-clip-panel latent-clip-search",
        element("div", "latent-clip-inside", empty, header, cost, lanes.element, choosing.element));
    let [runs, shown, question, scheduled] = [[], 0, "", false];

    root.tabIndex = -1;
    pager.append(back, page, forth);
    status.setAttribute("role", "status");
    back.addEventListener("click", () => turn(shown - 1));
    forth.addEventListener("click", () => turn(shown + 1));
    order.addEventListener("click", () => {
        setOrder(getOrder() === "best" ? "batch" : "best");
        draw();
    });
    draw();

    function turn(to) {
        shown = Math.min(runs.length - 1, Math.max(0, to));
        draw();
    }

    function use(next, place) {
        runs = next;
        shown = Math.min(place, runs.length - 1);
        if (scheduled) return;
        scheduled = true;
        requestAnimationFrame(() => {
            scheduled = false;
            draw();
        });
    }

    function draw() {
        const run = runs[shown] ?? null;
        root.classList.toggle("latent-clip-has-rows", run !== null);
        root.classList.toggle("latent-clip-asks", Boolean(run?.ask));
        if (run === null) return;
        root.dataset.ended = run.ended;
        status.textContent = statusOf(run, text);
        status.title = status.textContent;
        pager.hidden = runs.length < 2;
        page.textContent = `${shown + 1}/${runs.length}`;
        [back.disabled, forth.disabled] = [shown === 0, shown === runs.length - 1];
        order.hidden = run.ask !== null;
        order.textContent = `⇅ ${text(getOrder())}`;
        order.title = text(getOrder() === "best" ? "showBatch" : "showBest");
        drawCost(cost, run, text);
        if (run.ask === null) lanes.draw(run, getOrder());
        ask(run);
    }

    function ask(run) {
        const next = questionOf(run);
        if (run.ask === null) choosing.end();
        else choosing.draw(run);
        if (next !== question && next) {
            takeFocus(choosing.tiles.firstChild);
            asked(run);
        }
        question = next;
    }

    return {
        element: root,
        lists: [lanes.element, choosing.tiles],
        show(messages) {
            const [first, ...more] = readSearches(messages);
            if (first === undefined) return;
            const place = runs[0]?.promptId === first.promptId ? shown : 0;
            use([first, ...more].reduce((known, run) => withSearch(known, run), runs), place);
        },
        add(event) {
            const next = readSearch(event);
            if (next === null) return;
            const known = withSearch(runs, next);
            const asking = known.findIndex((run) => run.ask !== null);
            use(known, asking >= 0 ? asking : known.findIndex(({ node, listIndex }) => node === next.node && listIndex === next.listIndex));
        },
        running: () => runs.filter(({ ended }) => ended === ""),
        end(known) {
            if (runs.every((run) => run.ended !== "" || known(run))) return;
            use(runs.map((run) => (run.ended !== "" || known(run) ? run : { ...run, ask: null, ended: "interrupted" })), shown);
        },
        dispose: choosing.end,
    };
}

/** The number keys work at once, unless somebody is typing elsewhere. */
function takeFocus(target) {
    const typing = document.activeElement?.matches("input, textarea, select, [contenteditable=true]");
    if (!typing) target?.focus({ preventScroll: true });
}

function statusOf(run, text) {
    const last = run.looks.at(-1);
    const look = last ? lookName(last.name, text) : "";
    if (run.ask !== null) return text("asking", { look });
    if (run.ended === "failed") return text("endFailed");
    const left = text("searchLeft", { count: aliveOf(run).length, total: run.candidates });
    if (run.ended === "interrupted") return `${text("endInterrupted")} · ${left}`;
    if (run.ended === "") return [look, last ? left : text("searchStarts", { total: run.candidates })].filter(Boolean).join(" · ");
    const kept = text("searchKept", { count: run.winners.length, total: run.candidates });
    const best = scoreOf(run, run.winners[0]);
    const score = best === null ? "" : text("bestShort", { value: formatNumber(best, Math.max(3, decimalsFor([best]))) });
    return [kept, score].filter(Boolean).join(" · ");
}

/** What has been spent on the axis of what a plain batch costs, with a tick at the plan. */
function drawCost(cost, run, text) {
    const { spent, plan } = sharesOf(run);
    cost.hidden = spent === null;
    if (spent === null) return;
    const whole = (share) => Math.round(100 * share);
    const [bar, tick] = [element("i", "latent-clip-fill"), element("i", "latent-clip-plan")];
    bar.style.width = `${Math.min(100, 100 * spent)}%`;
    tick.style.left = `${Math.min(100, 100 * (plan ?? 0))}%`;
    tick.hidden = plan === null || run.ended !== "";
    const words = run.ended === "" && plan !== null ? text("costRunning", { spent: whole(spent), plan: whole(plan) }) : text("costSpent", { spent: whole(spent) });
    cost.replaceChildren(element("span", "latent-clip-cost-bar", bar, tick), element("span", "", words));
    cost.title = text("costHelp", { spent: run.cost.spent, plan: run.cost.plan ?? "–", plain: run.cost.plain, total: run.candidates });
}

function button(label, title) {
    const made = element("button", "latent-clip-button", label);
    made.type = "button";
    made.title = title;
    made.setAttribute("aria-label", title);
    return made;
}
