"""Work handed out over servers: nothing twice, nothing lost, whichever server fails and however. Servers of real hosts: tests/host."""

import threading
import time
from collections import Counter

import pytest

from latent_clip.evaluation.servers import Made, Server, ServerGoneError, TaskFailedError, hand_out

GOOD, BAD = Server("http://127.0.0.1:1"), Server("http://127.0.0.1:2")
MADE = Made([b""], 0.0)


def run(tasks, servers, work):
    return {outcome.task: outcome for outcome in hand_out(tasks, servers, work)}


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


def test_a_server_that_goes_gives_its_tasks_to_the_other():
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
        done.extend(outcome.task for outcome in hand_out(range(20), [GOOD, BAD], work))
    assert sorted(done) == list(range(6))


def test_a_failing_task_is_tried_elsewhere_and_then_given_up():
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


def test_a_server_that_answers_with_errors_gets_no_more_work():
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


def test_a_lone_server_that_fails_everything_ends_the_run():
    def work(server, task):
        raise TaskFailedError("no such checkpoint")

    outcomes = []
    with pytest.raises(ServerGoneError, match="3 failures in a row, the last: no such checkpoint"):
        outcomes.extend(hand_out(range(100), [GOOD], work))
    assert len(outcomes) <= 4


def test_a_mistake_of_ours_is_not_taken_for_a_failure_of_the_server():
    def work(server, task):
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(range(3), [GOOD], work)


def test_a_reader_that_stops_stops_the_work():
    done = Counter()

    def work(server, task):
        done[task] += 1
        time.sleep(0.005)
        return MADE

    outcomes = hand_out(range(1000), [GOOD], work)
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
