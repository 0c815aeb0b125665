/**
 * Panels of nodes with live runs: found by run, and brought up to date when messages may have been missed.
 */

import { nodeByExecutionId, nodesByLocator } from "./nodes.js";

/**
 * Make an empty collection of panels, one per node.
 *
 * @param {() => object} getRoot the root graph of the open workflow
 */
export function livePanels(getRoot) {
    const panels = new WeakMap();

    /** The panel of the node that a run is shown on: inside an expanded node the run has an id that no front end knows. */
    const of = (run) => panels.get(nodeByExecutionId(getRoot(), run.display_node ?? run.node));

    const open = () => [...nodesByLocator(getRoot())].map(([, node]) => panels.get(node)).filter(Boolean);

    /**
     * Fetch the current runs, add them to their panels, and let `end` close runs that are over. A run that began after the
     * request is not among `before`: the answer cannot know it.
     *
     * @param {() => Promise<object[]|null>} fetchRuns null if the server does not answer; then nothing changes
     * @param {(panel: object) => any[]} running the runs that a panel shows as going on
     * @param {(panel: object, runs: object[], before: any[]) => void} end
     */
    async function catchUp(fetchRuns, running, end) {
        const before = new Map(open().map((panel) => [panel, running(panel)]));
        const runs = await fetchRuns();
        if (runs === null) return;
        for (const run of runs) of(run)?.add(run);
        for (const panel of open()) end(panel, runs, before.get(panel) ?? []);
    }

    return { set: (node, panel) => panels.set(node, panel), get: (node) => panels.get(node), of, open, catchUp };
}
