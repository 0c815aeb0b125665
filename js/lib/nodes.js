/**
 * Find nodes of the open workflow, subgraphs included.
 */

/**
 * Every node with the key that the page keeps its output under.
 *
 * @param {object} root the root graph
 * @yields {[string, object]}
 */
export function* nodesByLocator(root) {
    for (const node of root.nodes) yield [String(node.id), node];
    for (const [id, subgraph] of root.subgraphs ?? []) {
        for (const node of subgraph.nodes) yield [`${id}:${node.id}`, node];
    }
}

/**
 * The node that runs under an execution id: "7", or "5:7" for node 7 in the subgraph of node 5.
 *
 * @param {object} root the root graph
 * @param {string} id
 * @returns {object|null}
 */
export function nodeByExecutionId(root, id) {
    let [graph, node] = [root, null];
    for (const part of String(id).split(":")) {
        node = graph?.nodes.find((candidate) => String(candidate.id) === part) ?? null;
        graph = node?.subgraph;
    }
    return node;
}
