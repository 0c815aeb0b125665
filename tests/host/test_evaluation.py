"""`latent-clip evaluate` on real servers: nothing twice and nothing lost where one dies, and a run that goes on from what is there."""

import json
import threading
import time
from collections import Counter

import pytest
from PIL import Image

from latent_clip.demo.geneval import metadata
from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import geneval
from latent_clip.evaluation.generate import Arm, Plan, generate, pictures_of, read_run
from latent_clip.evaluation.servers import Server
from latent_clip.evaluation.workflow import workflow_of
from latent_clip.tests.host_server import TestServer
from latent_clip.tools import shapes_arms


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in metadata(1)))
    return geneval.read(path)


def plan(prompts, arms=("plain",), images=2, **settings) -> Plan:
    return Plan(geneval.BENCHMARK, prompts, [Arm(name, workflow_of(shapes_arms.ARMS[name]())) for name in arms], images, **settings)


def test_a_server_dies_and_nothing_is_lost_or_twice(comfy, comfy_tree, prompts, tmp_path):
    folder = tmp_path / "run"
    with TestServer(comfy_tree, tmp_path / "second") as second:
        servers = [Server(comfy.url), Server(second.url)]

        def kill_when_it_has_worked():
            while not any(r["server"] == second.url for r in pictures_of(folder)):
                time.sleep(0.05)
            second.process.kill()

        killer = threading.Thread(target=kill_when_it_has_worked)
        killer.start()
        report = generate(plan(prompts, images=8), folder, servers)
        killer.join(30)
        assert second.process.wait(10) != 0
    records = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    wanted = {(prompt.index, number) for prompt in prompts for number in range(8)}
    assert Counter((r["prompt"], r["number"]) for r in records) == Counter(wanted)
    assert report.made == len(wanted) and not report.failed
    assert {r["server"] for r in records} == {comfy.url, second.url}
    for record in records:
        with Image.open(folder / record["file"]) as picture:
            assert picture.size == (64, 64)
    again = generate(plan(prompts, images=8), folder, [Server(comfy.url)])
    assert (again.made, again.there) == (0, len(wanted))


def test_a_stopped_run_goes_on_and_makes_the_same_pictures(comfy, prompts, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    server, both = [Server(comfy.url)], plan(prompts[:2], ("plain", "best-of-8"))
    generate(both, whole, server)
    (parts / "plain").mkdir(parents=True)
    generate(plan(prompts[:1]), parts, server)  # one prompt, one arm
    with (parts / "pictures.jsonl").open("a") as file:
        file.write('{"arm": "plain", "pro')  # killed while it wrote
    next((parts / "plain").rglob("0000.png")).unlink()
    report = generate(both, parts, server)
    assert (report.made, report.there) == (7, 1)
    hashes = [{(r["arm"], r["prompt"], r["number"]): r["sha256"] for r in pictures_of(folder)} for folder in (whole, parts)]
    assert hashes[0] == hashes[1] and len(set(hashes[0].values())) > 6
    seeds = {(r["prompt"], r["number"]): set() for r in pictures_of(whole)}
    for r in pictures_of(whole):
        seeds[r["prompt"], r["number"]].add(r["seed"])
    assert [len(seen) for seen in seeds.values()] == [1] * 4, "arms are paired by seed"
    run = read_run(whole)
    assert run["servers"][comfy.url]["comfyui_version"] and len(run["arms"]["plain"]["workflow_hash"]) == 16


def test_batches_of_one_seed(comfy, prompts, tmp_path):
    generate(plan(prompts[:1], images=3, batch=2), tmp_path, [Server(comfy.url)])
    records = pictures_of(tmp_path)
    assert [(r["number"], r["seed"], r["row"]) for r in records] in (
        [(0, 0, 0), (1, 0, 1), (2, 2, 0)], [(2, 2, 0), (0, 0, 0), (1, 0, 1)]
    )  # fmt: skip
    assert len({r["sha256"] for r in records}) == 3


def test_another_workflow_or_list_under_the_same_name_is_refused(comfy, prompts, tmp_path):
    server = [Server(comfy.url)]
    generate(plan(prompts[:1], images=1), tmp_path, server)
    other = Plan(geneval.BENCHMARK, prompts[:1], [Arm("plain", workflow_of(shapes_arms.plain(steps=2)))], 1)
    with pytest.raises(EvaluationError, match="the arm 'plain' was made with workflow"):
        generate(other, tmp_path, server)
    with pytest.raises(EvaluationError, match="made with other prompts"):
        generate(plan(prompts[1:2], images=1), tmp_path, server)
    with pytest.raises(EvaluationError, match="made with images 1, now 2"):
        generate(plan(prompts[:1], images=2), tmp_path, server)


def test_a_server_that_refuses_or_fails_says_why(comfy, prompts, tmp_path):
    graph = shapes_arms.plain()
    graph["sample"]["inputs"]["steps"] = 0
    broken = Plan(geneval.BENCHMARK, prompts[:2], [Arm("broken", workflow_of(graph))], 1)
    report = generate(broken, tmp_path / "a", [Server(comfy.url)])
    assert len(report.failed) == 2 and "KSampler" in str(report) and "steps" in str(report)
    graph = shapes_arms.best_of(4)
    graph["best"]["inputs"]["keep"] = 2
    many = Plan(geneval.BENCHMARK, prompts[:1], [Arm("many", workflow_of(graph))], 1)
    assert "gave 2 pictures, expected 1" in str(generate(many, tmp_path / "b", [Server(comfy.url)]))
    graph = shapes_arms.plain()
    del graph["save"]
    del graph["decode"]
    blind = Plan(geneval.BENCHMARK, prompts[:1], [Arm("blind", workflow_of(graph))], 1)
    assert "pictures from 0 nodes" in str(generate(blind, tmp_path / "c", [Server(comfy.url)]))
