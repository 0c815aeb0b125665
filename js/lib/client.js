/**
 * The pack's own routes of the server, as this page may use them.
 */

import { api } from "../../../scripts/api.js";

/** Who this page is to the server, which shows and ends only what the same client has queued. */
export const client = () => api.clientId ?? "";

/**
 * Send to a route.
 *
 * @param {string} route
 * @param {object} body without the client's id, which is added
 * @returns {Promise<Response>}
 */
export const post = (route, body) =>
    api.fetchApi(route, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...body, client_id: client() }),
    });

/**
 * The client's runs that are going on, each with everything so far.
 *
 * @returns {Promise<object[]|null>} null where the server does not tell
 */
export async function runsOfClient() {
    const response = await api.fetchApi(`/latent_clip/runs?clientId=${encodeURIComponent(client())}`);
    return response.ok ? (await response.json()).runs : null;
}
