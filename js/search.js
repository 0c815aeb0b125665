/**
 * Lanes on Search Best Images, live: every candidate's score in each round, where it fell, its cost; and the question which
 * candidates go on, where a person chooses.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { hideCard } from "./lib/card.js";
import { client, post, runsOfClient } from "./lib/client.js";
import { addStyle, passWheelOn } from "./lib/dom.js";
import { livePanels } from "./lib/live.js";
import { nodesByLocator } from "./lib/nodes.js";
import { register } from "./lib/register.js";
import { createSearchPanel } from "./lib/searchpanel.js";
import { makeTexts } from "./lib/texts.js";

const NODE = "LatentCLIPSearch";
const NODE_NAME = "Search Best Images";
const EVENT = "latent_clip.search";
const HEIGHT = 342; // of the widget with its margins, whatever it shows; dragging the node larger shows more and larger pictures
const WIDTH = 420; // of a new node
const ORDER = "latent_clip_order"; // a node property, so it is saved with the workflow
const NOTE_MILLISECONDS = 10_000;
const rootGraph = () => app.rootGraph ?? app.graph;
const panels = livePanels(rootGraph);
let text = makeTexts({}, "en");
let soon = null;

/** Give a node its panel. */
function addPanel(node) {
    const panel = createSearchPanel({
        text: (key, values) => text(key, values),
        choose,
        asked: () => tell(node, panel.element),
        getOrder: () => (node.properties?.[ORDER] === "batch" ? "batch" : "best"),
        setOrder: (order) => node.setProperty(ORDER, order),
    });
    const widget = node.addDOMWidget("latent_clip_search", "latent_clip_search", panel.element, {
        serialize: false, // not into the prompt
        getMinHeight: () => HEIGHT,
        onHide: hideCard,
    });
    widget.serialize = false; // not into the workflow
    for (const list of panel.lists) list.addEventListener("wheel", (event) => passWheelOn(event, list, app.canvas));
    panels.set(node, panel);
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);

    const { onExecuted, onRemoved } = node;
    node.onExecuted = function (output) {
        onExecuted?.apply(this, arguments);
        panel.show(output?.latent_clip);
    };
    node.onRemoved = function () {
        hideCard();
        panel.dispose();
        onRemoved?.apply(this, arguments);
    };
}

/** Answer the server; returns why it did not take the answer, or nothing. */
async function choose({ promptId, node, listIndex }, keep) {
    try {
        const response = await post("/latent_clip/choose", { prompt_id: promptId, node, list_index: listIndex, keep });
        if (response.ok) return "";
        catchUpSoon(); // perhaps the question is another one by now
        return (await response.json()).error ?? text("notAnswered");
    } catch (error) {
        if (!(error instanceof TypeError || error instanceof SyntaxError)) throw error;
        return text("notAnswered"); // no connection, or something in between has answered
    }
}

/** Say that a node waits, to somebody who does not see it. */
function tell(node, panel) {
    const { top, bottom, left, right } = panel.getBoundingClientRect();
    const seen = bottom > top && top < window.innerHeight && bottom > 0 && left < window.innerWidth && right > 0;
    if (!seen || document.hidden) note(text("asksYou", { title: node.title || NODE_NAME }));
}

const note = (summary, detail) => app.extensionManager.toast.add({ severity: "info", summary, detail, life: NOTE_MILLISECONDS });

/** Fetch the runs that are going on: after a reload, or after a change of the workflow tab, nothing else says that one waits. */
async function catchUp() {
    if (!client() || panels.open().length === 0) return;
    const goesOn = (runs, { promptId, node, listIndex }) =>
        runs.some((run) => run.prompt_id === promptId && run.node === node && run.list_index === listIndex);
    await panels.catchUp(runsOfClient, (panel) => panel.running(), (panel, runs, before) =>
        panel.end((run) => goesOn(runs, run) || !before.includes(run)));
}

/** Catch up once, however many nodes have just come. */
function catchUpSoon() {
    clearTimeout(soon);
    soon = setTimeout(catchUp, 0);
}

register({
    name: "LatentCLIP.Search",

    async init() {
        for (const name of ["./scores.css", "./trace.css", "./search.css"]) addStyle(new URL(name, import.meta.url).href);
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        text = makeTexts(await api.getCustomNodesI18n(), language);
    },

    setup() {
        api.addEventListener(EVENT, ({ detail }) => {
            const panel = panels.of(detail);
            if (panel) panel.add(detail);
            else if (detail.waiting) note(text("asksYou", { title: NODE_NAME }), text("askedElsewhere"));
        });
        api.addEventListener("reconnected", catchUpSoon);
        api.addEventListener("status", catchUpSoon, { once: true }); // from then on the server knows who we are
    },

    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        addPanel(node);
        catchUpSoon(); // it has its id by then
    },

    /** A workflow has been opened. */
    afterConfigureGraph: catchUpSoon,

    /** The page has outputs from elsewhere: a run of the history, or a workflow tab that was open before. */
    onNodeOutputsUpdated(outputs) {
        for (const [locator, node] of nodesByLocator(rootGraph())) {
            const panel = panels.get(node);
            if (panel?.running().length === 0) panel.show(outputs[locator]?.latent_clip);
        }
    },
});
