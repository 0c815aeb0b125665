"""Servers asked from a Ray cluster: the same hand-out, and workers that die. Servers of real hosts: tests/host."""

import os
import time

import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.dispatch import dispatch
from latent_clip.evaluation.ray_servers import RayServer, _start, placed, ray_servers
from latent_clip.evaluation.servers import ServerGoneError
from latent_clip.tests.ray_pieces import Work
from latent_clip.training.ray_embed import _start as embed_start


def test_loopback_address_is_one_on_every_machine():
    machines = ["a", "b"]
    for address in ("127.0.0.1:8188", "http://localhost:8188", "[::1]:8188"):
        assert placed([address], machines) == [(address, "a"), (address, "b")]
    assert placed(["10.0.0.2:8188", "http://gpu7:80/comfy"], machines) == [("10.0.0.2:8188", ""), ("http://gpu7:80/comfy", "")]


class Reachable(RayServer):
    """Its worker runs; whether a ComfyUI is behind it is what tests/host looks at."""

    def versions(self):
        return {}


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    _start(ray, "local", 2)
    yield ray
    ray.shutdown()


def test_tasks_are_done_by_workers_and_a_dead_one_is_replaced(cluster, tmp_path):
    servers = [Reachable("10.0.0.1:1"), Reachable("10.0.0.2:1")]
    tasks = [*range(12), "dies", "fails"]
    outcomes = {o.task: o for o in dispatch(tasks, servers, Work(tmp_path), pauses=(0.1,))}
    assert outcomes.keys() == set(tasks) and (tmp_path / "died").exists()
    assert {task for task, outcome in outcomes.items() if not outcome.made} == {"fails"}
    assert outcomes["fails"].error.endswith("is out of memory") and "\n" not in outcomes["fails"].error
    assert str(os.getpid()).encode() not in {outcome.made.pictures[0] for outcome in outcomes.values() if outcome.made}


def test_mistake_of_ours_in_a_worker_is_seen(cluster, tmp_path):
    with pytest.raises(KeyError, match="ours"):
        list(dispatch(["mistake"], [Reachable("10.0.0.1:1")], Work(tmp_path)))


def test_reader_that_stops_stops_the_workers(cluster, tmp_path):
    outcomes = dispatch([1, "long", 2], [Reachable("10.0.0.1:1")], Work(tmp_path))
    assert {next(outcomes).task, next(outcomes).task} == {1, 2}
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    outcomes.close()
    assert (tmp_path / "ended").exists()


def test_no_such_server_is_said(cluster):
    with pytest.raises(ServerGoneError, match=r"127.0.0.1:1 does not answer.*Is ComfyUI running there\?"):
        RayServer("127.0.0.1:1").versions()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:x"])
def test_no_such_cluster_is_said_at_once(address):
    pytest.importorskip("ray")
    with pytest.raises(EvaluationError, match=f"Ray at {address}: .*Expected a running cluster"), ray_servers([], address):
        pass


class Slow:
    """Ray's init and shutdown as they are where its processes take longer than it waits, the first `late` times."""

    def __init__(self, late, says="The current node timed out during startup."):
        self.late, self.says, self.begun, self.ended = late, says, 0, 0

    def init(self, **settings):
        self.begun += 1
        if self.begun <= self.late:
            raise Exception(self.says)

    def shutdown(self):
        self.ended += 1


def test_slow_start_of_ray_is_tried_again_and_nothing_else_is():
    for start in (_start, embed_start):
        start(ray := Slow(2), "local", 2)
        assert (ray.begun, ray.ended) == (3, 2)
    with pytest.raises(EvaluationError, match="Ray at local: The current node timed out during startup"):
        _start(Slow(9), "local", 2)
    other = Slow(1, "called ray.init twice")
    with pytest.raises(EvaluationError, match="twice"):
        _start(other, "local", 2)
    assert (other.begun, other.ended) == (1, 0), "a Ray of the caller's stays"
