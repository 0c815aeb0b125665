"""A running ComfyUI: queue a prompt, wait for it, fetch its pictures. Standard library only."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from . import EvaluationError

Task = TypeVar("Task")
IN_FLIGHT = 2  # prompts that a server has at once: it never waits for the next one
ANSWER_SECONDS = 60  # for one answer, not for a picture
SLOWEST_POLL = 1.0  # seconds; below that a tenth of the time waited, and meanwhile the server has the next prompt
LOOK_AGAIN = 5.0  # seconds between two looks whether a server still knows a prompt


class ServerGoneError(EvaluationError):
    """The server does not answer, or has forgotten a prompt because it was started again."""


class TaskFailedError(EvaluationError):
    """The server answers, and refuses or fails this prompt."""


@dataclass(frozen=True)
class Made:
    """What a prompt gave: the files of its pictures in order, the seconds that the server worked on it, and the reward of each picture
    where a node of this pack in the workflow tells it."""

    pictures: list[bytes]
    seconds: float
    rewards: list[float] | None = None


class Server:
    """One ComfyUI at an address such as http://127.0.0.1:8188.

    Args:
        limit: seconds after which a prompt counts as failed.
    """

    def __init__(self, address: str, limit: float = 3600):
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        self.limit = limit
        self.stopped = threading.Event()
        self.waits: deque[float] = deque(maxlen=8)  # seconds of the last prompts, from POST to history

    def __str__(self) -> str:
        return self.address

    def versions(self) -> dict:
        """Of ComfyUI, Python and PyTorch, and the devices.

        Raises:
            ServerGoneError: no ComfyUI answers there.
        """
        found = self._json("/system_stats")
        system = found.get("system", {})
        devices = [str(device.get("name")) for device in found.get("devices", [])]
        names = ("comfyui_version", "python_version", "pytorch_version")
        return {**{name: system.get(name) for name in names}, "devices": devices}

    def run(self, graph: dict, output: str | None = None) -> Made:
        """Queue a prompt, wait, and fetch its pictures.

        Args:
            output: node whose pictures count; default: the only one that has any.

        Raises:
            ServerGoneError, TaskFailedError: see there.
        """
        prompt_id = self._queue(graph)
        history = self._wait(prompt_id)
        images = _images(history, output)
        return Made([self._picture(image) for image in images], _seconds(history), _rewards(history, len(images)))

    def do(self, work: Callable[[Server, Task], Made], task: Task) -> Made:
        """`work` on a task, wherever the server is talked to from."""
        return work(self, task)

    def stop(self) -> None:
        """End all waits, and take back what is queued."""
        self.stopped.set()

    def upload(self, name: str, content: bytes) -> str:
        """Put a picture into the server's input folder; the name that Load Image knows it by."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        tail = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}--\r\n'
        body = head.encode() + content + tail.encode()
        answer = json.loads(self._ask("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(filter(None, [answer.get("subfolder"), answer["name"]]))

    def _queue(self, graph: dict) -> str:
        answer = self._json("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})
        if broken := answer.get("node_errors"):  # the host runs what is left of a graph; half a graph is not what was asked for
            self._forget(answer.get("prompt_id", ""))
            raise TaskFailedError(_refusal({"node_errors": broken}))
        return answer["prompt_id"]

    def _wait(self, prompt_id: str) -> dict:
        began, look = time.monotonic(), LOOK_AGAIN
        # No prompt of late was faster than this, so nothing is asked before; the first ones, which load models, say nothing.
        self.stopped.wait(0.8 * min(self.waits) if len(self.waits) > IN_FLIGHT else 0)
        while not self.stopped.is_set():
            history = self._json(f"/history/{prompt_id}").get(prompt_id)
            waited = time.monotonic() - began
            if history and history.get("status"):
                self.waits.append(waited)
                return history
            if waited > self.limit:
                self._forget(prompt_id)
                raise TaskFailedError(f"{self} did not finish a prompt within {self.limit:.0f} s.")
            if waited > look:
                look = waited + LOOK_AGAIN
                if not self._has(prompt_id) and not self._json(f"/history/{prompt_id}"):
                    raise ServerGoneError(f"{self} has forgotten a prompt; it was started again, or somebody emptied its queue.")
            self.stopped.wait(min(SLOWEST_POLL, 0.02 + waited / 10))
        self._forget(prompt_id)
        raise ServerGoneError("stopped")

    def _has(self, prompt_id: str) -> bool:
        queues = self._json("/queue")
        return any(item[1] == prompt_id for key in ("queue_running", "queue_pending") for item in queues.get(key, []))

    def _forget(self, prompt_id: str) -> None:
        """Take a prompt off the server's queue, and stop it if it runs."""
        with suppress(EvaluationError):  # where the server is gone, so is the prompt
            self._ask("/queue", json.dumps({"delete": [prompt_id]}).encode())
            self._ask("/interrupt", json.dumps({"prompt_id": prompt_id}).encode())

    def _picture(self, image: dict) -> bytes:
        keys = ("filename", "subfolder", "type")
        return self._ask("/view?" + urllib.parse.urlencode({key: image.get(key, "") for key in keys}))

    def _json(self, path: str, body: dict | None = None) -> dict:
        content = self._ask(path, None if body is None else json.dumps(body).encode())
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise ServerGoneError(f"{self}{path} answers {content[:80]!r}, expected JSON. Is it a ComfyUI?") from error
        if not isinstance(answer, dict):
            raise ServerGoneError(f"{self}{path} answers {content[:80]!r}, expected an object. Is it a ComfyUI?")
        return answer

    def _ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind} if body is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise TaskFailedError(f"{self}{path.split('?')[0]}: {error.code} {_reason(error)}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ServerGoneError(f"{self} does not answer: {reason}. Is ComfyUI running there?") from error
        except Exception as error:  # http.client's own, such as IncompleteRead: a server that dies while it answers
            raise ServerGoneError(f"{self} broke off its answer: {error!r}.") from error


def _images(history: dict, output: str | None) -> list[dict]:
    """The picture files of a finished prompt; saved ones before previews.

    Raises:
        TaskFailedError: it failed, or it is not plain which pictures are meant.
    """
    messages = history["status"].get("messages", [])
    if bad := next((data for kind, data in messages if kind == "execution_error"), None):
        text = "{node_type} #{node_id}: {exception_type}: {exception_message}".format(**bad)
        raise TaskFailedError(" ".join(text.split()))
    if history["status"].get("status_str") != "success":
        raise TaskFailedError(f"ended as {history['status'].get('status_str')}, perhaps interrupted.")
    found = {node: out["images"] for node, out in history.get("outputs", {}).items() if out.get("images")}
    if output is not None:
        found = {node: images for node, images in found.items() if node == output}
    saved = {node: images for node, images in found.items() if all(image.get("type") == "output" for image in images)}
    found = saved or found
    if len(found) != 1:
        raise TaskFailedError(
            f"Got pictures from {len(found)} nodes ({', '.join(found) or 'none'}), expected one node that saves them. "
            "Use one Save Image, or give it the title output."
        )
    return next(iter(found.values()))


def _rewards(history: dict, count: int) -> list[float] | None:
    """What Score, Select, Search or Optimize Noise report of the pictures; None where not exactly one report fits them."""
    reports = [report for out in history.get("outputs", {}).values() for report in out.get("latent_clip", [])]
    found = []
    for report in reports:
        if report.get("winners") and report.get("rounds"):  # of Search: the last look is at the finished pictures
            scores = report["rounds"][-1].get("scores", {})
            values = [scores.get(str(winner)) for winner in report["winners"]]
        else:
            values = report.get("best") if report.get("kind") == "reno" else report.get("scores")
        if values and report.get("kept"):
            values = [values[at] for at in report["kept"]]
        if values and len(values) == count and all(isinstance(value, (int, float)) for value in values):
            found.append([float(value) for value in values])
    return found[0] if len(found) == 1 else None


def _seconds(history: dict) -> float:
    """From the host's own messages: what it spent on this prompt, without the wait in its queue."""
    times = {kind: data.get("timestamp") for kind, data in history["status"].get("messages", []) if isinstance(data, dict)}
    began, ended = times.get("execution_start"), times.get("execution_success")
    return (ended - began) / 1000 if began and ended else float("nan")


def _reason(error: urllib.error.HTTPError) -> str:
    content = error.read()
    try:
        return _refusal(json.loads(content))
    except (ValueError, AttributeError, KeyError, TypeError):
        return " ".join(content.decode(errors="replace").split())[:200]


def _refusal(answer: dict) -> str:
    """One line from a refused POST /prompt."""
    lines = [
        f"{node['class_type']} #{key}: {error['message']}: {error['details']}"
        for key, node in (answer.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    error = answer.get("error") or {}
    return "; ".join(lines) or (f"{error.get('message')}: {error.get('details')}" if isinstance(error, dict) else str(error))
