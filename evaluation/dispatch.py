"""Work handed out over servers: what one does not finish, another does; nothing twice, nothing lost."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from . import EvaluationError
from .servers import IN_FLIGHT, Made, Server, ServerGoneError, TaskFailedError

Task = TypeVar("Task", bound=Hashable)
STRIKES = 3  # failures in a row after which a server gets no more work; losses of a task after which it counts as failed there
PAUSES = (
    5.0,
    15.0,
    30.0,
    60.0,
)  # seconds before a server that is gone is asked again; a restart takes about the first three
GOODBYE_SECONDS = 5


@dataclass(frozen=True)
class Outcome(Generic[Task]):
    """A task that is finished, or given up with the reason: `made` or `error`."""

    task: Task
    server: str
    made: Made | None = None
    error: str = ""


def dispatch(
    tasks: Sequence[Task], servers: Sequence[Server], work: Callable[[Server, Task], Made], in_flight: int = IN_FLIGHT,
    pauses: Sequence[float] | None = None, troubles: dict[str, str] | None = None,
) -> Iterator[Outcome[Task]]:  # fmt: skip
    """Do every task once, on whichever server is free; yields as they end, in any order.

    A server that is gone gives its tasks back, is asked again after each of the pauses, and works on if it answers. A task that
    fails is tried on every other server before it is given up, and so is one that was lost with its server `STRIKES` times. A
    server that fails or goes `STRIKES` times in a row gets no more. A caller that stops reading stops the work.

    Args:
        work: called in threads of the servers, by `Server.do`.
        pauses: seconds; default: PAUSES; empty: a server that is gone is not asked again.
        troubles: filled, at the end, with the last failure of each server that was out or away then.

    Raises:
        ServerGoneError: no server is left, and tasks are.
    """
    dispatcher, threads = _Dispatcher(tasks, servers, PAUSES if pauses is None else pauses), []
    for server in servers:
        server.stopped.clear()
        threads += [threading.Thread(target=dispatcher.serve, args=(server, work), daemon=True) for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            outcome = dispatcher.outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                raise ServerGoneError(dispatcher.failure_summary())
            yield outcome
    finally:
        dispatcher.close()
        deadline = time.monotonic() + GOODBYE_SECONDS
        for thread in threads:  # they take back what they have queued
            thread.join(max(0.0, deadline - time.monotonic()))
        if troubles is not None:
            with dispatcher.change:
                troubles.update({str(server): reason for server, reason in dispatcher.reasons.items()})


class _Dispatcher(Generic[Task]):
    """The tasks that are open, and who may take which; `outcomes` ends with None where no server is left."""

    def __init__(self, tasks: Sequence[Task], servers: Sequence[Server], pauses: Sequence[float]):
        self.open = deque(tasks)
        self.left = len(tasks)
        self.servers = servers
        self.pauses = pauses
        self.alive = set(servers)  # those that may get work, now or when they are back
        self.away: set[Server] = set()
        self.losses: Counter[Task] = Counter()
        self.tried: dict[Task, dict[Server, str]] = {}
        self.strikes = dict.fromkeys(servers, 0)
        self.reasons: dict[Server, str] = {}
        self.outcomes: queue.Queue[Outcome[Task] | BaseException | None] = queue.Queue()
        self.change = threading.Condition()

    def serve(self, server: Server, work: Callable[[Server, Task], Made]) -> None:
        """Thread body: take and do tasks until there are none, or until the server is out."""
        while (task := self._take(server)) is not None:
            self._do(server, task, work)

    def _do(self, server: Server, task: Task, work: Callable[[Server, Task], Made]) -> None:
        try:
            made = server.do(work, task)
        except ServerGoneError as error:
            if self._give_back(server, task, str(error)):
                self._ask_again(server, str(error))
        except TaskFailedError as error:
            self._fail(server, task, str(error))
        except BaseException as error:  # a mistake of ours: whoever reads the outcomes shall see it
            self.outcomes.put(error)
        else:
            self._finish(Outcome(task, str(server), made), server)

    def _take(self, server: Server) -> Task | None:
        with self.change:
            while self.left > 0 and server in self.alive:
                for task in () if server in self.away else self.open:
                    if server not in self.tried.get(task, {}):
                        self.open.remove(task)
                        return task
                self.change.wait()
            return None

    def _finish(self, outcome: Outcome[Task], server: Server | None = None) -> None:
        with self.change:
            if server is not None:
                self.strikes[server] = 0
                if server in self.alive and server not in self.away:
                    self.reasons.pop(server, None)
            self.left -= 1
            self.outcomes.put(outcome)
            self.change.notify_all()

    def _give_back(self, server: Server, task: Task, reason: str) -> bool:
        """A task of a server that is gone; whether this is news and the server is to be asked again."""
        with self.change:
            self.open.append(task)  # last, so that one which kills its server does not hold up the others
            self.losses[task] += 1
            if self.losses[task] >= STRIKES:
                self.tried.setdefault(task, {})[server] = f"lost {self.losses[task]} times, the last: {reason}"
            news = server in self.alive and server not in self.away
            if news:
                self.reasons[server] = reason
                self.strikes[server] += 1
                if self.strikes[server] < STRIKES and self.pauses:
                    self.away.add(server)
                else:
                    news = False
                    self._dismiss(server, reason)
            self._give_up_exhausted()
            self.change.notify_all()
            return news

    def _ask_again(self, server: Server, reason: str) -> None:
        """Wait until a server answers; dismiss it after the last pause."""
        for pause in self.pauses:
            if server.stopped.wait(pause):
                return
            try:
                server.versions()
            except EvaluationError:
                continue
            with self.change:
                self.away.discard(server)
                self.change.notify_all()
            return
        with self.change:
            self._dismiss(server, f"{reason} It was asked again for {sum(self.pauses):g} s.")

    def _fail(self, server: Server, task: Task, reason: str) -> None:
        with self.change:
            self.tried.setdefault(task, {})[server] = reason
            self.open.append(task)
            self.strikes[server] += 1
            if server in self.alive and server not in self.away:
                self.reasons[server] = reason
            if self.strikes[server] >= STRIKES:
                self._dismiss(server, f"{STRIKES} failures in a row, the last: {reason}")
            self._give_up_exhausted()
            self.change.notify_all()

    def _dismiss(self, server: Server, reason: str) -> None:
        if server in self.alive:
            self.reasons[server] = reason
        self.alive.discard(server)
        self._give_up_exhausted()
        if not self.alive and self.left > 0:
            self.outcomes.put(None)
        self.change.notify_all()

    def _give_up_exhausted(self) -> None:
        """Give up what every server that is left has failed. Not where none is left: then the run ends, and goes on later."""
        for task in list(self.open):
            tried = self.tried.get(task, {})
            if self.alive and self.alive <= tried.keys():
                self.open.remove(task)
                self._finish(Outcome(task, ", ".join(map(str, tried)), error=_reasons(tried)))

    def failure_summary(self) -> str:
        """Why no server is left."""
        return "\n".join(["No server is left:", *(f"  {server}: {self.reasons[server]}" for server in self.servers)])

    def close(self) -> None:
        """Let every thread end; prompts that are queued are taken back."""
        with self.change:
            self.left = 0
            for server in self.servers:
                server.stop()
            self.change.notify_all()


def _reasons(tried: Mapping[Server, str]) -> str:
    """The reason that all servers gave, or what each of them said."""
    if len(set(tried.values())) == 1:
        return next(iter(tried.values()))
    return "; ".join(f"{server}: {reason}" for server, reason in tried.items())
