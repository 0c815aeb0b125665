"""Work handed out over servers: nothing twice, nothing lost, whichever server fails and however. Servers of real hosts: tests/host."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from latent_clip.evaluation.dispatch import STRIKES, dispatch
from latent_clip.evaluation.servers import Made, Server, ServerGoneError, TaskFailedError

GOOD, BAD = Server("http://127.0.0.1:1"), Server("http://127.0.0.1:2")
MADE = Made([b""], 0.0)


PAUSES = (0.01, 0.02)


def run(tasks, servers, work):
    return {outcome.task: outcome for outcome in dispatch(tasks, servers, work, pauses=PAUSES)}


def test_every_task_is_done_once_by_both():
    done, lock = Counter(), threading.Lock()

    def work(server, task):
        time.sleep(0.002)
        with lock:
            done[task, str(server)] += 1
        return MADE

    outcomes = run(range(50), [GOOD, BAD], work)
    assert sorted(outcomes) == list(range(50))
    assert sorted(task for task, _ in done) == list(range(50)) and set(done.values()) == {1}
    assert {server for _, server in done} == {str(GOOD), str(BAD)}


def test_server_that_goes_gives_its_tasks_to_the_other():
    def work(server, task):
        time.sleep(0.002)
        if server is BAD and task > 3:
            raise ServerGoneError("gone")
        return MADE

    outcomes = run(range(30), [GOOD, BAD], work)
    assert sorted(outcomes) == list(range(30)) and all(outcome.made for outcome in outcomes.values())


def test_where_no_server_is_left_the_reasons_are_told():
    def work(server, task):
        if task > 5:
            raise ServerGoneError(f"{server} is on fire")
        return MADE

    done = []
    with pytest.raises(ServerGoneError, match=r"(?s)No server is left:.*:1 is on fire.*:2 is on fire"):
        done.extend(outcome.task for outcome in dispatch(range(20), [GOOD, BAD], work, pauses=PAUSES))
    assert sorted(done) == list(range(6))


class Back(Server):
    """A server that is there again when it is asked the `asked`-th time."""

    def __init__(self, asked):
        super().__init__("http://127.0.0.1:3")
        self.asked, self.times = asked, []

    def versions(self):
        self.times.append(time.monotonic())
        if len(self.times) % self.asked:
            raise ServerGoneError("not yet")
        return {}


def test_server_that_comes_back_works_on():
    server, went, done = Back(2), [], Counter()

    def work(server, task):
        if task == 5 and not went:
            went.append(time.monotonic())
            raise ServerGoneError("restarted")
        done[task] += 1
        return MADE

    outcomes = run(range(12), [server], work)
    assert all(outcome.made for outcome in outcomes.values()) and done == Counter(range(12))
    first, second = server.times
    assert first - went[0] >= PAUSES[0] and second - first >= PAUSES[1]


def test_server_that_comes_back_and_does_nothing_is_left():
    def work(server, task):
        raise ServerGoneError("out of memory at start")

    server = Back(1)
    with pytest.raises(ServerGoneError, match=r"No server is left:\n.*:3: out of memory at start"):
        run(range(12), [server], work)
    assert len(server.times) == STRIKES - 1


def test_task_that_kills_its_server_is_given_up_and_the_others_are_made():
    server = Back(1)

    def work(server, task):
        if task == 3:
            raise ServerGoneError("crashed")
        time.sleep(0.002)
        return MADE

    outcomes = {o.task: o for o in dispatch(range(40), [server], work, 2, (0.05,))}
    assert [task for task, outcome in outcomes.items() if not outcome.made] == [3]
    assert outcomes[3].error == "lost 3 times, the last: crashed"


def test_failing_task_is_tried_elsewhere_and_then_given_up():
    tried = Counter()

    def work(server, task):
        if task == 7:
            tried[str(server)] += 1
            raise TaskFailedError("out of memory")
        time.sleep(0.001)
        return MADE

    outcomes = run(range(20), [GOOD, BAD], work)
    assert set(tried.values()) == {1} and len(tried) == 2
    assert outcomes[7].made is None and outcomes[7].error == "out of memory"
    assert sum(outcome.made is not None for outcome in outcomes.values()) == 19


def test_server_that_answers_with_errors_gets_no_more_work():
    tried = Counter()

    def work(server, task):
        tried[str(server)] += 1
        if server is BAD:
            raise TaskFailedError("500")
        time.sleep(0.002)
        return MADE

    outcomes = run(range(40), [GOOD, BAD], work)
    assert all(outcome.made for outcome in outcomes.values())
    assert tried[str(GOOD)] == 40 and 3 <= tried[str(BAD)] <= 4  # two are in flight


def test_lone_server_that_fails_everything_ends_the_run():
    def work(server, task):
        raise TaskFailedError("no such checkpoint")

    outcomes = []
    with pytest.raises(ServerGoneError, match="3 failures in a row, the last: no such checkpoint"):
        outcomes.extend(dispatch(range(100), [GOOD], work))
    assert len(outcomes) <= 4


def test_mistake_of_ours_is_not_taken_for_a_failure_of_the_server():
    def work(server, task):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(range(3), [GOOD], work)


def test_reader_that_stops_stops_the_work():
    done = Counter()

    def work(server, task):
        done[task] += 1
        time.sleep(0.005)
        return MADE

    outcomes = dispatch(range(1000), [GOOD], work)
    next(outcomes)
    outcomes.close()
    time.sleep(0.05)
    seen = len(done)
    time.sleep(0.05)
    assert len(done) == seen < 20


def test_nobody_there_is_said_plainly():
    with pytest.raises(ServerGoneError, match=r"127.0.0.1:1 does not answer.*Is ComfyUI running there\?"):
        GOOD.versions()


def test_no_tasks_need_no_server():
    assert run([], [BAD], None) == {}


# ------------------------------------------------------------------------------- what answers and is no ComfyUI, or a broken one


@contextmanager
def answering(answer, port=0):
    """A program at an address: answer(path) → (status, bytes)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) + (7 if status == 299 else 0)))  # 299: broken off
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Server(f"127.0.0.1:{server.server_port}", limit=5)
        finally:
            server.shutdown()
            thread.join()


