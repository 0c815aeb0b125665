"""The pack's routes on bodies that no page sends, and on runs of prompts without a client_id."""

import json
import time
import urllib.error
import urllib.request

import pytest

from latent_clip.tools.comfy_server import PACK_ROOT

NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000
BODIES = {
    "nested objects": (NESTED, "application/json"),
    "nested lists": ("[" * 100_000 + "]" * 100_000, "application/json"),
    "a field that is a list": ('{"node": "1", "prompt_id": [[["x"]]], "keep": [1]}', "application/json"),
    "a client that is an object": (
        '{"node": "1", "prompt_id": "x", "client_id": {"a": 1}, "keep": [1]}',
        "application/json",
    ),
    "an unknown charset": ("{}", "application/json; charset=klingon"),
    "a charset that is no text encoding": ("{}", "application/json; charset=zip"),
    "another charset than it says": ('{"a": "\u00e9"}', "application/json; charset=utf-16"),
    "no JSON": ("x", "application/json"),
    "a list": ("[]", "application/json"),
    "a number of 5,000 digits": ("9" * 5000, "application/json"),
    "nothing": ("", "application/json"),
}


def status_of(comfy, path: str, body: str, content_type: str) -> tuple[int, dict]:
    request = urllib.request.Request(comfy.url + path, body.encode(), {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read() or b"{}")


@pytest.mark.parametrize("path", ["/latent_clip/stop", "/latent_clip/choose"])
@pytest.mark.parametrize("name", BODIES)
def test_malformed_body_is_the_clients_fault(comfy, path, name):
    status, answer = status_of(comfy, path, *BODIES[name])
    assert status == 400 and answer["error"].startswith("Expected {")


def test_run_without_a_client_id_belongs_to_everyone_without_one(comfy):
    """As docs/api.md says: it keeps users out of each other's way, and is no lock."""
    prompt = comfy.workflow_to_prompt(PACK_ROOT / "workflows" / "02 Optimize noise, demo.json")
    (reno,) = [key for key, node in prompt.items() if node["class_type"] == "LatentCLIPOptimizeNoise"]
    prompt[reno]["inputs"]["iterations"] = 1000
    status, queued = comfy.post("/prompt", {"prompt": prompt})
    assert status == 200
    deadline = time.monotonic() + 120
    while not (runs := comfy.get("/latent_clip/runs")["runs"]):
        assert time.monotonic() < deadline, "the run has not begun"
        time.sleep(0.1)
    assert runs[0]["node"] == reno and comfy.get("/latent_clip/runs?clientId=page") == {"runs": []}
    where = {"prompt_id": queued["prompt_id"], "node": reno}
    assert comfy.post("/latent_clip/stop", where | {"client_id": "page"})[0] == 403
    assert comfy.post("/latent_clip/stop", where) == (200, {"stopping": True})
    result = comfy.wait(queued["prompt_id"])
    assert result.ok and result.outputs[reno]["latent_clip"][0]["stop_reasons"] == ["stopped"] * 4
