"""A search as its page sees it, and how a person answers it (docs/api.md, *Choose by hand*)."""

import threading
import time

import comfy.model_management as mm

from ..front_end.live import SEND_SECONDS, Live, how_it_ended
from ..front_end.routes import STOPS
from .state import SearchState

EVENT = "latent_clip.search"
POLL_SECONDS = 0.05  # between two looks at whether the host was told to cancel


class LiveSearch(Live):
    """A context manager around one search."""

    def __init__(self, state: SearchState):
        super().__init__()
        self.state = state
        self.waiting: dict | None = None
        self.unanswered = False  # the reward chose where a person was to
        self._chosen: list[int] | None = None
        self._lock, self._answered = threading.Lock(), threading.Event()
        self._pictures_sent: dict[int, str] = {}
        self._last_sent = -float("inf")

    def __enter__(self) -> "LiveSearch":
        self.register()
        return self

    def __exit__(self, kind, *exception) -> None:
        self.unregister()
        self.waiting = None
        if self.unanswered:
            STOPS[self.key[1]] += 1
        self._send(how_it_ended(kind))

    def so_far(self) -> dict:
        """The message for a page that has nothing yet."""
        return self.message("", self.state.thumbnails)

    def message(self, ended: str, thumbnails: dict[int, str]) -> dict:
        """Everything, with those pictures that the page needs."""
        return {
            "kind": "search",
            **self.address(),
            **self.state.as_dict(),
            "thumbnails": dict(thumbnails),
            "waiting": self.waiting,
            "ended": ended,
        }

    def step(self) -> None:
        """Tell the page what was spent, if it is time to."""
        if time.monotonic() - self._last_sent >= SEND_SECONDS:
            self._send("")

    def looked(self) -> None:
        """Tell the page at once that there was a look."""
        self._send("")

    def ask(self, place: int, ids: list[int], proposed: list[int], seconds: float) -> list[int] | None:
        """What a person keeps of `ids`; None where nobody listens, or the time is out. Cancelling the prompt ends it at once.

        Args:
            place: of the round.
            seconds: to wait; 0: for ever.
        """
        if not self.listened_to():
            self.unanswered = True
            return None
        deadline = time.time() + seconds if seconds > 0 else None
        self._chosen = None
        self._answered.clear()
        self.waiting = {
            "round": place,
            "ids": ids,
            "proposed": proposed,
            "deadline_ms": None if deadline is None else int(deadline * 1000),
        }
        self._send("")
        try:
            while not self._answered.wait(POLL_SECONDS) and (deadline is None or time.time() < deadline):
                mm.throw_exception_if_processing_interrupted()
        finally:
            with self._lock:  # an answer that comes now is too late, and is told so
                self.waiting = None
        self.unanswered |= self._chosen is None
        return self._chosen

    def answer(self, keep: list[int]) -> tuple[int, str]:
        """Take a person's choice. Returns (status, why it is none); "" where it is taken."""
        with self._lock:
            if self.waiting is None or self._answered.is_set():
                return 404, f"Node {self.key[1]} does not wait for a choice now."
            ids = self.waiting["ids"]
            if not keep or len({*keep}) < len(keep) or not {*keep} <= {*ids}:
                return 400, f"Got keep = {keep}, expected at least one of {ids}, each once."
            self._chosen = list(keep)
            self._answered.set()
        return 200, ""

    def _send(self, ended: str) -> None:
        if not self.listened_to():
            return
        pictures = self.state.thumbnails
        new = {item: url for item, url in pictures.items() if self._pictures_sent.get(item) != url}
        self.server.send_sync(EVENT, self.message(ended, new), self.client)
        self._pictures_sent, self._last_sent = dict(pictures), time.monotonic()
