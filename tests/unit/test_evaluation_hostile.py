"""Servers that answer what no ComfyUI does, beside a healthy one: the run finishes, and the report says what each answered."""

import json
import math
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain, repeat

import pytest
from PIL import Image

from latent_clip.evaluation import dispatch, servers
from latent_clip.evaluation.answers import Limits
from latent_clip.evaluation.benchmarks import Prompt, prompts
from latent_clip.evaluation.generate import generate
from latent_clip.evaluation.history import ServerGoneError
from latent_clip.evaluation.plan import Arm, RunPlan
from latent_clip.evaluation.run_folder import pictures_of
from latent_clip.evaluation.servers import Server
from latent_clip.evaluation.workflow import workflow_of
from latent_clip.tests.hostile_server import DRIP_SECONDS, HostileServer, entry, png
from latent_clip.tools.comfy_server import PACK_ROOT

GRAPH = {
    "1": {"class_type": "Text", "inputs": {"text": ""}, "_meta": {"title": "prompt"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 0}, "_meta": {"title": "seed"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}
PLAN = RunPlan(prompts.BENCHMARK, [Prompt(i, f"prompt {i}") for i in range(4)], [Arm("a", workflow_of(GRAPH))], 1)
DEEP = b"[" * 100_000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def text(content, status=200, **headers):
    """An answer with this content, JSON unless it is bytes."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda path: (status, content, {name.replace("_", "-"): value for name, value in headers.items()})


def raw(*pieces, ever=b"", every=0.0):
    """Raw bytes, and then one more piece for ever, with a pause before each."""

    def after(piece):
        time.sleep(every)
        return piece

    return lambda path: chain(pieces, map(after, repeat(ever)) if ever else ())


def in_history(**changes):
    """A history whose entry is finished but for these changes."""
    return lambda path: (200, json.dumps({path.rpartition("/")[2]: entry(**changes)}).encode(), {})


def of_prompt(value):
    """A history with this in place of the entry."""
    return lambda path: (200, json.dumps({path.rpartition("/")[2]: value}).encode(), {})


def status(messages, name="success"):
    return in_history(status={"status_str": name, "messages": messages})


def reported(*reports):
    return in_history(outputs={"9": entry()["outputs"]["9"], "5": {"latent_clip": list(reports)}})


def images(*entries):
    return in_history(outputs={"9": {"images": list(entries)}})


def started(began, ended):
    return status([["execution_start", {"timestamp": began}], ["execution_success", {"timestamp": ended}]])


def slowly(content):
    return (bytes([byte]) for byte in content if time.sleep(DRIP_SECONDS) is None)


ANYWHERE = {
    "html": text(b"<html>busy</html>"), "a list": text([1]), "null": text(None), "a number": text(7), "a text": text("x"), "nothing": text(b""),
    "half an object": text(b'{"a": '), "no UTF-8": text(b'{"\xff": 1}'), "deep lists": text(DEEP), "deep objects": text(b'{"a":' * 100_000),
    "an endless body": raw(OK + b"\r\n", ever=b" " * 65536), "an endless list": raw(OK + b"\r\n{\"a\": [", ever=b"[],"), "drips": lambda path: slowly(OK * 99),
    "a dripping body": raw(OK + b"Content-Length: 99\r\n\r\n", ever=b" ", every=DRIP_SECONDS), "hangs up": raw(), "half a status": raw(b"HTTP/1.1 2"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "status zero": raw(b"HTTP/1.1 0 x\r\n\r\n"), "endless headers": raw(OK, ever=b"A: b\r\n"),
    "one long header": raw(OK, ever=b"A" * 4096), "endless continue": raw(ever=b"HTTP/1.1 100 Continue\r\n\r\n"), "much missing": raw(OK + b"Content-Length: 999\r\n\r\n{}"),
    "length of letters": raw(OK + b"Content-Length: many\r\n\r\n[]"), "a petabyte": raw(OK + b"Content-Length: 1000000000000000\r\n\r\n{"),
    "a broken chunk": raw(CHUNKED + b"zz\r\n"), "endless chunks": raw(CHUNKED, ever=b"4\r\n    \r\n"), "a huge chunk": raw(CHUNKED + b"ffffffffffff\r\n{"),
    "a dripping chunk size": raw(CHUNKED, ever=b"0", every=DRIP_SECONDS), "a redirect": text(b"", 302, Location="HEALTHY/stolen"),
    "a redirect to a file": text(b"", 301, Location="file:///etc/passwd"), "a redirect to itself": text(b"", 307, Location="/system_stats"),
    "500": text(b"Traceback \x1b[31m", 500), "401": text(b"", 401),
    "400 of a list": text([1], 400), "400 of odd errors": text({"error": [1], "node_errors": {"1": 5}}, 400), "400 nested": text(DEEP, 400),
    "an endless 500": raw(b"HTTP/1.1 500 x\r\n\r\n", ever=b"x" * 65536),
}  # fmt: skip
SOME = ("html", "deep lists", "an endless body", "a dripping body", "no HTTP", "much missing", "a redirect", "500")
CASES = {
    **{f"/history: {name}": ("/history", odd) for name, odd in ANYWHERE.items()},
    **{f"{route}: {name}": (route, ANYWHERE[name]) for route in ("/prompt", "/view", "/system_stats") for name in SOME},
    **{f"/prompt: {name}": ("/prompt", odd) for name, odd in {
        "no id": text({}), "an id that is a number": text({"prompt_id": 5}), "an id that is a list": text({"prompt_id": []}), "an empty id": text({"prompt_id": ""}),
        "an id with a path": text({"prompt_id": "../../x"}), "an id with a line": text({"prompt_id": "a\r\nHost: b"}), "a lone surrogate": text(b'{"prompt_id": "\\ud800"}'),
        "errors in a list": text({"prompt_id": "p", "node_errors": [1]}), "errors in a text": text({"prompt_id": "p", "node_errors": "x"}),
        "errors of numbers": text({"prompt_id": "p", "node_errors": {"1": {"class_type": "x", "errors": 5}}}),
        "errors without words": text({"prompt_id": "p", "node_errors": {"1": {"class_type": "x", "errors": [{}]}}}),
        "a terminal's escapes": text({"prompt_id": "p", "node_errors": {"1": {"class_type": "\x1b[2J", "errors": [{"message": "\ud800\x07", "details": "\n"}]}}}),
    }.items()},
    **{f"/history: {name}": ("/history", odd) for name, odd in {
        "an entry that is a list": of_prompt([1]), "an entry that is a text": of_prompt("x"), "an entry that is a number": of_prompt(5), "an entry that is true": of_prompt(True),
        "status a text": in_history(status="success"), "status a list": in_history(status=[1]), "status a number": in_history(status=1),
        "messages a number": status(5), "messages of numbers": status([1]), "messages of one": status([["a"]]), "messages of three": status([[1, 2, 3]]),
        "messages an object": status({"a": 1}), "an error without data": status([["execution_error", None]]), "an error of a list": status([["execution_error", [1]]]),
        "an error without words": status([["execution_error", {}]]), "status_str missing": in_history(status={"messages": []}), "status_str a list": status([], [1]),
        "interrupted": status([], "error"), "outputs a list": in_history(outputs=[1]), "outputs null": in_history(outputs=None), "an output that is a number": in_history(outputs={"9": 5}),
        "no outputs": in_history(outputs={}), "images a number": in_history(outputs={"9": {"images": 5}}), "images of numbers": images(5), "images of lists": images([1]),
        "a file name that is a number": images({"filename": 5}), "a file name that is a list": images({"filename": ["a"]}), "no picture": images(), "two pictures": images(*[{"filename": "a"}] * 2),
        "100,000 pictures": images(*[{"filename": "a.png", "subfolder": "", "type": "output"}] * 1000), "two nodes": in_history(outputs={k: entry()["outputs"]["9"] for k in "89"}),
        "reports a number": in_history(outputs={**entry()["outputs"], "5": {"latent_clip": 5}}), "a report that is a number": reported(5),
        "scores a text": reported({"scores": "x"}), "scores an object": reported({"scores": {"a": 1}}), "kept beyond": reported({"scores": [1.0], "kept": [99]}),
        "kept a text": reported({"scores": [1.0], "kept": "x"}), "winners a number": reported({"winners": 5, "rounds": [{}]}), "rounds a number": reported({"winners": [1], "rounds": 5}),
        "a round that is a list": reported({"winners": [1], "rounds": [[1]]}), "a reward of 400 digits": reported({"scores": [10**400]}), "a time of 400 digits": started(0, 10**400),
    }.items()},
    **{f"/view: {name}": ("/view", odd) for name, odd in {
        "half a picture": text(png()[:45]), "a picture's beginning": text(b"\x89PNG\r\n\x1a\n"), "a text": text(b"hello"), "a picture of 3.6 gigapixels": text(
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0\x8d\x1a\x9e\x3c"), "an SVG": text(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "404": text(b"", 404),
    }.items()},
    **{f"/system_stats: {name}": ("/system_stats", odd) for name, odd in {
        "system a list": text({"system": [1]}), "devices a number": text({"devices": 5}), "devices of numbers": text({"devices": [5]}), "devices null": text({"devices": None}),
    }.items()},
}  # fmt: skip
TAKEN = {  # odd, but the picture is there: what cannot be used counts as not reported
    "a reward of NaN": reported({"scores": [math.nan]}), "an infinite reward": reported({"scores": [math.inf]}), "1e999": reported({"scores": [float("1e999")]}),
    "a reward that is true": reported({"scores": [True]}), "a reward that is a text": reported({"scores": ["1"]}), "two reports": reported({"scores": [1.0]}, {"scores": [2.0]}),
    "a time that is a text": started("a", "b"), "a time of NaN": started(math.nan, 1), "an infinite time": started(0, math.inf), "time that runs back": started(3000, 1000),
    "no times": status([]), "a picture type that is missing": images({"filename": "a.png"}), "another node's images are no files": in_history(
        outputs={**entry()["outputs"], "5": {"images": ["data:image/png;base64,"]}}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """The same bounds, small enough for a test to reach them."""
    for name in ("SHORT", "HISTORY", "QUEUE", "PICTURE"):
        monkeypatch.setattr(servers, name, Limits(200_000, 1.0))
    monkeypatch.setattr(servers, "RECHECK_SECONDS", 0.2)
    monkeypatch.setattr(dispatch, "PAUSES", (0.3, 0.3, 0.3))


def run_beside_a_healthy_one(route, odd, folder):
    """The report of a run on a hostile server and a healthy one, which waits until the other has been odd."""
    with HostileServer(route, odd) as hostile, HostileServer(before=lambda: hostile.was_odd.wait(10)) as healthy:
        if isinstance(answer := odd("/x"), tuple) and answer[2].get("Location", "").startswith("HEALTHY"):
            hostile.odd = lambda path: (302, b"", {"Location": healthy.address + "/stolen"})
        began = time.monotonic()
        report = generate(PLAN, folder, [Server(hostile.address), Server(healthy.address)])
        assert hostile.was_odd.is_set() and time.monotonic() - began < 15
        assert "/stolen" not in healthy.paths and not any("/stolen" in path for path in hostile.paths)
    return report, hostile, healthy


@pytest.mark.parametrize("name", CASES)
def test_odd_answer_is_the_fault_of_its_server(name, tmp_path):
    report, hostile, _ = run_beside_a_healthy_one(*CASES[name], tmp_path)
    assert (report.made, report.failed) == (4, [])
    assert {r["prompt"] for r in pictures_of(tmp_path)} == {0, 1, 2, 3}
    assert list(report.troubles) == [hostile.address]
    (said,) = str(report).splitlines()[1:]
    assert f"{hostile.address} did not work to the end: " in said and said.isprintable() and len(said) < 1300


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_server_reports_oddly_of_a_good_picture_counts_as_not_reported(name, tmp_path):
    report, hostile, _ = run_beside_a_healthy_one("/history", TAKEN[name], tmp_path)
    assert (report.made, report.failed, report.troubles) == (4, [], {})
    mine = [r for r in pictures_of(tmp_path) if r["server"] == hostile.address]
    assert mine and {r["reward"] for r in mine} == {None} and {r["seconds"] for r in mine} <= {None, 2.0}
    for record in pictures_of(tmp_path):
        with Image.open(tmp_path / record["file"]) as picture:
            assert picture.size == (8, 8)


def test_there_are_as_many_kinds_as_the_last_audit_had():
    assert len(CASES) + len(TAKEN) >= 111


@pytest.mark.parametrize(
    "queue", [[1], {"queue_running": 5}, {"queue_running": [5]}, {"queue_running": [[]]}, {"queue_pending": None}]
)
def test_odd_queue(queue, tmp_path):
    """Asked where a prompt is not in the history for long."""

    def odd(path):
        return 200, json.dumps(queue if path == "/queue" else {}).encode(), {}

    with HostileServer("/", odd) as hostile:
        server = Server(hostile.address)
        with pytest.raises(ServerGoneError, match=r"queue answers|has forgotten"):
            server._wait("p")


def test_many_pictures_are_not_fetched(tmp_path):
    name = "/history: 100,000 pictures"
    report, hostile, _ = run_beside_a_healthy_one(*CASES[name], tmp_path)
    assert not any(path.startswith("/view") for path in hostile.paths)
    assert "gave 1000 pictures, expected 1" in report.troubles[hostile.address]


def test_run_whose_servers_are_all_odd_says_what_each_answered(tmp_path):
    with HostileServer("/prompt", text([1])) as one, HostileServer("/prompt", text(b"", 500)) as two:
        report = None
        servers_ = [Server(one.address), Server(two.address)]
        with pytest.raises(ServerGoneError) as raised:
            report = generate(PLAN, tmp_path, servers_)
    assert report is None
    assert f"{one.address}/prompt answers b'[1]'" in str(raised.value) and f"{two.address}/prompt: 500" in str(
        raised.value
    )


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://x", "http://", "http://a b", "http://a:x", "http://a\n"]
)
def test_only_addresses_of_http_are_asked(address):
    with pytest.raises(ValueError, match=r"expected an address such as 127.0.0.1:8188"):
        Server(address)


def test_ctrl_c_ends_a_run_that_waits_for_a_dripping_answer(tmp_path):
    """With the bounds as they are shipped: a minute for an answer."""
    (tmp_path / "a.json").write_text(json.dumps(GRAPH))
    (tmp_path / "list.txt").write_text("a\nb\n")
    with HostileServer("/view", raw(OK + b"Content-Length: 99999\r\n\r\n", ever=b" ", every=DRIP_SECONDS)) as hostile:
        command = [
            sys.executable,
            str(PACK_ROOT),
            "evaluate",
            "generate",
            str(tmp_path / "run"),
            "--benchmark",
            "prompts",
            "--server",
            hostile.address,
        ]
        command += ["--prompts", str(tmp_path / "list.txt"), "--arm", f"a={tmp_path / 'a.json'}"]
        listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
        assert hostile.was_odd.wait(60)
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
        assert time.monotonic() - began < 30  # the machine may be busy; the answer has 60 s, and drips on
    assert running.returncode == 1 and said.strip() == "error: Stopped. The same command continues from here."
