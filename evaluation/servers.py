"""Client of a running ComfyUI: queue a prompt, wait for it, fetch its pictures. Standard library only.

Servers are untrusted: every answer is limited in time and size (answers.py), and any error in reading an answer counts as the server's.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from . import EvaluationError
from .answers import AnswerError, Limits, ask, is_http
from .history import (
    ServerGoneError,
    TaskFailedError,
    as_object,
    images_of,
    one_line,
    reason_of,
    refusal,
    rewards_of,
    seconds_of,
)

Task = TypeVar("Task")
IN_FLIGHT = 2  # prompts queued at a server, so that it never idles
SLOWEST_POLL = 1.0  # seconds between two polls; a tenth of the time waited, if that is less
RECHECK_SECONDS = 5.0  # between two checks that the server still knows a prompt
STOP_SECONDS = 2.0  # for each request that withdraws a prompt
SHORT = Limits(1 << 20, 60)
HISTORY = Limits(32 << 20, 60)  # of one prompt: its graph, and the reports and small pictures of its nodes
QUEUE = Limits(64 << 20, 60)  # the graphs of all that wait, of others too
UPLOAD = Limits(1 << 20, 300)
PICTURE = Limits(128 << 20, 300)
PICTURES_BYTES = 1 << 30  # of one prompt, all together


@dataclass(frozen=True)
class Made:
    """Result of a prompt.

    Attributes:
        pictures: contents of the files, in order. seconds: the server's own time; None if it reports none.
        rewards: reward of each picture, if a node of this pack in the workflow reports it.
    """

    pictures: list[bytes]
    seconds: float | None
    rewards: list[float | None] | None = None


class Server:
    """Client of one ComfyUI at an address such as http://127.0.0.1:8188.

    Args:
        limit: seconds after which a prompt counts as failed.

    Raises:
        EvaluationError: the address is not one of http or https.
    """

    def __init__(self, address: str, limit: float = 3600):
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        if not is_http(self.address):
            raise EvaluationError(f"Got the server {address!r}, expected an address such as 127.0.0.1:8188 or https://host/path.")
        self.limit = limit
        self.stopped = threading.Event()
        self.waits: deque[float] = deque(maxlen=8)  # seconds of the last prompts, from POST to history

    def __str__(self) -> str:
        return self.address

    def versions(self) -> dict:
        """Return the versions of ComfyUI, Python and PyTorch, and the names of the devices.

        Raises:
            ServerGoneError: no ComfyUI answers there.
        """
        found = self._json("/system_stats", stopped=threading.Event())  # also between two runs
        with self._reading("/system_stats"):
            system = found.get("system", {})
            devices = [one_line(device.get("name"), 100) for device in found.get("devices", [])]
            names = ("comfyui_version", "python_version", "pytorch_version")
            return {
                **{name: one_line(system[name], 200) if system.get(name) else None for name in names},
                "devices": devices,
            }

    def run(self, graph: dict, output: str | None = None, count: int | None = None) -> Made:
        """Queue a prompt, wait, and fetch its pictures.

        Args:
            output: id of the node that saves the pictures; default: the only node with pictures.
            count: expected number of pictures; default: any.

        Raises:
            ServerGoneError, TaskFailedError: see history.py.
        """
        prompt_id = self._queue(graph)
        with self._reading("/history"):
            history = self._wait(prompt_id)
            images = images_of(history, output)
            if count is not None and len(images) != count:
                one, many = "Let it save one picture, or give the batch size a slot.", "Does its batch slot set how many it saves?"
                raise TaskFailedError(f"the workflow gave {len(images)} pictures, expected {count}. {one if count == 1 else many}")
            return Made(self._pictures(images), seconds_of(history), rewards_of(history, len(images)))

    def do(self, work: Callable[[Server, Task], Made], task: Task) -> Made:
        """Run `work` on a task in the process that talks to the server: here, this one."""
        return work(self, task)

    def stop(self) -> None:
        """End all waits and withdraw queued prompts."""
        self.stopped.set()

    def upload(self, name: str, content: bytes) -> str:
        """Upload a picture to the server's input folder; return its name for Load Image."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        tail = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}--\r\n'
        body = head.encode() + content + tail.encode()
        path, kind = "/upload/image", f"multipart/form-data; boundary={boundary}"
        answer = self._object(path, self._ask(path, body, kind, UPLOAD))
        with self._reading(path):
            return "/".join(filter(None, [answer.get("subfolder"), answer["name"]]))

    def _queue(self, graph: dict) -> str:
        # A stop must not interrupt this request: a prompt without an id could not be withdrawn.
        answer = self._json("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex}, stopped=threading.Event())
        with self._reading("/prompt"):
            prompt_id = answer.get("prompt_id")
            if not (isinstance(prompt_id, str) and 0 < len(prompt_id) <= 200 and prompt_id.isprintable()):
                raise TypeError(f"expected a prompt_id, got {one_line(repr(prompt_id), 60)}")
            if broken := answer.get("node_errors"):  # the host runs the valid part of a graph, which was not asked for
                self._forget(prompt_id)
                raise TaskFailedError(refusal({"node_errors": broken}))
        return prompt_id

    def _wait(self, prompt_id: str) -> dict:
        began, recheck = time.monotonic(), RECHECK_SECONDS
        # No recent prompt was faster than this, so do not poll earlier. The first prompts load models and are not counted.
        self.stopped.wait(0.8 * min(self.waits) if len(self.waits) > IN_FLIGHT else 0)
        while not self.stopped.is_set():
            history = self._history(prompt_id)
            waited = time.monotonic() - began
            if history and history.get("status"):
                self.waits.append(waited)
                return history
            if waited > self.limit:
                self._forget(prompt_id)
                raise TaskFailedError(f"{self} did not finish a prompt within {self.limit:.0f} s.")
            if waited > recheck:
                recheck = waited + RECHECK_SECONDS
                if not self._has(prompt_id) and not self._history(prompt_id):
                    raise ServerGoneError(f"{self} has lost a prompt; it was restarted, or its queue was emptied.")
            self.stopped.wait(min(SLOWEST_POLL, 0.02 + waited / 10))
        self._forget(prompt_id)
        raise ServerGoneError("stopped")

    def _history(self, prompt_id: str) -> dict | None:
        found = self._json(f"/history/{urllib.parse.quote(prompt_id, safe='')}", limits=HISTORY).get(prompt_id)
        if not (found is None or isinstance(found, dict)):
            raise ServerGoneError(
                f"{self}/history answers {one_line(repr(found), 80)} for a prompt, expected an object. Is it a ComfyUI?"
            )
        return found

    def _has(self, prompt_id: str) -> bool:
        queues = self._json("/queue", limits=QUEUE)
        with self._reading("/queue"):
            return any(item[1] == prompt_id for key in ("queue_running", "queue_pending") for item in queues.get(key, []))

    def _forget(self, prompt_id: str) -> None:
        """Remove a prompt from the server's queue, or interrupt it; also after the run was stopped."""
        with suppress(EvaluationError):  # where the server is gone, so is the prompt
            for path, body in (("/queue", {"delete": [prompt_id]}), ("/interrupt", {"prompt_id": prompt_id})):
                self._ask(
                    path,
                    json.dumps(body).encode(),
                    limits=Limits(SHORT.content, STOP_SECONDS),
                    stopped=threading.Event(),
                )

    def _pictures(self, images: list[dict[str, str]]) -> list[bytes]:
        found: list[bytes] = []
        for image in images:
            left = PICTURES_BYTES - sum(map(len, found))
            limits = Limits(min(PICTURE.content, left), PICTURE.seconds)
            found.append(self._ask("/view?" + urllib.parse.urlencode(image, errors="replace"), limits=limits))
        return found

    def _json(
        self, path: str, body: dict | None = None, limits: Limits | None = None, stopped: threading.Event | None = None
    ) -> dict:
        return self._object(
            path, self._ask(path, None if body is None else json.dumps(body).encode(), limits=limits, stopped=stopped)
        )

    def _object(self, path: str, content: bytes) -> dict:
        try:
            return as_object(content)
        except ValueError as error:
            expected = "an object" if str(error) == "expected an object" else "JSON"
            raise ServerGoneError(
                f"{self}{path} answers {content[:80]!r}, expected {expected}. Is it a ComfyUI?"
            ) from error

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Turn any error into a ServerGoneError: the block only reads an answer."""
        try:
            yield
        except EvaluationError:
            raise
        except Exception as error:
            raise ServerGoneError(
                f"{self}{path} answers what no ComfyUI does ({one_line(repr(error), 200)})."
            ) from error

    def _ask(
        self, path: str, body: bytes | None = None, kind: str = "application/json", limits: Limits | None = None,
        stopped: threading.Event | None = None,
    ) -> bytes:  # fmt: skip
        short = path.split("?")[0]
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind} if body is not None else {})
        try:
            answer = ask(request, limits or SHORT, stopped or self.stopped)
        except AnswerError as error:
            reason = one_line(error, 200)
            known = "its answer" in reason
            raise ServerGoneError(
                f"{self}{short}: {reason}." if known else f"{self} does not answer: {reason}. Is ComfyUI running there?"
            ) from error
        if 300 <= answer.status < 400:
            raise ServerGoneError(
                f"{self}{short} points to {one_line(answer.moved, 200)!r}, which is not followed. Give the server's own address."
            )
        if not 200 <= answer.status < 300:
            raise TaskFailedError(f"{self}{short}: {answer.status} {reason_of(answer.content)}")
        return answer.content
