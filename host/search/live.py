"""Live messages of a search, and a person's answers (docs/api.md, *Choose by hand*)."""

import threading
import time

import comfy.model_management as mm

from ..front_end.live import SEND_SECONDS, Live, how_it_ended
from ..front_end.routes import STOPS
from .state import SearchState

EVENT = "latent_clip.search"
POLL_SECONDS = 0.05  # between two checks whether the prompt was cancelled


class LiveSearch(Live):
    """Search as the front end sees it: a context manager around one search."""

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
        """Return the message for a front end that has nothing yet."""
        return self.message("", self.state.thumbnails)

    def message(self, ended: str, thumbnails: dict[int, str]) -> dict:
        """Return the report so far as a numbered message, with these thumbnails and the open question."""
        return {**self.numbered_address(), **self.report(ended, thumbnails), "waiting": self.waiting}

    def report(self, ended: str, thumbnails: dict[int, str]) -> dict:
        """Return settings, rounds and cost of the search as JSON values."""
        return {
            "kind": "search",
            **self.address(),
            **self.state.as_dict(),
            "thumbnails": dict(thumbnails),
            "ended": ended,
        }

    def step(self) -> None:
        """Send the front end the cost so far, if it is time to."""
        if time.monotonic() - self._last_sent >= SEND_SECONDS:
            self._send("")

    def send_now(self) -> None:
        """Send the front end the latest round at once."""
        self._send("")

    def ask(self, place: int, ids: list[int], proposed: list[int], seconds: float) -> list[int] | None:
        """Ask a person which of `ids` to keep; None without a listener or in time. Cancelling ends it at once.

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
            with self._lock:  # an answer that comes now is too late, and gets a 404
                self.waiting = None
        self.unanswered |= self._chosen is None
        return self._chosen

    def answer(self, keep: list[int]) -> tuple[int, str]:
        """Take a person's choice. Returns (status, reason to refuse it); "" if it is taken."""
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
