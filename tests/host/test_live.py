"""What a page hears of a ReNO run while it goes on, over a real websocket, and how it ends one."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import aiohttp
import pytest

from latent_clip.tools.comfy_server import PACK_ROOT

WORKFLOW = PACK_ROOT / "workflows" / "02 Optimize noise, demo.json"
ENDS = {"execution_success", "execution_error", "execution_interrupted"}


@pytest.fixture
def prompt(comfy):
    """The shipped workflow with other settings: prompt(seed, iterations=..., ...) → (prompt, id of the ReNO node)."""

    def make(seed: int, **settings) -> tuple[dict, str]:
        made = comfy.workflow_to_prompt(WORKFLOW)
        (reno,) = [key for key, node in made.items() if node["class_type"] == "LatentCLIPOptimizeNoise"]
        (noise,) = [node for node in made.values() if node["class_type"] == "RandomNoise"]
        noise["inputs"]["noise_seed"] = seed
        made[reno]["inputs"].update(settings)
        return made, reno

    return make


def listen(
    comfy, prompt: dict, on_event=None, client: str = "page", event_type: str = "latent_clip.reno"
) -> list[tuple[str, dict]]:
    """Queue a prompt and return what the websocket says until it has ended. `on_event` may talk to the server."""

    async def run() -> list[tuple[str, dict]]:
        heard, loop = [], asyncio.get_running_loop()
        address = f"{comfy.url}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            await socket.receive(timeout=10)
            status, answer = await loop.run_in_executor(
                None, comfy.post, "/prompt", {"prompt": prompt, "client_id": client}
            )
            assert status == 200, answer
            while not heard or heard[-1][0] not in ENDS:
                message = await socket.receive(timeout=60)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data, parse_constant=pytest.fail)
                heard.append((event["type"], event["data"]))
                if on_event and event["type"] == event_type:
                    await loop.run_in_executor(None, on_event, event["data"])
        return heard

    with ThreadPoolExecutor(1) as threads:  # the browser tests of this process keep an event loop running
        return threads.submit(asyncio.run, run()).result()


def of(kind: str, heard: list) -> list[dict]:
    return [data for name, data in heard if name == kind]


def stop_message(event: dict, client: str = "page") -> dict:
    return {"prompt_id": event["prompt_id"], "node": event["node"], "client_id": client}


def final_trace(heard: list, node: str) -> dict:
    (output,) = [data["output"] for data in of("executed", heard) if data["node"] == node]
    return output["latent_clip"][0]


def test_events_together_are_the_trace(comfy, prompt):
    made, reno = prompt(1, iterations=30)
    heard = listen(comfy, made)
    events = of("latent_clip.reno", heard)
    assert len(events) >= 2
    assert {event["node"] for event in events} == {reno}
    collected = []
    for event in events:
        assert event["start"] == len(collected)
        collected += event["iterations"]
    trace = final_trace(heard, reno)
    assert collected == trace["iterations"]
    assert [event["ended"] for event in events] == [""] * (len(events) - 1) + ["done"]
    assert events[-1]["best"] == pytest.approx(trace["best"], abs=1e-6)
    assert events[-1]["terms"] == trace["terms"]
    assert all(picture.startswith("data:image/jpeg") for picture in events[0]["thumbnails"])
    assert len(events[0]["thumbnails"]) == len(trace["thumbnails"]) == len(trace["first_thumbnails"]) == 4
    seconds = [event["iterations"][-1]["seconds"] for event in events[:-1]]
    assert all(later - earlier > 0.05 for earlier, later in pairwise(seconds)), "about ten events a second"


def test_stop_ends_the_run_and_keeps_the_best(comfy, prompt):
    made, reno = prompt(2, iterations=1000)
    answers = []

    def stop(event):
        if not answers and event["iterations"][-1]["index"] >= 3:
            answers.append(comfy.post("/latent_clip/stop", stop_message(event)))

    heard = listen(comfy, made, stop)
    assert answers == [(200, {"stopping": True})]
    trace = final_trace(heard, reno)
    assert trace["stop_reasons"] == ["stopped"] * 4
    assert 3 < len(trace["iterations"]) < 900
    first = trace["iterations"][0]["rewards"]
    assert all(best >= before - 1e-6 for best, before in zip(trace["best"], first))
    assert heard[-1][0] == "execution_success"


def test_page_that_has_missed_something_can_ask(comfy, prompt):
    made, reno = prompt(3, iterations=1000)
    seen = []

    def ask(event):
        if not seen and event["iterations"][-1]["index"] >= 5:
            (run,) = comfy.get("/latent_clip/runs?clientId=page")["runs"]
            seen.append(run)
            comfy.post("/latent_clip/stop", stop_message(run))

    heard = listen(comfy, made, ask)
    run = seen[0]
    assert run["start"] == 0
    assert run["node"] == reno
    assert run["iterations"] == final_trace(heard, reno)["iterations"][: len(run["iterations"])]
    assert len(run["thumbnails"]) == 4
    assert comfy.get("/latent_clip/runs?clientId=page") == {"runs": []}


def test_another_client_neither_sees_nor_stops_it(comfy, prompt):
    made, reno = prompt(12, iterations=1000)
    seen, refused = [], []

    def try_it(event):
        if not refused and event["iterations"] and event["iterations"][-1]["index"] >= 3:
            seen.append([comfy.get(f"/latent_clip/runs{query}")["runs"] for query in ("", "?clientId=other")])
            without = {"prompt_id": event["prompt_id"], "node": event["node"]}
            bodies = (stop_message(event, "other"), stop_message(event, ""), without)
            refused.extend(comfy.post("/latent_clip/stop", body) for body in bodies)
            assert comfy.post("/latent_clip/stop", stop_message(event))[0] == 200

    heard = listen(comfy, made, try_it)
    assert seen == [[[], []]]
    assert [status for status, _ in refused] == [403] * 3
    assert "client_id" in refused[0][1]["error"]
    assert final_trace(heard, reno)["stop_reasons"] == ["stopped"] * 4


def test_who_queues_without_an_id_can_stop_without_one(comfy, prompt):
    made, reno = prompt(13, iterations=1000)
    answers = []

    def stop():
        for run in comfy.get("/latent_clip/runs")["runs"]:
            if not answers and len(run["iterations"]) > 3:
                answers.append(comfy.post("/latent_clip/stop", {"prompt_id": run["prompt_id"], "node": run["node"]}))

    result = comfy.run(made, poll=stop)
    assert answers == [(200, {"stopping": True})]
    assert result.outputs[reno]["latent_clip"][0]["stop_reasons"] == ["stopped"] * 4


def test_run_inside_an_expanded_node_names_the_node_of_the_page(comfy, prompt):
    """A node that expands into a graph: the run has an id that no page knows, and is stopped by it."""
    made, reno = prompt(14, iterations=1000)
    inputs = made[reno]["inputs"]
    wires = {name: inputs[name] for name in ("noise", "guider", "sigmas", "latent_image", "reward")}
    made[reno] = {"class_type": "TestExpand", "inputs": wires}
    answers, found = [], []

    def stop(event):
        if not answers and event["iterations"][-1]["index"] >= 3:
            found.append(comfy.get("/latent_clip/runs?clientId=page")["runs"][0])
            answers.append(comfy.post("/latent_clip/stop", stop_message(event)))

    heard = listen(comfy, made, stop)
    events = of("latent_clip.reno", heard)
    assert answers == [(200, {"stopping": True})]
    assert {event["display_node"] for event in [*events, *found]} == {reno}
    assert {event["node"] for event in events}.isdisjoint(made)
    (report,) = [data for data in of("executed", heard) if "latent_clip" in (data["output"] or {})]
    assert report["display_node"] == reno
    assert report["output"]["latent_clip"][0]["stop_reasons"] == ["stopped"] * 4


def test_stopped_run_is_run_again_and_a_complete_one_is_not(comfy, prompt):
    """Each time the history has the report."""
    made, reno = prompt(15, iterations=60)
    stopped = []

    def stop(event):
        if not stopped and event["iterations"][-1]["index"] >= 2:
            stopped.append(comfy.post("/latent_clip/stop", stop_message(event)))

    first = final_trace(listen(comfy, made, stop), reno)
    assert first["stop_reasons"] == ["stopped"] * 4 and len(first["iterations"]) < 60
    again = comfy.run(made, client_id="page").outputs[reno]["latent_clip"]
    assert [len(trace["iterations"]) for trace in again] == [60]
    assert again[0]["stop_reasons"] == ["iterations"] * 4
    if comfy.version >= (0, 20):  # older hosts keep the report of what they took from the cache to themselves
        cached = comfy.run(made, client_id="page")
        assert cached.seconds < 1
        assert cached.outputs[reno]["latent_clip"] == again


def test_interrupted_run_says_so(comfy, prompt):
    made, _ = prompt(4, iterations=1000)
    sent = []

    def interrupt(event):
        if not sent and event["iterations"][-1]["index"] >= 3:
            sent.append(True)
            comfy.post("/interrupt", {})

    heard = listen(comfy, made, interrupt)
    assert heard[-1][0] == "execution_interrupted"
    assert of("latent_clip.reno", heard)[-1]["ended"] == "interrupted"
    assert comfy.get("/latent_clip/runs?clientId=page") == {"runs": []}


def test_only_the_client_that_queued_hears_it(comfy, prompt):
    """Without a listener nothing is sent, and the run is the same."""
    made, reno = prompt(5, iterations=4)
    result = comfy.run(made, client_id="nobody")
    assert len(result.outputs[reno]["latent_clip"][0]["iterations"]) == 4


def test_list_of_latents_is_a_run_each(comfy, prompt):
    """The host runs the node once for each; the report has one entry for each, and an event says which it is of."""
    made, reno = prompt(16, iterations=12)
    made["list"] = {"class_type": "TestLatentList", "inputs": {"latent": made[reno]["inputs"]["latent_image"]}}
    made[reno]["inputs"]["latent_image"] = ["list", 0]
    heard = listen(comfy, made)
    assert [event["list_index"] for event in of("latent_clip.reno", heard) if event["ended"]] == [0, 1, 2, 3]
    (output,) = [data["output"]["latent_clip"] for data in of("executed", heard) if data["node"] == reno]
    assert [len(trace["best"]) for trace in output] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ([], 400), ({"prompt_id": "x"}, 400), ({"prompt_id": "x", "node": 1}, 404)]
)
def test_stop_that_means_no_run_is_refused(comfy, body, status):
    answer = comfy.post("/latent_clip/stop", body)
    assert answer[0] == status
    assert answer[1]["error"]


def test_target_ends_a_run(comfy, prompt):
    made, reno = prompt(6, iterations=20, use_target=True, target=-1000.0)
    trace = comfy.run(made).outputs[reno]["latent_clip"][0]
    assert trace["stop_reasons"] == ["target reached"] * 4
    assert trace["settings"]["target"] == -1000.0
    assert len(trace["iterations"]) == 1
