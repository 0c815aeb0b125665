/**
 * A tab of the sidebar with what the pack's nodes have found since the page was opened; a click goes to the node.
 * While there is nothing it says what will be there and opens the first template, which runs without any download.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addStyle, element, thumbnail } from "./lib/dom.js";
import { nodeByExecutionId } from "./lib/nodes.js";
import { register } from "./lib/register.js";
import { formatBest, readRun, withRun } from "./lib/runs.js";
import { makeTexts } from "./lib/texts.js";

const FIRST_TEMPLATE = "01 Try it now";
const PACK = new URL(import.meta.url).pathname.match(/extensions\/([^/]+)\//)[1];

let text = makeTexts({}, "en");
let runs = [];
let list = null; // while the tab is open

function remember({ detail }) {
    const node = nodeByExecutionId(app.rootGraph ?? app.graph, detail.display_node ?? detail.node);
    const about = { node: String(detail.display_node ?? detail.node), title: node?.title ?? "", time: Date.now() };
    const run = readRun(detail.output?.latent_clip, about);
    if (run === null) return;
    runs = withRun(runs, run);
    draw();
}

function draw() {
    if (list === null) return;
    const rows = runs.map(row);
    list.replaceChildren(...(rows.length ? rows : [invitation()]));
}

function invitation() {
    const open = element("button", "latent-clip-run latent-clip-first-run", text("openFirst"));
    open.type = "button";
    open.addEventListener("click", openFirstTemplate);
    return element("div", "latent-clip-no-runs", element("p", "", text("noRuns")), open);
}

/** As the page's own template browser does it: into a new tab, fitted to the view. */
async function openFirstTemplate() {
    const response = await api.fetchApi(`/workflow_templates/${PACK}/${encodeURIComponent(FIRST_TEMPLATE)}.json`);
    if (!response.ok) {
        app.extensionManager.toast.add({ severity: "error", summary: text("noTemplate"), life: 5000 });
        return;
    }
    await app.loadGraphData(await response.json(), true, true, FIRST_TEMPLATE, { openSource: "template" });
}

function row(run) {
    const facts = [
        text(run.count === 1 ? "oneLatent" : "latents", { count: run.count }),
        run.best !== null && text("bestShort", { value: formatBest(run.best) }),
        run.kind === "search" && text("keptCount", { count: run.kept }),
        Number.isFinite(run.share) && text("costSpent", { spent: Math.round(100 * run.share) }),
        run.kind === "safety" && text("blockedCount", { count: run.blocked }),
    ];
    const time = element("time", "", new Date(run.time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" }));
    const made = element(
        "button",
        "latent-clip-run",
        thumbnail(run.thumbnail),
        element("span", "latent-clip-run-facts",
            element("span", "latent-clip-run-title", element("b", "", run.title || run.kind), time),
            element("span", "", facts.filter(Boolean).join(" · ")),
            ...run.lines.map((line) => element("span", "latent-clip-run-line", line))),
    );
    made.type = "button";
    made.title = run.lines.join("\n");
    made.addEventListener("click", () => goTo(run));
    return made;
}

/** Show and select the node, in the subgraph that it lies in. */
function goTo({ node: id }) {
    const node = nodeByExecutionId(app.rootGraph ?? app.graph, id);
    if (node === null) {
        app.extensionManager.toast.add({ severity: "info", summary: text("nodeGone"), life: 3000 });
        return;
    }
    if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
    app.canvas.deselectAll();
    app.canvas.select(node);
    app.canvas.centerOnNode(node);
}

register({
    name: "LatentCLIP.Runs",

    async init() {
        for (const name of ["./scores.css", "./runs.css"]) addStyle(new URL(name, import.meta.url).href);
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        text = makeTexts(await api.getCustomNodesI18n(), language);
    },

    setup() {
        api.addEventListener("executed", remember);
        app.extensionManager.registerSidebarTab({
            id: "latent-clip-runs",
            icon: "pi pi-chart-line",
            title: text("runs"),
            tooltip: text("runs"),
            type: "custom",
            render: (parent) => {
                list = element("section", "latent-clip-runs");
                list.setAttribute("aria-label", text("runs"));
                parent.replaceChildren(list);
                draw();
            },
            destroy: () => (list = null),
        });
    },
});
