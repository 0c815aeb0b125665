"""Servers asked from a Ray cluster: the same hand-out, and workers that die. Servers of real hosts: tests/host."""

import os
import time

import pytest

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.fleet import RayServer, fleet, placed
from latent_clip.evaluation.hand_out import hand_out
from latent_clip.evaluation.servers import ServerGoneError
from latent_clip.tests.fleet_pieces import Work


def test_a_loopback_address_is_one_on_every_machine():
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
    from latent_clip.evaluation.fleet import _start

    _start(ray, "local", 2)
    yield ray
    ray.shutdown()


def test_tasks_are_done_by_workers_and_a_dead_one_is_replaced(cluster, tmp_path):
    servers = [Reachable("10.0.0.1:1"), Reachable("10.0.0.2:1")]
    tasks = [*range(12), "dies", "fails"]
    outcomes = {o.task: o for o in hand_out(tasks, servers, Work(tmp_path), pauses=(0.1,))}
    assert outcomes.keys() == set(tasks) and (tmp_path / "died").exists()
    assert {task for task, outcome in outcomes.items() if not outcome.made} == {"fails"}
    assert outcomes["fails"].error.endswith("is out of memory") and "\n" not in outcomes["fails"].error
    assert str(os.getpid()).encode() not in {outcome.made.pictures[0] for outcome in outcomes.values() if outcome.made}


def test_a_mistake_of_ours_in_a_worker_is_seen(cluster, tmp_path):
    with pytest.raises(KeyError, match="ours"):
        list(hand_out(["mistake"], [Reachable("10.0.0.1:1")], Work(tmp_path)))


def test_a_reader_that_stops_stops_the_workers(cluster, tmp_path):
    outcomes = hand_out([1, "long", 2], [Reachable("10.0.0.1:1")], Work(tmp_path))
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
    with pytest.raises(EvaluationError, match=f"Ray at {address}: .*Expected a running cluster"), fleet([], address):
        pass
