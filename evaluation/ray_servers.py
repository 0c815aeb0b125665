"""Servers that are reached through workers on the machines of a Ray cluster.

Each server has a worker on the cluster, which queues its prompts and fetches its pictures. A worker also reaches a ComfyUI that listens
to its own machine only, as ComfyUI does by default: a loopback address means one server on every machine of the cluster.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import EvaluationError
from .servers import IN_FLIGHT, Made, Server, ServerGoneError, Task

STARTS = 3  # Ray gives its own processes 30 s, which a busy machine may need more than once
STOP_SECONDS = 2  # for a worker to withdraw its queued prompts
ASKED_AT_ONCE = 32
CONNECT_SECONDS = 10
POLL_SECONDS = 0.5  # between two checks for the end of the run while a worker is busy


@contextmanager
def ray_servers(
    addresses: Sequence[str], cluster: str = "local", log: Callable[[str], None] = lambda line: None, cpus: int | None = None
) -> Iterator[list[RayServer]]:  # fmt: skip
    """Connect to a cluster and yield its servers; disconnect at the end.

    Args:
        addresses: as the cluster's machines see them; a loopback address means one on each machine that has one.
        cluster: its address, such as HEAD:6379; "local": a new Ray on this machine. cpus: processors of a local Ray; default: all.
        log: called with a line for each server that does not answer.

    Raises:
        EvaluationError: Ray or this pack is not installed, or there is no such cluster.
        ServerGoneError: no server answers.
    """
    ray = _ray()
    _start(ray, cluster, cpus)
    try:
        machines = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        yield _answering([RayServer(a, machine, machines.get(machine, "")) for a, machine in placed(addresses, list(machines))], log)
    finally:
        ray.shutdown()


def _answering(servers: list[RayServer], log: Callable[[str], None]) -> list[RayServer]:
    def missing(server: RayServer) -> EvaluationError | None:
        try:
            server.versions()
        except EvaluationError as error:
            return error
        return None

    with ThreadPoolExecutor(ASKED_AT_ONCE) as asked:
        errors = dict(zip(servers, asked.map(missing, servers)))
    left = [server for server, error in errors.items() if error is None]
    for server, error in errors.items():
        if error is not None and not left:
            raise error
        if error is not None:
            log(f"{server} is left out: {error}")
    return left


def placed(addresses: Sequence[str], machines: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each address with the machine whose worker talks to it, "" for any; a loopback address with every machine."""
    return [(a, machine) for a in addresses for machine in (machines if _is_loopback(a) else [""])]


def _is_loopback(address: str) -> bool:
    host = Server(address).address.split("://")[1].split("/")[0].rsplit("@")[-1]
    host = host[1:].split("]")[0] if host.startswith("[") else host.split(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class RayServer(Server):
    """Client of a ComfyUI that talks to it through a worker on the cluster.

    Args:
        machine: Ray's id of the worker's machine; "": any. place: name of the machine in records and messages.
    """

    def __init__(self, address: str, machine: str = "", place: str = "", limit: float = 3600):
        super().__init__(address, limit)
        self.machine, self.place = machine, place
        self.worker: Any = None
        self.sent: tuple[object, Any] = (None, None)  # work, and its reference in Ray's store
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return f"{self.address} on {self.place}" if self.place else self.address

    def versions(self) -> dict:
        return self._ask_worker(lambda worker: worker.versions.remote())

    def do(self, work: Callable[[Server, Task], Made], task: Task) -> Made:
        """Run `work(server, task)` in the worker; its EvaluationErrors are raised here."""
        return self._ask_worker(lambda worker: worker.do.remote(self._shared(work), task))

    def stop(self) -> None:
        super().stop()
        with self.lock:
            worker, self.worker = self.worker, None  # Ray ends the worker after its last call
        if worker is not None:
            worker.stop.remote()

    def _shared(self, work: Callable) -> object:
        """Put `work` into Ray's store, so that plan and workflows are sent once and not with each task."""
        with self.lock:
            if self.sent[0] is not work:
                self.sent = work, _ray().put(work)
            return self.sent[1]

    def _ask_worker(self, call: Callable):
        ray = _ray()
        with self.lock:
            worker = self.worker = self.worker or self._new_worker(ray)
        try:
            answer = call(worker)
            while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
                if self.stopped.is_set() and not ray.wait([answer], timeout=STOP_SECONDS)[0]:
                    raise ServerGoneError("stopped")
            found = ray.get(answer)
        except ray.exceptions.RayTaskError:  # a fault of this program in the worker
            raise
        except ray.exceptions.RayError as error:
            with self.lock:
                self.worker = None if self.worker is worker else self.worker
            raise ServerGoneError(f"{self}: its worker on the cluster is gone: {_first_line(error)}") from error
        if isinstance(found, EvaluationError):
            raise found
        return found

    def _new_worker(self, ray):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(self.machine, soft=False) if self.machine else "SPREAD"
        threads = IN_FLIGHT + 1  # one to be stopped by
        made = ray.remote(num_cpus=0, max_concurrency=threads, scheduling_strategy=where)(_Worker)
        return made.remote(self.address, self.limit)


class _Worker:
    """Worker in a process of the cluster. EvaluationErrors are returned, so that their text comes without Ray's traceback."""

    def __init__(self, address: str, limit: float):
        self.server = Server(address, limit)

    def versions(self) -> dict | EvaluationError:
        return self._answer(self.server.versions)

    def do(self, work: Callable[[Server, Task], Made], task: Task) -> Made | EvaluationError:
        return self._answer(lambda: work(self.server, task))

    def stop(self) -> None:
        self.server.stop()

    def _answer(self, call: Callable):
        try:
            return call()
        except EvaluationError as error:
            return type(error)(str(error))


def _start(ray, cluster: str, cpus: int | None) -> None:
    mine = cluster == "local"
    for turn in range(1, STARTS + 1):
        try:
            if not mine and cluster != "auto":
                _knock(cluster)
            ray.init(
                address="local" if mine else cluster, num_cpus=cpus if mine else None, include_dashboard=False if mine else None,
                log_to_driver=False,
            )  # fmt: skip
            return
        except Exception as error:  # Ray raises a bare one where its processes are slow to start
            if not mine or turn == STARTS or "timed out" not in str(error):
                raise EvaluationError(
                    f"Ray at {cluster}: {_first_line(error)}. Expected a running cluster, such as HEAD:6379 after `ray start --head`, or local."
                ) from error
            ray.shutdown()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _knock(cluster: str) -> None:
    """Raise OSError or ValueError if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = cluster.split("://")[-1].rpartition(":")
    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _ray():
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise EvaluationError("Ray is not installed. Install the extra [ray] of latent-clip, or leave --ray out.") from error
    try:
        version("latent-clip")
    except PackageNotFoundError as error:
        raise EvaluationError(
            "Ray's workers import this pack as latent_clip, which is not installed. Install its folder with pip, as docs/make-your-own.md shows."
        ) from error
    return ray
