"""A run of Optimize Noise as the front end sees it: curves, thumbnails, and the way to end it early."""

import time
from dataclasses import asdict

from ...methods.reno import RenoSettings, RenoState
from ...methods.rewards import Reward
from ..front_end.json_values import numbers, reward_terms
from ..front_end.live import SEND_SECONDS, Live, how_it_ended
from ..front_end.routes import STOPS
from ..scorers.latents import thumbnails
from .trace import iteration_as_dict

EVENT = "latent_clip.reno"
PICTURE_SECONDS = 1.0
MAX_PICTURES = 8


class LiveRun(Live):
    """ReNO run as the front end sees it: a context manager around the run; `step` is called after every iteration."""

    def __init__(self, reward: Reward, settings: RenoSettings, validation: Reward | None = None):
        super().__init__()
        self.reward, self.settings, self.validation = reward, settings, validation
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
        """Send the front end an update, if it is time to. Returns True if the run is to end."""
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
        """Return everything from iteration `start` on. `ended`: "" while running, then "done", "interrupted", "failed".

        `pictures`: thumbnails of the best latents; none means that the front end has them already.
        """
        return {
            "kind": "reno",
            **self.numbered_address(),
            "settings": asdict(self.settings),
            "terms": reward_terms(self.reward),
            "watch": reward_terms(self.validation),
            "start": start,
            "iterations": [iteration_as_dict(iteration) for iteration in state.iterations[start:]],
            "best": numbers(_best(state)),
            "best_iteration": list(state.best_iteration),
            "stop_reasons": list(state.stop_reasons),
            "thumbnails": pictures,
            "ended": ended,
        }

    def so_far(self) -> dict | None:
        """Return the message for a front end that has nothing yet; None before the first iteration is over."""
        return None if self.state is None else self.message(self.state, 0, "", self.thumbnails)

    def _send(self, state: RenoState, ended: str, pictures: list[str]) -> None:
        message = self.message(state, self.sent, ended, pictures)
        self.sent += len(message["iterations"])
        self.server.send_sync(EVENT, message, self.client)


def _best(state: RenoState) -> list[float]:
    """Best reward of every item, from numbers that have been read back: no waiting for the device."""
    found = [state.iterations[index] for index in state.best_iteration]
    return [iteration.rewards[iteration.items.index(item)] for item, iteration in enumerate(found)]
