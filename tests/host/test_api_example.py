"""docs/examples/queue_and_follow.py as an API user runs it: a program of its own, against the real server."""

import json
import subprocess
import sys

import pytest

from latent_clip.tests.hostile_server import HostileServer
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


def example(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=100)


def said(done: subprocess.CompletedProcess) -> str:
    """The one thing that a user reads where something is wrong."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip()


UI = {"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4}


@pytest.mark.parametrize(("content", "message"), [
    (None, "there is no such file. Name the file that Workflow → Export"), ("a folder", "cannot be read"), ("{", "is no JSON"), ("", "is no JSON"),
    ("[" * 100_000, "is no JSON"), (json.dumps(UI), "as the page saves it, and the server needs API format"), ("[]", "no workflow in API format"),
    ("{}", "no workflow in API format"), ('{"1": {"class_type": "KSampler"}}', "no workflow in API format"), ('{"1": 5}', "no workflow in API format"),
])  # fmt: skip
def test_file_that_is_no_workflow_in_api_format(tmp_path, content, message):
    """Found before the server is asked."""
    path = tmp_path / "w.json"
    path.mkdir() if content == "a folder" else path.write_text(content) if content is not None else None
    text = said(example(str(path), "--server", "127.0.0.1:9"))
    assert text.startswith(f"{path}: ") and message in text and text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(("server", "message"), [
    ("127.0.0.1:9", "No ComfyUI answers at http://127.0.0.1:9"), ("nowhere.invalid", "No ComfyUI answers at"), ("127.0.0.1:x", "expected an address such as"),
    ("file:///x", "expected an address such as"), ("http://", "expected an address such as"),
])  # fmt: skip
def test_no_server_there(tmp_path, server, message):
    (tmp_path / "w.json").write_text('{"1": {"class_type": "KSampler", "inputs": {}}}')
    text = said(example(str(tmp_path / "w.json"), "--server", server))
    assert message in text and text.endswith(".") and "\n" not in text


def test_server_that_is_no_comfyui(tmp_path):
    (tmp_path / "w.json").write_text('{"1": {"class_type": "KSampler", "inputs": {}}}')
    with HostileServer("/", lambda path: (200, b"<html>", {})) as server:
        assert "answers with status 200, as no ComfyUI does. Name the address" in said(
            example(str(tmp_path / "w.json"), "--server", server.address)
        )


@pytest.mark.parametrize(("change", "message"), [
    ("5", "expected NODE.INPUT=VALUE"), ("x=5", "expected NODE.INPUT=VALUE"), ("999.seed=5", "the workflow has no node 999; it has"), ("1.x=5", "has no input x; it has text"),
])  # fmt: skip
def test_change_of_what_is_not_there(tmp_path, change, message):
    (tmp_path / "w.json").write_text('{"1": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}}}')
    text = said(example(str(tmp_path / "w.json"), "--server", "127.0.0.1:9", "--set", change))
    assert message in text and text.endswith(".")


def test_aiohttp_is_missing(tmp_path):
    code = f"import sys, runpy; sys.modules['aiohttp'] = None; sys.argv = ['x']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said(done) == "aiohttp is missing. Run this with the Python that runs ComfyUI, or install aiohttp with pip."


def test_pack_or_a_model_that_the_server_lacks(comfy, tmp_path):
    path = tmp_path / "w.json"
    saved = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    path.write_text(json.dumps({"1": {"class_type": "NodeOfAPackThatIsMissing", "inputs": {}}, "2": saved}))
    text = said(example(str(path), "--server", comfy.url))
    assert "NodeOfAPackThatIsMissing" in text and "Install the node pack that has it on the server" in text
    path.write_text(json.dumps({"1": {"class_type": "VAELoader", "inputs": {"vae_name": "nowhere.safetensors"}}, "2": {
        "class_type": "VAEDecode", "inputs": {"vae": ["1", 0], "samples": ["3", 0]}}, "3": {
        "class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}, "4": {**saved, "inputs": {**saved["inputs"], "images": ["2", 0]}}}))  # fmt: skip
    text = said(example(str(path), "--server", comfy.url))
    assert "VAELoader #1" in text and "nowhere.safetensors" in text and "put it into the server's models folder" in text
    path.write_text(
        json.dumps({"3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}})
    )
    assert "Add a node that saves or shows something" in said(example(str(path), "--server", comfy.url))


def test_half_a_workflow_is_said(comfy, tmp_path):
    latent = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    good = {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "x"}}
    (tmp_path / "w.json").write_text(
        json.dumps({"1": latent, "2": good, "3": {"class_type": "SaveLatent", "inputs": {"filename_prefix": "y"}}})
    )
    done = example(str(tmp_path / "w.json"), "--server", comfy.url)
    assert (
        done.returncode == 0
        and "left out: SaveLatent #3: Required input is missing: samples. Connect the input" in done.stderr
    )


def test_refused_prompt_ends_it_with_the_reason(comfy, run):
    done = run("01 Try it now", "--set", f"{node_of(comfy, '01 Try it now', 'KSampler')}.steps=0")
    assert done.returncode != 0
    assert "steps" in said(done)


def test_failing_node_ends_it_with_its_message(comfy, run):
    node = node_of(comfy, "01 Try it now", "LatentCLIPTextReward")
    done = run("01 Try it now", "--set", f'{node}.text=" "')
    assert done.returncode != 0
    assert "failed in LatentCLIPTextReward" in said(done) and "empty text" in said(done)
