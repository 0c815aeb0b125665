"""What a run tells the page while it goes on, and the page's way to end it early.

A run sends events (`latent_clip.reno`, `latent_clip.search`) to the client that queued it. A page that has missed some, after
a reload for example, asks GET /latent_clip/runs for everything so far. POST /latent_clip/stop ends a ReNO run, which keeps its
best; POST /latent_clip/choose answers a search (`host.live_search`). All reach the runs of the same client only.
"""

import itertools
import time
from dataclasses import asdict

import comfy.model_management as mm
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ..methods.reno import RenoSettings, RenoState
from ..methods.rewards import Reward
from .latents import thumbnails
from .reports import iteration_as_dict, numbers, reward_terms
from .routes import RUNS, STOPS, host_server

EVENT = "latent_clip.reno"
SEND_SECONDS = 0.1  # between two events; iterations in between travel together
PICTURE_SECONDS = 1.0
MAX_PICTURES = 8

SERIALS = itertools.count(int(time.time() * 1000))
"""Of messages in the order in which they are made: events and answers to GET come to the page on two ways, and one may overtake the
other. A server that starts again goes on higher up."""


class Live:
    """A running node as its page sees it. Outside the host's executor, and where no client listens, it says nothing.

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
        """From now on the routes reach this run."""
        if all(self.key):
            RUNS[self.key] = self

    def unregister(self) -> None:
        RUNS.pop(self.key, None)

    def listened_to(self) -> bool:
        return bool(all(self.key) and self.server and self.client in self.server.sockets)

    def address(self) -> dict:
        """Which run a message is of, and which of its messages; to be called before what the message tells is read."""
        prompt_id, node = self.key
        return {
            "serial": next(SERIALS),
            "node": node,
            "display_node": _display_node(node) if node else "",
            "prompt_id": prompt_id,
            "list_index": self.list_index,
        }


def how_it_ended(kind: type[BaseException] | None) -> str:
    """In a message's word."""
    interrupted = kind is not None and issubclass(kind, mm.InterruptProcessingException)
    return "done" if kind is None else "interrupted" if interrupted else "failed"


class LiveRun(Live):
    """A ReNO run as the page sees it; a context manager around the run, whose `step` is called after every iteration."""

    def __init__(self, reward: Reward, settings: RenoSettings, watch: Reward | None = None):
        super().__init__()
        self.reward, self.settings, self.watch = reward, settings, watch
        self.state: RenoState | None = None
        self.stopped = False
        self.sent = 0  # iterations
        self.last_sent = self.last_pictured = -float("inf")
        self.pictured: list[int] = []  # best_iteration when the thumbnails were drawn
        self.thumbnails: list[str] = []

    def __enter__(self) -> "LiveRun":
        self.register()
        return self

    def __exit__(self, kind, *exception) -> None:
        self.unregister()
        if self.state is not None and "stopped" in self.state.stop_reasons:
            STOPS[self.key[1]] += 1
        if self.state is not None and self.listened_to():
            self._send(self.state, how_it_ended(kind), [])

    def step(self, state: RenoState) -> bool:
        """Tell the page where the run is, if it is time to. True: somebody wants it to end."""
        if state is not self.state:  # also a second attempt, after the first ran out of memory
            self.state, self.sent, self.pictured = state, 0, []
        now = time.monotonic()
        if now - self.last_sent >= SEND_SECONDS and self.listened_to():
            new_pictures = now - self.last_pictured >= PICTURE_SECONDS and state.best_iteration != self.pictured
            if new_pictures:
                self.thumbnails = thumbnails(state.latents[:MAX_PICTURES].cpu(), self.reward.space)
                self.pictured, self.last_pictured = list(state.best_iteration), now
            self._send(state, "", self.thumbnails if new_pictures else [])
            self.last_sent = now
        return self.stopped

    def message(self, state: RenoState, start: int, ended: str, pictures: list[str]) -> dict:
        """Everything from iteration `start` on. `ended`: "" while it runs, then "done", "interrupted" or "failed".

        `pictures`: thumbnails of the best latents; none means that the page has them already.
        """
        return {
            "kind": "reno",
            **self.address(),
            "settings": asdict(self.settings),
            "terms": reward_terms(self.reward),
            "watch": reward_terms(self.watch),
            "start": start,
            "iterations": [iteration_as_dict(iteration) for iteration in state.iterations[start:]],
            "best": numbers(_best(state)),
            "best_iteration": list(state.best_iteration),
            "stop_reasons": list(state.stop_reasons),
            "thumbnails": pictures,
            "ended": ended,
        }

    def so_far(self) -> dict | None:
        """The message for a page that has nothing yet; None before the first iteration is over."""
        return None if self.state is None else self.message(self.state, 0, "", self.thumbnails)

    def _send(self, state: RenoState, ended: str, pictures: list[str]) -> None:
        message = self.message(state, self.sent, ended, pictures)
        self.sent += len(message["iterations"])
        self.server.send_sync(EVENT, message, self.client)


def _display_node(node: str) -> str:
    """The node of the page that a running node belongs to: another one where a node expands into a graph of its own."""
    return get_progress_state().dynprompt.get_display_node_id(node)


def _best(state: RenoState) -> list[float]:
    """The best reward of every item, from numbers that have been read back: no waiting for the device."""
    found = [state.iterations[index] for index in state.best_iteration]
    return [iteration.rewards[iteration.items.index(item)] for item, iteration in enumerate(found)]
