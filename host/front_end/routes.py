"""HTTP routes of the pack and the runs that they reach. Light: the host imports this when it starts."""

import sys
from collections import Counter

from aiohttp import web

from .ends import with_ends

RUNS: dict = {}
"""(prompt id, node id) → the `Live` run that is going on there."""

STOPS: Counter[str] = Counter()
"""Node id → its runs that ended before they were done, or that nobody chose in; the node's fingerprint, so that the host does not
take them for complete."""

RUNS_PATH, STOP_PATH, CHOOSE_PATH = "/latent_clip/runs", "/latent_clip/stop", "/latent_clip/choose"

MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors of reading a body that is no JSON, is nested without end, has an unknown charset, or is not of the expected form."""


def host_server():
    """Return the host's server; None where the pack is used without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def register_routes() -> None:
    """Add the routes to the host's server, if there is one and it has none of them yet: it would not start with a route twice."""
    server = host_server()
    if server is None or any(getattr(route, "path", "") == RUNS_PATH for route in server.routes):
        return
    server.routes.get(RUNS_PATH)(runs)
    server.routes.post(STOP_PATH)(stop)
    server.routes.post(CHOOSE_PATH)(choose)
    server.add_on_prompt_handler(with_ends)


async def runs(request: web.Request) -> web.Response:
    """Every current run of the client ?clientId=…, from its first iteration."""
    client = request.query.get("clientId", "")
    own = [run for run in RUNS.values() if run.client == client]
    return web.json_response({"runs": [message for run in own if (message := run.so_far())]})


async def stop(request: web.Request) -> web.Response:
    """End the run of {"prompt_id", "node", "client_id"} after its current iteration."""
    try:
        body = await request.json()
        key, client = _whose(body)
    except MALFORMED:
        return _error(400, 'Expected {"prompt_id": ..., "node": ..., "client_id": ...}.')
    run = RUNS.get(key)
    if run is None or not hasattr(run, "stopped"):
        return _error(404, f"Node {key[1]} has no run of this prompt to stop.")
    if run.client != client:
        return _error(403, "Another client queued this prompt. Only the client_id that queued it may stop it.")
    run.stopped = True
    return web.json_response({"stopping": True})


async def choose(request: web.Request) -> web.Response:
    """Answer the search of {"prompt_id", "node", "list_index", "client_id"} that waits: "keep" these of its ids."""
    try:
        body = await request.json()
        key, client = _whose(body)
        keep, list_index = body["keep"], body.get("list_index") or 0
        if not isinstance(keep, list) or not all(type(item) is int for item in keep):
            raise TypeError
    except MALFORMED:
        return _error(
            400, 'Expected {"prompt_id": ..., "node": ..., "list_index": ..., "client_id": ..., "keep": [ids]}.'
        )
    run = RUNS.get(key)
    if run is None or not hasattr(run, "answer") or run.list_index != list_index:
        return _error(404, f"Node {key[1]} has no run of this prompt that waits for a choice.")
    if run.client != client:
        return _error(403, "Another client queued this prompt. Only the client_id that queued it may choose.")
    status, reason = run.answer(keep)
    return _error(status, reason) if reason else web.json_response({"chosen": keep})


def _whose(body: dict) -> tuple[tuple[str, str], str]:
    """Return ((prompt id, node id), client id) of a message."""
    parts = [body["prompt_id"], body["node"], body.get("client_id") or ""]
    if not all(isinstance(part, str | int) for part in parts):
        raise TypeError
    prompt_id, node, client = map(str, parts)
    return (prompt_id, node), client


def _error(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
