"""`latent-clip evaluate` on real servers: nothing twice and nothing lost where one dies, and a run that goes on from what is there."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

from latent_clip.commands import main
from latent_clip.demo.captions import THINGS, Caption
from latent_clip.demo.geneval import metadata
from latent_clip.demo.judge import judge
from latent_clip.demo.scenes import render, sample_scene
from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.benchmarks import generated, geneval
from latent_clip.evaluation.generate import generate
from latent_clip.evaluation.pictures import read_pictures
from latent_clip.evaluation.plan import Arm, RunPlan
from latent_clip.evaluation.run_folder import pictures_of, read_run
from latent_clip.evaluation.scoring import REWARD, read_scores
from latent_clip.evaluation.servers import Server
from latent_clip.evaluation.workflow import workflow_of
from latent_clip.tests.host_server import TestServer
from latent_clip.tools import evaluate as run_evaluate
from latent_clip.tools import shapes_arms
from latent_clip.tools.comfy_server import PACK_ROOT


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in metadata(1)))
    return geneval.read(path)


def plan(prompts, arms=("plain",), images=2, **settings) -> RunPlan:
    return RunPlan(geneval.BENCHMARK, prompts, [Arm(name, workflow_of(shapes_arms.ARMS[name]())) for name in arms], images, **settings)


def test_server_dies_and_nothing_is_lost_or_twice(comfy, comfy_tree, prompts, tmp_path):
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


def test_stopped_run_goes_on_and_makes_the_same_pictures(comfy, prompts, tmp_path):
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
    other = RunPlan(geneval.BENCHMARK, prompts[:1], [Arm("plain", workflow_of(shapes_arms.plain(steps=2)))], 1)
    with pytest.raises(EvaluationError, match="the arm 'plain' was made with workflow"):
        generate(other, tmp_path, server)
    with pytest.raises(EvaluationError, match="made with other prompts"):
        generate(plan(prompts[1:2], images=1), tmp_path, server)
    with pytest.raises(EvaluationError, match="made with images 1, now 2"):
        generate(plan(prompts[:1], images=2), tmp_path, server)


def test_server_that_refuses_or_fails_says_why(comfy, prompts, tmp_path):
    graph = shapes_arms.plain()
    graph["sample"]["inputs"]["steps"] = 0
    broken = RunPlan(geneval.BENCHMARK, prompts[:2], [Arm("broken", workflow_of(graph))], 1)
    report = generate(broken, tmp_path / "a", [Server(comfy.url)])
    assert len(report.failed) == 2 and "KSampler" in str(report) and "steps" in str(report)
    graph = shapes_arms.best_of(4)
    graph["best"]["inputs"]["keep"] = 2
    many = RunPlan(geneval.BENCHMARK, prompts[:1], [Arm("many", workflow_of(graph))], 1)
    assert "gave 2 pictures, expected 1" in str(generate(many, tmp_path / "b", [Server(comfy.url)]))
    graph = shapes_arms.plain()
    del graph["save"]
    del graph["decode"]
    blind = RunPlan(geneval.BENCHMARK, prompts[:1], [Arm("blind", workflow_of(graph))], 1)
    assert "pictures from 0 nodes" in str(generate(blind, tmp_path / "c", [Server(comfy.url)]))


def test_shapes_world_end_to_end(comfy, tmp_path):
    """What ./dev evaluate runs, small: every arm and a sweep, three scorers, the analytic judge, the controls."""
    small = run_evaluate.make_plan(1, 2, tmp_path, (1.0, 1.5))
    text = run_evaluate.evaluate(small, tmp_path / "run", [Server(comfy.url)])
    judged = {s.arm: s for s in read_scores(tmp_path / "run") if s.scorer == run_evaluate.JUDGE}
    assert judged.keys() == {*shapes_arms.ARMS, "plain_cfg=1", "plain_cfg=1.5"}
    values = {arm: [score.value for score in s.scores] for arm, s in judged.items()}
    assert values["plain"] == values["plain_cfg=1"] and sum(values["plain"]) > 0 and set(values["plain"]) <= {0.0, 1.0}
    tasks = geneval.summarise(small.prompts, judged["plain"].scores).tasks
    assert list(tasks) == ["single_object", "two_object", "colors", "position", "color_attr"]
    rewards = {s.arm: sum(score.value for score in s.scores) for s in read_scores(tmp_path / "run") if s.scorer == REWARD}
    assert rewards["plain"] < rewards["best-of-8"] and rewards["plain"] < rewards["reno"]
    assert rewards["plain-12"] < rewards["search"] and rewards["plain-12"] < rewards["guided"]
    (controls,) = [part for part in text.split("## ") if part.startswith("Controls")]
    for arm in ("best-of-8", "reno", "search", "guided"):
        (row,) = [line for line in controls.splitlines() if line.startswith(f"| {arm} ")]
        assert "plain ones" in row and "M = " in row and "cfg 1." in row
    (drifted,) = [part for part in text.split("## ") if part.startswith("Drift")]
    (same,) = [line for line in drifted.splitlines() if line.startswith("| plain_cfg=1 |")]
    assert "| 100.0 % | 0.0000 " in same and "| reno | 0.0 % | 0.0" in drifted


def test_command_line_goes_on_where_it_was(comfy, prompts, tmp_path, capsys):
    (tmp_path / "plain.json").write_text(json.dumps(shapes_arms.plain()))
    listed = str(tmp_path / "evaluation_metadata.jsonl")
    command = ["evaluate", "generate", str(tmp_path / "run"), "--benchmark", "geneval", "--prompts", listed, "--limit", "1", "--images", "1"]
    command += ["--arm", f"plain={tmp_path / 'plain.json'}", "--slot", "cfg=sample.cfg", "--sweep", "cfg=1,2", "--server", comfy.url]
    assert main(command) == 0
    assert "3 pictures made, 0 were there." in capsys.readouterr().out
    assert main(command) == 0
    assert "0 pictures made, 3 were there." in capsys.readouterr().out
    assert main([*command[:3], *command[3:], "--seed", "5"]) == 1
    assert "made with seed 0, now 5" in capsys.readouterr().err
    assert main([*command[:-1], "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_cluster_asks_the_server_of_its_machine(comfy, prompts, tmp_path, capsys):
    """The command with --ray: the same pictures as without, from the ComfyUI that the machine itself knows as 127.0.0.1."""
    pytest.importorskip("ray")
    (tmp_path / "plain.json").write_text(json.dumps(shapes_arms.plain()))
    command = ["evaluate", "generate", str(tmp_path / "ray"), "--benchmark", "geneval", "--prompts", str(tmp_path / "evaluation_metadata.jsonl")]
    command += ["--limit", "2", "--images", "2", "--arm", f"plain={tmp_path / 'plain.json'}", "--server", comfy.url]
    assert main([*command, "--ray"]) == 0
    assert "4 pictures made, 0 were there." in capsys.readouterr().out
    assert main([*command[:2], str(tmp_path / "threads"), *command[3:]]) == 0
    made = [{r["file"]: r["sha256"] for r in pictures_of(tmp_path / run)} for run in ("ray", "threads")]
    assert made[0] == made[1] and len(made[0]) == 4
    servers = {r["server"] for r in pictures_of(tmp_path / "ray")}
    assert len(servers) == 1 and servers.pop().startswith(f"{comfy.url} on ")
    assert main([*command[:-1], "http://127.0.0.1:9", "--ray"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_ctrl_c_takes_back_what_is_queued_and_the_same_command_goes_on(comfy, prompts, tmp_path):
    (tmp_path / "reno.json").write_text(json.dumps(shapes_arms.reno(20)))
    command = [sys.executable, str(PACK_ROOT), "evaluate", "generate", str(tmp_path / "run"), "--benchmark", "geneval", "--server", comfy.url]
    command += ["--prompts", str(tmp_path / "evaluation_metadata.jsonl"), "--arm", f"reno={tmp_path / 'reno.json'}", "--limit", "2", "--images", "3"]
    # A program that was started in the background, as a test run may be, hands on that Ctrl-C is ignored.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while not (tmp_path / "run" / "pictures.jsonl").exists():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1 and said.strip() == "error: Stopped. The same command continues from here."
    time.sleep(0.5)
    assert comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    made = len(pictures_of(tmp_path / "run"))
    assert 1 <= made < 6
    assert subprocess.run(command, timeout=120).returncode == 0
    assert len((tmp_path / "run" / "pictures.jsonl").read_text().splitlines()) == 6


def test_generated_pictures_are_named_in_their_classes(comfy, tmp_path):
    """Noised to 66 % and denoised with the class as prompt: pictures of other images, in folders that zero-shot reads."""
    data = tmp_path / "shapes"
    for place, (thing, scene) in enumerate((t, sample_scene(random.Random(2), (t,))) for t in (THINGS[0], THINGS[-1])):
        (data / str(thing.kind)).mkdir(parents=True)
        save_image(render([scene]), data / thing.kind / f"{place}.png")
    (data / "classnames.txt").write_text("red circle\npurple cross\n")
    (data / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    listed = generated.read(data)
    assert [prompt.text for prompt in listed] == ["a red circle", "a purple cross"]
    made = RunPlan(generated.BENCHMARK, listed, [Arm("turbo", workflow_of(shapes_arms.noised()))], 1)
    assert generate(made, tmp_path / "run", [Server(comfy.url)]).made == 2
    again = read_pictures(tmp_path / "run" / "turbo")
    assert again.classes == ["red circle", "purple cross"] and [label for _, label in again] == [0, 1]
    pictures = torch.stack([to_tensor(image) for image, _ in again])
    assert judge(pictures, [Caption((THINGS[0],)), Caption((THINGS[-1],))]) == [True, True]
    before = torch.stack([to_tensor(image) for image, _ in read_pictures(data)])
    assert (pictures - before).abs().mean() > 0.01
