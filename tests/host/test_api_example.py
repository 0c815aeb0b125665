"""docs/examples/queue_and_follow.py as an API user runs it: a program of its own, against the real server."""

import json
import subprocess
import sys

import pytest

from latent_clip.tools.comfy_server import PACK_ROOT

SCRIPT = PACK_ROOT / "docs" / "examples" / "queue_and_follow.py"


@pytest.fixture
def run(comfy, tmp_path):
    """run(workflow name, *options) → the finished process; the workflow is exported to API format first."""

    def start(workflow: str, *options: str) -> subprocess.CompletedProcess:
        exported = tmp_path / f"{workflow}.json"
        exported.write_text(json.dumps(comfy.workflow_to_prompt(PACK_ROOT / "workflows" / exported.name)))
        server = comfy.url.removeprefix("http://")
        command = [sys.executable, str(SCRIPT), str(exported), "--server", server, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    return start


def node_of(comfy, workflow: str, class_type: str) -> str:
    prompt = comfy.workflow_to_prompt(PACK_ROOT / "workflows" / f"{workflow}.json")
    return next(key for key, node in prompt.items() if node["class_type"] == class_type)


def test_it_prints_the_scores_of_try_it_now(comfy, run):
    node = node_of(comfy, "01 Try it now", "KSampler")
    done = run("01 Try it now", "--set", f"{node}.seed=40961")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running KSampler" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LatentCLIPSelect")]
    assert "scores [" in line and "kept [" in line


def test_it_prints_progress_and_the_trace_of_reno_try_it_now(comfy, run):
    node = node_of(comfy, "02 Optimize noise, demo", "LatentCLIPOptimizeNoise")
    noise = node_of(comfy, "02 Optimize noise, demo", "RandomNoise")
    done = run("02 Optimize noise, demo", "--set", f"{node}.iterations=4", "--set", f"{noise}.noise_seed=40961")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running LatentCLIPOptimizeNoise" in done.stdout
    assert "  4 of 4" in done.stdout
    trace = done.stdout.split(f"LatentCLIPOptimizeNoise #{node}: best rewards")[1]
    assert [f"{index:3d}  " in trace for index in range(4)] == [True] * 4


def test_a_refused_prompt_ends_it_with_the_reason(comfy, run):
    done = run("01 Try it now", "--set", f"{node_of(comfy, '01 Try it now', 'KSampler')}.steps=0")
    assert done.returncode != 0
    assert "steps" in done.stderr


def test_a_failing_node_ends_it_with_its_message(comfy, run):
    node = node_of(comfy, "01 Try it now", "LatentCLIPTextReward")
    done = run("01 Try it now", "--set", f'{node}.text=" "')
    assert done.returncode != 0
    assert "LatentCLIPTextReward" in done.stderr and "empty text" in done.stderr
