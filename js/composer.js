/**
 * On Combine Rewards: the weight of each term and what it added to the best score of the last run.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { readComposition, shares } from "./lib/composition.js";
import { addStyle, element, passWheelOn } from "./lib/dom.js";
import { nodeByExecutionId, nodesByLocator } from "./lib/nodes.js";
import { register } from "./lib/register.js";
import { decimalsFor, formatNumber, formatWeight } from "./lib/rows.js";
import { makeTexts } from "./lib/texts.js";

const NODE = "LatentCLIPCombineRewards";
const HEIGHT = 118; // of the widget with its margins: three terms; more are scrolled, or shown on a larger node
const WIDTH = 320; // of a new node
const panels = new WeakMap();
let text = makeTexts({}, "en");

/** Give a node its panel. */
function addPanel(node) {
    const list = element("ul", "latent-clip-parts");
    const panel = element("div", "latent-clip-panel latent-clip-composition", element("div", "latent-clip-inside", list));
    const widget = node.addDOMWidget("latent_clip_parts", "latent_clip_parts", panel, { serialize: false, getMinHeight: () => HEIGHT });
    widget.serialize = false; // not into the workflow
    list.dataset.captureWheel = "true"; // Nodes 2.0 lets it scroll while it has the focus
    list.tabIndex = 0;
    list.setAttribute("aria-label", text("partsLabel"));
    list.addEventListener("wheel", (event) => passWheelOn(event, list, app.canvas));
    panels.set(node, list);
    show(node, null);
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]]);
}

function show(node, composition) {
    const list = panels.get(node);
    if (composition === null) {
        list.replaceChildren(element("li", "latent-clip-empty", text("partsEmpty")));
        return;
    }
    const { index, total, parts } = composition;
    const decimals = decimalsFor([...parts.map(({ part }) => part), total]);
    const lengths = shares(parts);
    const rows = parts.map((part, place) => row(part, lengths[place], decimals));
    const sum = element("li", "latent-clip-sum",
        element("span", "latent-clip-part-name", text("partsOf", { index })),
        element("span", "latent-clip-value", formatNumber(total, decimals)));
    list.replaceChildren(sum, ...rows);
}

function row({ name, weight, value, part }, share, decimals) {
    const bar = element("span", "latent-clip-part-bar", element("i", share < 0 ? "latent-clip-minus" : ""));
    bar.firstChild.style.width = `${50 * Math.abs(share)}%`;
    const made = element("li", "",
        element("span", "latent-clip-part-name", name),
        element("span", "latent-clip-part-weight", `× ${formatWeight(weight)}`),
        bar,
        element("span", "latent-clip-value", formatNumber(part, decimals)));
    made.title = `${name}: ${formatWeight(weight)} × ${formatNumber(value, decimals)} = ${formatNumber(part, decimals)}`;
    return made;
}

/** The node whose reward a node reads, through reroutes. */
function rewardOf(node) {
    const slot = node?.inputs?.findIndex((input) => input.name === "reward") ?? -1;
    let source = slot < 0 ? null : node.getInputNode(slot);
    while (source?.type === "Reroute") source = source.getInputNode(0);
    return source;
}

/** A node has judged by a reward: tell the Combine Rewards that made it. */
function tell(node, message) {
    const source = rewardOf(node);
    if (!panels.has(source)) return;
    const composition = readComposition(message);
    if (composition !== null) show(source, composition);
}

register({
    name: "LatentCLIP.Composer",

    async init() {
        addStyle(new URL("./scores.css", import.meta.url).href);
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        text = makeTexts(await api.getCustomNodesI18n(), language);
    },

    setup() {
        api.addEventListener("executed", ({ detail }) => {
            tell(nodeByExecutionId(app.rootGraph ?? app.graph, detail.display_node ?? detail.node), detail.output?.latent_clip);
        });
    },

    nodeCreated(node) {
        if (node.comfyClass === NODE) addPanel(node);
    },

    /** The page has outputs from elsewhere: a run of the history, or a workflow tab that was open before. */
    onNodeOutputsUpdated(outputs) {
        for (const [locator, node] of nodesByLocator(app.rootGraph ?? app.graph)) tell(node, outputs[locator]?.latent_clip);
    },
});
