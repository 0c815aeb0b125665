/**
 * Curves on Optimize Noise, live: reward and terms per iteration, the best so far, and a button that ends the run.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { hideCard } from "./lib/card.js";
import { post, runsOfClient } from "./lib/client.js";
import { createCurves } from "./lib/curves.js";
import { addStyle } from "./lib/dom.js";
import { livePanels } from "./lib/live.js";
import { nodesByLocator } from "./lib/nodes.js";
import { register } from "./lib/register.js";
import { makeTexts } from "./lib/texts.js";

const NODE = "LatentCLIPOptimizeNoise";
const EVENT = "latent_clip.reno";
const HEIGHT = 262; // of the widget with its margins, whatever it shows; dragging the node larger gives it to the chart
const WIDTH = 400; // of a new node
const rootGraph = () => app.rootGraph ?? app.graph;
const panels = livePanels(rootGraph);
let text = makeTexts({}, "en");
let asking = false;

/** Give a node its panel. */
function addPanel(node) {
    const panel = createCurves({
        text: (key, values) => text(key, values),
        stop: async ({ promptId, node: id }) => (await post("/latent_clip/stop", { prompt_id: promptId, node: id })).ok,
        getTitle: () => node.title || NODE,
    });
    const widget = node.addDOMWidget("latent_clip_trace", "latent_clip_trace", panel.element, {
        serialize: false, // not into the prompt
        getMinHeight: () => HEIGHT,
        onHide: hideCard,
    });
    widget.serialize = false; // not into the workflow
    panel.element.addEventListener("wheel", (event) => passOn(event, panel.strip));
    panels.set(node, panel);
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);

    const { onConfigure, onExecuted, onRemoved } = node;
    node.onConfigure = function (saved) {
        onConfigure?.apply(this, arguments);
        leaveOff(this, "views", saved);
    };
    node.onExecuted = function (output) {
        onExecuted?.apply(this, arguments);
        panel.show(output?.latent_clip);
    };
    node.onRemoved = function () {
        hideCard();
        onRemoved?.apply(this, arguments);
    };
}

/** A switch that is on in new nodes stays off in a node that was saved before there was one. */
function leaveOff(node, name, saved) {
    const place = node.widgets.findIndex((widget) => widget.name === name);
    if (Array.isArray(saved.widgets_values) && saved.widgets_values.length <= place) node.widgets[place].value = false;
}

/** The wheel moves a strip of items that does not fit; otherwise it belongs to the canvas. */
function passOn(event, strip) {
    event.preventDefault();
    const overflows = strip.contains(event.target) && strip.scrollWidth > strip.clientWidth;
    if (overflows && !event.ctrlKey && !event.metaKey) strip.scrollLeft += event.deltaX || event.deltaY;
    else app.canvas.processMouseWheel(event);
}

/** Fetch the runs that are going on: after a reload, or after a change of the workflow tab, their beginning is missing. */
async function catchUp() {
    if (asking) return;
    asking = true;
    try {
        await panels.catchUp(runsOfClient, (panel) => [panel.trace()?.promptId], (panel, runs, before) => {
            const shown = panel.trace()?.promptId;
            if (before.includes(shown) && !runs.some((run) => run.prompt_id === shown)) panel.end();
        });
    } finally {
        asking = false;
    }
}

register({
    name: "LatentCLIP.Trace",

    async init() {
        for (const name of ["./scores.css", "./trace.css"]) addStyle(new URL(name, import.meta.url).href);
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        text = makeTexts(await api.getCustomNodesI18n(), language);
    },

    setup() {
        api.addEventListener(EVENT, ({ detail }) => {
            const panel = panels.of(detail);
            if (panel && !panel.add(detail)) catchUp();
        });
        api.addEventListener("reconnected", catchUp);
    },

    nodeCreated(node) {
        if (node.comfyClass === NODE) addPanel(node);
    },

    /** The page has outputs from elsewhere: a run of the history, or a workflow tab that was open before. */
    onNodeOutputsUpdated(outputs) {
        for (const [locator, node] of nodesByLocator(rootGraph())) {
            const panel = panels.get(node);
            if (panel?.trace()?.ended !== "") panel?.show(outputs[locator]?.latent_clip);
        }
    },
});
