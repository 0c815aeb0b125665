"""The pack's routes, and which runs they reach. Light: the host imports this when it starts."""

import sys

from aiohttp import web

RUNS: dict = {}
"""(prompt id, node id) → the LiveRun that is going on there."""


def host_server():
    """The host's server; None where the pack is used without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def register_routes() -> None:
    """Add the routes to the host's server, if there is one."""
    server = host_server()
    if server is None:
        return

    @server.routes.get("/latent_clip/runs")
    async def runs(request: web.Request) -> web.Response:
        """Every run that is going on, from its first iteration."""
        return web.json_response({"runs": [message for run in RUNS.values() if (message := run.so_far())]})

    @server.routes.post("/latent_clip/stop")
    async def stop(request: web.Request) -> web.Response:
        """End the run of {"prompt_id", "node"} after its current iteration."""
        try:
            body = await request.json()
            key = (str(body["prompt_id"]), str(body["node"]))
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'Expected {"prompt_id": ..., "node": ...}.'}, status=400)
        run = RUNS.get(key)
        if run is None:
            return web.json_response({"error": f"Node {key[1]} has no run of this prompt to stop."}, status=404)
        run.stopped = True
        return web.json_response({"stopping": True})
