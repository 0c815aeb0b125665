"""Distribution of tasks over servers with retries: each task is finished once, or given up with a reason."""

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
STRIKES = 3  # failures in a row that dismiss a server; losses of a task that count as its failure
PAUSES = (5.0, 15.0, 30.0, 60.0)  # seconds before each new try of a lost server; a restart takes about the first three
STOP_SECONDS = 5  # for the threads to withdraw their prompts


@dataclass(frozen=True)
class Outcome(Generic[Task]):
    """Result of a task: `made` if it is finished, `error` if it was given up."""

    task: Task
    server: str
    made: Made | None = None
    error: str = ""


def dispatch(
    tasks: Sequence[Task], servers: Sequence[Server], work: Callable[[Server, Task], Made], in_flight: int = IN_FLIGHT,
    pauses: Sequence[float] | None = None, troubles: dict[str, str] | None = None,
) -> Iterator[Outcome[Task]]:  # fmt: skip
    """Do every task once, on any free server; yield outcomes as they come, in any order.

    A lost server's tasks go back to the queue; the server is tried again after each of the pauses, and continues if it answers. A task
    that fails is tried on every other server before it is given up, and so is a task that was lost with a server `STRIKES` times. A
    server that fails or is lost `STRIKES` times in a row gets no more tasks. A caller that stops iterating stops the work.

    Args:
        work: called in the servers' threads, by `Server.do`.
        pauses: seconds; default: PAUSES; empty: a lost server is not tried again.
        troubles: filled, at the end, with the last failure of each server that was lost or dismissed.

    Raises:
        ServerGoneError: tasks are left, and no server.
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
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:  # they withdraw their queued prompts
            thread.join(max(0.0, deadline - time.monotonic()))
        if troubles is not None:
            with dispatcher.change:
                troubles.update({str(server): reason for server, reason in dispatcher.reasons.items()})


class _Dispatcher(Generic[Task]):
    """Queue of open tasks, and the servers that may take each; `outcomes` gets None when no server is left."""

    def __init__(self, tasks: Sequence[Task], servers: Sequence[Server], pauses: Sequence[float]):
        self.open = deque(tasks)
        self.left = len(tasks)
        self.servers = servers
        self.pauses = pauses
        self.alive = set(servers)  # servers that get tasks, now or once they are back
        self.away: set[Server] = set()
        self.losses: Counter[Task] = Counter()
        self.tried: dict[Task, dict[Server, str]] = {}
        self.strikes = dict.fromkeys(servers, 0)
        self.reasons: dict[Server, str] = {}
        self.outcomes: queue.Queue[Outcome[Task] | BaseException | None] = queue.Queue()
        self.change = threading.Condition()

    def serve(self, server: Server, work: Callable[[Server, Task], Made]) -> None:
        """Take and do tasks until none is left or the server is dismissed (body of a thread)."""
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
        except BaseException as error:  # a fault of this program: raised again for the reader of the outcomes
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
        """Put the task of a lost server back; return True if the loss is new and the server is to be tried again."""
        with self.change:
            self.open.append(task)  # at the end, so that a task that kills its server does not block the others
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
        """Try a lost server after each pause until it answers; dismiss it after the last one."""
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
        """Give a server no more tasks. Only with the lock."""
        if server in self.alive:
            self.reasons[server] = reason
        self.alive.discard(server)
        self._give_up_exhausted()
        if not self.alive and self.left > 0:
            self.outcomes.put(None)
        self.change.notify_all()

    def _give_up_exhausted(self) -> None:
        """Give up tasks that every remaining server has failed; none if no server remains, since the run then ends and continues later.

        Only with the lock.
        """
        for task in list(self.open):
            tried = self.tried.get(task, {})
            if self.alive and self.alive <= tried.keys():
                self.open.remove(task)
                self._finish(Outcome(task, ", ".join(map(str, tried)), error=_reasons(tried)))

    def failure_summary(self) -> str:
        """List the reason of each server's dismissal."""
        return "\n".join(["No server is left:", *(f"  {server}: {self.reasons[server]}" for server in self.servers)])

    def close(self) -> None:
        """End every thread; queued prompts are withdrawn."""
        with self.change:
            self.left = 0
            for server in self.servers:
                server.stop()
            self.change.notify_all()


def _reasons(tried: Mapping[Server, str]) -> str:
    """Return the servers' common reason, or one reason for each server."""
    if len(set(tried.values())) == 1:
        return next(iter(tried.values()))
    return "; ".join(f"{server}: {reason}" for server, reason in tried.items())
