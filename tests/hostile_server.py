"""A server on loopback that answers as ComfyUI does, and oddly on one route: what a broken, lying or malicious one might send."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

DRIP_SECONDS = 0.2
Raw = Iterator[bytes]


def png(colour: int = 0) -> bytes:
    Image.new("RGB", (8, 8), (colour % 256, 0, 0)).save(target := io.BytesIO(), "PNG")
    return target.getvalue()


def good(path: str) -> bytes:
    """ComfyUI's answer, as far as `evaluate generate` reads it."""
    if path.startswith("/view"):
        return png(hash(path))
    if path.startswith("/history/"):
        return json.dumps({path.rpartition("/")[2]: entry()}).encode()
    answers = {
        "/upload/image": {"name": "a.png", "subfolder": ""},
        "/prompt": {"prompt_id": f"p{time.monotonic_ns()}", "node_errors": {}},
        "/queue": {"queue_running": [], "queue_pending": []},
    }
    return json.dumps(answers.get(path, {"system": {"comfyui_version": "0"}, "devices": [{"name": "cpu"}]})).encode()


def entry(**changes) -> dict:
    """A finished prompt in the history."""
    status = {
        "status_str": "success",
        "messages": [["execution_start", {"timestamp": 1000}], ["execution_success", {"timestamp": 3000}]],
    }
    outputs = {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
    return {"status": status, "outputs": outputs, **changes}


class HostileServer:
    """Serve `good`, and on paths that begin with `route` the odd answer; use as a context manager.

    Args:
        odd: path → status and content, or an iterator of raw bytes from the status line on.
        before: called before each answer to POST /prompt.
    """

    def __init__(
        self, route: str = "", odd: Callable[[str], tuple[int, bytes, dict] | Raw] | None = None, before=lambda: None
    ):
        self.route, self.odd, self.before = route, odd, before
        self.paths: list[str] = []
        self.was_odd = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer._answer(self)

            do_POST = do_GET

            def log_message(self, *words):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads, block_on_close = True, False

            def handle_error(self, request, client_address):
                pass  # a client that hangs up is what is expected

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HostileServer":
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.paths.append(handler.path)
        if handler.path == "/prompt":
            self.before()
        found = (200, good(handler.path), {})
        if self.odd is not None and handler.path.startswith(self.route):
            found = self.odd(handler.path)
            self.was_odd.set()
        if isinstance(found, tuple):
            status, content, headers = found
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)
            return
        handler.close_connection = True
        for piece in found:
            handler.wfile.write(piece)
            handler.wfile.flush()
