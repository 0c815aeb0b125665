"""Live messages of a run to the front end, and its ways to end the run early.

A run sends events (`latent_clip.reno`, `latent_clip.search`) to the client that queued it. A front end that has missed some, after
a reload for example, asks GET /latent_clip/runs for everything so far. POST /latent_clip/stop ends a ReNO run, which keeps its
best; POST /latent_clip/choose answers a search (`host.search.live`). All reach the runs of the same client only.
"""

import itertools
import time

import comfy.model_management as mm
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from .routes import RUNS, host_server

SEND_SECONDS = 0.1  # between two events; iterations in between travel together

SERIALS = itertools.count(int(time.time() * 1000))
"""Serial numbers of messages, in the order in which they are made: events and answers to GET travel apart, and one may overtake the
other. A server that starts again goes on higher up."""


class Live:
    """Running node as the front end sees it. It sends nothing outside the executor or without a listening client.

    Attributes:
        key: (prompt id, node id). list_index: of a list of latents, which run one after the other.
        client: who queued it.
    """

    def __init__(self) -> None:
        context = get_executing_context()
        self.key = (context.prompt_id, context.node_id) if context else ("", "")
        self.list_index = context.list_index or 0 if context else 0
        self.server = host_server()
        self.client: str = getattr(self.server, "client_id", None) or ""

    def register(self) -> None:
        """Make this run known to the routes."""
        if all(self.key):
            RUNS[self.key] = self

    def unregister(self) -> None:
        RUNS.pop(self.key, None)

    def listened_to(self) -> bool:
        return bool(all(self.key) and self.server and self.client in self.server.sockets)

    def numbered_address(self) -> dict:
        """Return `address` with a serial number; call it before reading what the message will contain."""
        return {"serial": next(SERIALS), **self.address()}

    def address(self) -> dict:
        """Return which run a message or report belongs to."""
        prompt_id, node = self.key
        return {
            "node": node,
            "display_node": _display_node(node) if node else "",
            "prompt_id": prompt_id,
            "list_index": self.list_index,
        }


def how_it_ended(kind: type[BaseException] | None) -> str:
    """Outcome of a run as a message names it."""
    interrupted = kind is not None and issubclass(kind, mm.InterruptProcessingException)
    return "done" if kind is None else "interrupted" if interrupted else "failed"


def _display_node(node: str) -> str:
    """Id of the node shown in the front end: another one where a node expands into a graph of its own."""
    return get_progress_state().dynprompt.get_display_node_id(node)