def test_program_that_is_stopped_and_started_at_its_address_works_on():
    began, end, gone, done = (threading.Event() for _ in range(4))
    ports = []

    def program():
        for again in (False, True):
            with answering(lambda path: (200, b"{}"), *ports) as server:
                if not again:
                    ports.append(int(server.address.rsplit(":", 1)[1]))
                    began.set()
                (done if again else end).wait(30)
            gone.set()
            time.sleep(0.05)

    def work(server, task):
        if task == 5 and not gone.is_set():
            end.set()
            gone.wait(30)
        server.versions()
        return MADE

    thread = threading.Thread(target=program)
    thread.start()
    try:
        began.wait(30)
        outcomes = list(dispatch(range(12), [Server(f"127.0.0.1:{ports[0]}")], work, pauses=(0.05, 1, 5, 20)))
    finally:
        end.set()
        done.set()
        thread.join()
    assert gone.is_set() and sorted(o.task for o in outcomes if o.made) == list(range(12))


@pytest.mark.parametrize(("status", "content", "error", "message"), [
    (200, b"<html>", ServerGoneError, r"answers b'<html>', expected JSON. Is it a ComfyUI\?"),
    (200, b"[]", ServerGoneError, "expected an object"),
    (299, b'{"prompt_id', ServerGoneError, "its answer broke off"),
    (500, b"Internal Server Error", TaskFailedError, "/prompt: 500 Internal Server Error"),
    (502, b"<h1>Bad gateway</h1>", TaskFailedError, "502"),
    (400, b'{"error": {"message": "Cannot execute", "details": "no output"}, "node_errors": {}}', TaskFailedError, "Cannot execute: no output"),
])  # fmt: skip
def test_what_is_no_comfyui_or_a_broken_one(status, content, error, message):
    with answering(lambda path: (status, content)) as server, pytest.raises(error, match=message):
        server.run({})


def test_server_that_was_started_again_has_forgotten_the_prompt(monkeypatch):
    monkeypatch.setattr("latent_clip.evaluation.servers.RECHECK_SECONDS", 0.3)
    answers = {"/prompt": {"prompt_id": "x", "node_errors": {}}, "/queue": {"queue_running": [], "queue_pending": []}}
    with (
        answering(lambda path: (200, json.dumps(answers.get(path, {})).encode())) as server,
        pytest.raises(ServerGoneError, match="has lost a prompt"),
    ):
        server.run({})


def test_prompt_that_never_ends_is_taken_back():
    queued = {"queue_running": [[0, "x"]], "queue_pending": []}
    answers = {"/prompt": {"prompt_id": "x", "node_errors": {}}, "/queue": queued}
    asked = []

    def answer(path):
        asked.append(path)
        return 200, json.dumps(answers.get(path, {})).encode()

    with answering(answer) as server:
        server.limit = 1
        with pytest.raises(TaskFailedError, match="did not finish a prompt within 1 s"):
            server.run({})
    assert asked[-1] == "/interrupt" and len(asked) < 30


def test_half_a_graph_is_not_run():
    refused = {"1": {"class_type": "KSampler", "errors": [{"message": "Value too small", "details": "steps"}]}}
    answers = {"/prompt": {"prompt_id": "x", "node_errors": refused}}
    asked = []

    def answer(path):
        asked.append(path)
        return 200, json.dumps(answers.get(path, {})).encode()

    with answering(answer) as server, pytest.raises(TaskFailedError, match="KSampler #1: Value too small: steps"):
        server.run({})
    assert asked == ["/prompt", "/queue", "/interrupt"]
