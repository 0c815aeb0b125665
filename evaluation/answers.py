"""HTTP requests with a deadline and a size limit on each answer, whatever the server sends. Standard library only."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
import urllib.parse
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from . import EvaluationError

TICK = 0.5  # seconds between two checks whether the run was stopped
PIECE = 1 << 16
HEAD_BYTES = 1 << 18  # for status line and header fields, beside the limit of the content


class AnswerError(EvaluationError):
    """A missing, broken, late or oversized answer."""


class _EndedError(Exception):
    """A limit was reached. It is no ValueError, which http.client would take for a broken chunk."""


@dataclass(frozen=True)
class Limits:
    """Limits of one answer: bytes of content, and seconds from the request to the last byte."""

    content: int
    seconds: float


@dataclass(frozen=True)
class Answer:
    """Status, content, and the address that a redirect points to ("" for none)."""

    status: int
    content: bytes
    moved: str = ""


class _Bound(io.RawIOBase):
    """Raw stream of a socket that ends at a deadline, a size limit or the end of the run."""

    def __init__(self, sock: socket.socket, limits: Limits, deadline: float, stopped: threading.Event):
        self.sock, self.limits, self.deadline, self.stopped = sock, limits, deadline, stopped
        self.held = sock.makefile("rb", buffering=0)  # keeps the socket open when http.client closes its own handle
        self.left = limits.content + HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            seconds = self.deadline - time.monotonic()
            if self.stopped.is_set():
                raise _EndedError("stopped")
            if seconds <= 0:
                raise _EndedError(f"its answer did not end within {self.limits.seconds:g} s")
            if self.left <= 0:
                raise _EndedError(f"its answer is larger than {_size(self.limits.content)}")
            self.sock.settimeout(min(TICK, seconds))
            try:
                count = self.sock.recv_into(memoryview(buffer)[: self.left])
            except TimeoutError:
                continue
            self.left -= count
            return count

    def close(self) -> None:
        self.held.close()
        super().close()


class _Source:
    """The part of a socket that `http.client.HTTPResponse` uses."""

    def __init__(self, raw: _Bound):
        self.raw = raw

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.raw, PIECE)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Handler of http: and https: that applies `limits` to every answer."""

    def __init__(self, limits: Limits, stopped: threading.Event):
        super().__init__()
        self.limits, self.stopped = limits, stopped
        self.deadline = time.monotonic() + limits.seconds

    def http_open(self, request):
        return self.do_open(partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request):
        return self.do_open(partial(self._connection, http.client.HTTPSConnection), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _connection(self, kind: type[http.client.HTTPConnection], host: str, **settings) -> http.client.HTTPConnection:
        connection = kind(host, **settings)
        connection.response_class = lambda sock, **about: http.client.HTTPResponse(  # type: ignore[assignment]
            _Source(_Bound(sock, self.limits, self.deadline, self.stopped)),  # type: ignore[arg-type]
            **about,
        )
        return connection


def is_http(address: str) -> bool:
    """Return True if `ask` can take this address."""
    try:
        parts = urllib.parse.urlsplit(address)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port or 80) > 0
            and address.isprintable()
            and " " not in address
        )
    except ValueError:
        return False


def ask(request: urllib.request.Request, limits: Limits, stopped: threading.Event) -> Answer:
    """Send a request and read its answer, with any status. Redirects are not followed.

    Args:
        stopped: ends the wait when it is set.

    Raises:
        AnswerError: no answer, or one that is broken, too large or too late.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), _Handler(limits, stopped)):
        opener.add_handler(handler)
    try:
        with closing(opener.open(request, timeout=limits.seconds)) as response:
            return Answer(response.status, _content(response, limits), response.headers.get("Location", "") or "")
    except (http.client.HTTPException, EOFError) as error:  # such as a server that dies while it answers
        raise AnswerError(f"its answer broke off or is no HTTP ({error!r})") from error
    except Exception as error:  # a server's bytes can raise any error in the library
        raise AnswerError(str(getattr(error, "reason", None) or error) or repr(error)) from error


def _content(response: http.client.HTTPResponse, limits: Limits) -> bytes:
    found = bytearray()
    while piece := response.read(PIECE):
        found += piece
        if len(found) > limits.content:
            raise _EndedError(f"its answer is larger than {_size(limits.content)}")
    if response.length:
        raise _EndedError(f"its answer broke off, with {response.length} bytes missing")
    return bytes(found)


def _size(count: int) -> str:
    return f"{count / 1e6:g} MB" if count >= 1e6 else f"{count / 1e3:g} kB"
