/**
 * Bars on the nodes that judge: Score Latents, Select Best Latents, Classify Latents, Safety Gate.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { hideCard } from "./lib/card.js";
import { addStyle, passWheelOn } from "./lib/dom.js";
import { nodesByLocator } from "./lib/nodes.js";
import { createPanel } from "./lib/panel.js";
import { register } from "./lib/register.js";
import { makeTexts } from "./lib/texts.js";

const NODES = new Set(["LatentCLIPScore", "LatentCLIPSelect", "LatentCLIPClassify", "LatentCLIPSafetyGate"]);
const HEIGHT = 202; // of the widget with its margins, whatever it shows: four rows; dragging the node larger shows more
const WIDTH = 320; // of a new node
const ORDER = "latent_clip_order"; // a node property, so it is saved with the workflow
const panels = new WeakMap();
let text = makeTexts({}, "en");

/** Give a node its panel. */
function addPanel(node) {
    const panel = createPanel({
        text: (key, values) => text(key, values),
        getOrder: () => (node.properties?.[ORDER] === "batch" ? "batch" : "best"),
        setOrder: (order) => node.setProperty(ORDER, order),
        getThreshold: () => (valueOf(node, "use_threshold") ? valueOf(node, "threshold") : null),
        setThreshold: (threshold) => setValue(node, "threshold", threshold),
    });
    for (const widget of node.widgets ?? []) {
        if (widget.name === "use_threshold" || widget.name === "threshold") follow(widget, panel.refresh);
    }
    const widget = node.addDOMWidget("latent_clip_scores", "latent_clip_scores", panel.element, {
        serialize: false, // not into the prompt
        getMinHeight: () => HEIGHT,
        onHide: hideCard,
    });
    widget.serialize = false; // not into the workflow
    panel.list.addEventListener("wheel", (event) => passWheelOn(event, panel.list, app.canvas));
    panels.set(node, panel);
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);

    const { onConfigure, onExecuted, onRemoved } = node;
    node.onConfigure = function () {
        onConfigure?.apply(this, arguments);
        panel.refresh(); // the widgets have the workflow's values now
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

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const valueOf = (node, name) => widgetOf(node, name)?.value ?? null;

/** Set a widget as if the user had, so that the workflow counts as changed. */
function setValue(node, name, value) {
    const widget = widgetOf(node, name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    app.canvas.setDirty(true, true);
}

/** Call back after a widget has changed. */
function follow(widget, changed) {
    const { callback } = widget;
    widget.callback = function () {
        const result = callback?.apply(this, arguments);
        changed();
        return result;
    };
}

register({
    name: "LatentCLIP.Scores",

    async init() {
        addStyle(new URL("./scores.css", import.meta.url).href);
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        text = makeTexts(await api.getCustomNodesI18n(), language);
    },

    nodeCreated(node) {
        if (NODES.has(node.comfyClass)) addPanel(node);
    },

    /** The page has outputs from elsewhere: a run of the history, or a workflow tab that was open before. */
    onNodeOutputsUpdated(outputs) {
        for (const [locator, node] of nodesByLocator(app.rootGraph ?? app.graph)) {
            panels.get(node)?.show(outputs[locator]?.latent_clip);
        }
    },
});
