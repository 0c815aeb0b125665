"""Run a real ComfyUI on loopback and talk to it: used by ./dev, the demo and the tests. Standard library only."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PACK_ROOT = Path(__file__).resolve().parent.parent
PACK_FOLDER = "ComfyUI-Latent-CLIP"  # the folder name a user gets from git clone
BASE_FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")


class ComfyError(RuntimeError):
    """The server did not start, refused a prompt, or a node failed."""


@dataclass
class Result:
    """Result of one queued prompt."""

    ok: bool
    error: str = ""
    """One line per problem: the node, the exception type and its message. Empty when ok."""
    node_errors: dict = field(default_factory=dict)
    """Validation errors by node id, when the server refused the prompt."""
    outputs: dict = field(default_factory=dict)
    """The ui data of each output node by node id."""
    history: dict = field(default_factory=dict)
    """The whole /history entry."""
    seconds: float = 0.0
    """From POST to the finished history entry."""

    @property
    def exception(self) -> dict:
        """The execution_error message (exception_type, exception_message, node_type, traceback), or {}."""
        messages = self.history.get("status", {}).get("messages", [])
        return next((data for kind, data in messages if kind == "execution_error"), {})


def make_base(base: Path, packs: dict[str, Path] | None = None) -> Path:
    """Prepare a --base-directory with links to the packs, by default this checkout under the name a user gives it."""
    for folder in BASE_FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, target in (packs or {PACK_FOLDER: PACK_ROOT}).items():
        link = base / "custom_nodes" / name
        if link.is_symlink() and link.resolve() != target.resolve():
            link.unlink()  # a checkout that has moved since
        if not link.exists():
            link.symlink_to(target, target_is_directory=True)
    return base


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Return True if a server could listen on a loopback port."""
    with socket.socket() as probe:
        if os.name == "posix":  # as servers bind: connections that are just closing do not count there
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class ComfyServer:
    """One ComfyUI process; use as a context manager so that it always stops.

    Args:
        tree: folder with ComfyUI's main.py.
        base: its --base-directory, see make_base.
        python: the interpreter that has ComfyUI's requirements. Default: this one.
        port: default any free one.
        arguments: further command line arguments for main.py.
    """

    def __init__(
        self,
        tree: Path,
        base: Path,
        python: str = sys.executable,
        port: int = 0,
        arguments: tuple[str, ...] = ("--cpu",),
    ):
        self.tree, self.base, self.python = Path(tree), Path(base), python
        self.port = port or free_port()
        self.arguments = arguments
        self.log_path = self.base / "comfyui.log"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """Address of the front end and the routes."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ComfyServer":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self, timeout: float = 180) -> "ComfyServer":
        """Start the process and wait until it answers.

        Raises:
            ComfyError: it does not, with the log's tail; or something else listens on the port already.
        """
        if not is_free(self.port):
            raise ComfyError(
                f"Port {self.port} is taken: another program, perhaps another ComfyUI, listens there. Stop it, or choose another port."
            )
        command = [self.python, "main.py", "--port", str(self.port), "--base-directory", str(self.base.resolve())]
        # API nodes would call outside services; the database would be written into the tree.
        command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments], cwd=self.tree, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ComfyError(f"ComfyUI stopped while starting (exit {self.process.returncode}):\n{self.tail()}")
            try:
                answer = self.get("/system_stats")
            except (OSError, ValueError):  # not there yet, or no JSON and so not ours
                time.sleep(0.1)
                continue
            # another server may have taken the port since; only ours was started with our folder
            if str(self.base.resolve()) not in answer.get("system", {}).get("argv", []):
                raise ComfyError(f"{self.url} is answered by another server than ours. Choose another port.")
            return self
        raise ComfyError(f"ComfyUI did not answer on {self.url} within {timeout:.0f} s:\n{self.tail()}")

    def stop(self) -> None:
        """Stop the process; kill it if it does not listen within 10 s."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """Everything the server has printed so far."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)  # the host colours its levels whatever NO_COLOR says

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def get(self, path: str) -> dict:
        """GET a JSON route."""
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        """POST JSON; returns the status and the JSON answer, also for 4xx."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text, status = response.read(), response.status
        except urllib.error.HTTPError as refused:
            text, status = refused.read(), refused.code
        try:
            return status, json.loads(text or b"{}")
        except json.JSONDecodeError:
            raise ComfyError(f"POST {path}: status {status} and no JSON: {text[:300]!r}") from None

    def object_info(self) -> dict:
        """Every node's definition, by id."""
        return self.get("/object_info")

    def run(
        self,
        prompt: dict,
        timeout: float = 300,
        expect_failure: bool = False,
        client_id: str = "",
        poll: Callable[[], None] | None = None,
    ) -> Result:
        """Queue an API-format prompt and wait for it.

        Args:
            prompt: {node id: {"class_type": ..., "inputs": {...}}}.
            expect_failure: return a Result with ok False instead of raising; raise when nothing fails.
            client_id: whose websocket hears about the progress.
            poll: called about 20 times a second while waiting.
        Raises:
            ComfyError: the prompt was refused, a node failed, or it did not finish in time.
        """
        result = self._queue_and_wait(prompt, timeout, client_id, poll)
        if expect_failure and result.ok:
            raise ComfyError("expected the prompt to fail, and it succeeded")
        if not expect_failure and not result.ok:
            raise ComfyError(result.error)
        return result

    def _queue_and_wait(self, prompt: dict, timeout: float, client_id: str, poll) -> Result:
        started = time.perf_counter()
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id})
        if status != 200:
            return Result(False, validation_message(answer), node_errors=answer.get("node_errors") or {})
        result = self.wait(answer["prompt_id"], timeout, poll)
        result.seconds = time.perf_counter() - started
        # The host runs a prompt when at least one output is valid; the refused branches are still a failure.
        if broken := answer.get("node_errors"):
            result.ok, result.node_errors, result.error = False, broken, validation_message(answer)
        return result

    def wait(self, prompt_id: str, timeout: float = 300, poll: Callable[[], None] | None = None) -> Result:
        """Wait for a prompt that is in the queue, whoever put it there."""
        history = self._wait(prompt_id, time.perf_counter() + timeout, poll)
        status = history["status"]["status_str"]
        result = Result(status == "success", outputs=history.get("outputs", {}), history=history)
        if result.exception:
            bad = result.exception
            result.error = "{node_type} #{node_id}: {exception_type}: {exception_message}".format(**bad).strip()
        elif not result.ok:
            result.error = f"ended as {status}, perhaps interrupted"
        return result

    def _wait(self, prompt_id: str, deadline: float, poll) -> dict:
        while time.perf_counter() < deadline:
            history = self.get(f"/history/{prompt_id}").get(prompt_id)
            if history and history.get("status"):
                return history
            if self.process is not None and self.process.poll() is not None:
                raise ComfyError(f"ComfyUI died while running the prompt:\n{self.tail()}")
            if poll:
                poll()
            time.sleep(0.02)
        self.post("/interrupt", {})
        raise ComfyError(f"the prompt did not finish in time; the log ends with:\n{self.tail()}")


def validation_message(answer: dict) -> str:
    """One line per problem from a refused POST /prompt."""
    lines = [
        f"{node['class_type']} #{node_id}: {error['message']}: {error['details']}"
        for node_id, node in (answer.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    error = answer.get("error") or {}
    if not lines:
        lines = [f"{error.get('message', 'refused')}: {error.get('details', '')}" if isinstance(error, dict) else error]
    return "\n".join(lines)
