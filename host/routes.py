"""The pack's routes, and which runs they reach. Light: the host imports this when it starts."""

import sys
from collections import Counter

from aiohttp import web

from .ends import with_ends

RUNS: dict = {}
"""(prompt id, node id) → the LiveRun that is going on there."""

STOPS: Counter[str] = Counter()
"""Node id → its runs that ended before they were done; the node's fingerprint, so that the host does not take them for complete."""

RUNS_PATH, STOP_PATH = "/latent_clip/runs", "/latent_clip/stop"


def host_server():
    """The host's server; None where the pack is used without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def register_routes() -> None:
    """Add the routes to the host's server, if there is one and it has none of them yet: it would not start with a route twice."""
    server = host_server()
    if server is None or any(getattr(route, "path", "") == RUNS_PATH for route in server.routes):
        return
    server.routes.get(RUNS_PATH)(runs)
    server.routes.post(STOP_PATH)(stop)
    server.add_on_prompt_handler(with_ends)


async def runs(request: web.Request) -> web.Response:
    """Every run of the client ?clientId=… that is going on, from its first iteration."""
    client = request.query.get("clientId", "")
    own = [run for run in RUNS.values() if run.client == client]
    return web.json_response({"runs": [message for run in own if (message := run.so_far())]})


async def stop(request: web.Request) -> web.Response:
    """End the run of {"prompt_id", "node", "client_id"} after its current iteration."""
    try:
        body = await request.json()
        key, client = (str(body["prompt_id"]), str(body["node"])), str(body.get("client_id") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        expected = 'Expected {"prompt_id": ..., "node": ..., "client_id": ...}.'
        return web.json_response({"error": expected}, status=400)
    run = RUNS.get(key)
    if run is None:
        return web.json_response({"error": f"Node {key[1]} has no run of this prompt to stop."}, status=404)
    if run.client != client:
        reason = "Another client queued this prompt. Only the client_id that queued it may stop it."
        return web.json_response({"error": reason}, status=403)
    run.stopped = True
    return web.json_response({"stopping": True})
