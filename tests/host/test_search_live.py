"""Search Best Images over a real websocket: what the page hears, and how a person chooses."""

import json
import time

import pytest

from latent_clip.tests.host.test_live import listen as listen_to
from latent_clip.tests.host.test_live import of
from latent_clip.tools.comfy_server import PACK_ROOT

WORKFLOW = PACK_ROOT / "workflows" / "11 Search, demo.json"
RUNS = "/latent_clip/runs?clientId=page"
EVENT = "latent_clip.search"


@pytest.fixture
def prompt(comfy):
    """The shipped workflow with other settings: prompt(seed, keep=..., ...) → (prompt, id of the Search node)."""

    def make(seed: int, **settings) -> tuple[dict, str]:
        made = comfy.workflow_to_prompt(WORKFLOW)
        (search,) = [key for key, node in made.items() if node["class_type"] == "LatentCLIPSearch"]
        (noise,) = [node for node in made.values() if node["class_type"] == "RandomNoise"]
        noise["inputs"]["noise_seed"] = seed
        made[search]["inputs"].update({"candidates": 6, **settings})
        return made, search

    return make


def listen(comfy, prompt, on_event=None, **more):
    return listen_to(comfy, prompt, on_event, event_type=EVENT, **more)


def report_of(heard: list, node: str) -> dict:
    (output,) = [data["output"] for data in of("executed", heard) if data["node"] == node]
    return output["latent_clip"][0]


def answer(event: dict, keep, client: str = "page", **other) -> dict:
    where = {name: event[name] for name in ("prompt_id", "node", "list_index")}
    return {**where, "client_id": client, "keep": keep, **other}


def test_events_lead_to_the_report(comfy, prompt):
    made, node = prompt(1)
    heard = listen(comfy, made)
    events = of(EVENT, heard)
    report = report_of(heard, node)
    assert [event["ended"] for event in events] == [""] * (len(events) - 1) + ["done"]
    assert {event["node"] for event in events} == {event["display_node"] for event in events} == {node}
    assert all(event["waiting"] is None for event in events)
    spent = [event["cost_spent"] for event in events]
    assert spent == sorted(spent) and spent[-1] == report["cost_spent"] == report["cost_plan"] < report["cost_plain"]
    serials = [event["serial"] for event in events]
    assert serials == sorted(set(serials)), "a message counts up"
    assert not {"waiting", "serial"} & set(report)
    last = {key: value for key, value in events[-1].items() if key not in ("waiting", "thumbnails", "serial")}
    assert last == {key: value for key, value in report.items() if key != "thumbnails"}
    assert [one["name"] for one in report["rounds"]] == ["draft", "final"]
    draft, final = report["rounds"]
    assert draft["alive"] == [*range(6)] and len(draft["kept"]) == 2
    assert sorted(final["kept"]) == sorted(draft["kept"]) and final["kept"] == report["winners"]
    best = sorted(draft["scores"].values(), reverse=True)[:2]
    assert [draft["scores"][str(item)] for item in draft["kept"]] == best
    pictures = {}
    for event in events:
        pictures |= event["thumbnails"]
    assert pictures == report["thumbnails"] and sorted(pictures) == [*"012345"]
    assert all(picture.startswith("data:image/jpeg") for picture in pictures.values())


@pytest.mark.parametrize("chooses", ["me", "reward proposes, I confirm"])
def test_person_chooses(comfy, prompt, chooses):
    """Against the reward: its two worst drafts, and a third."""
    made, node = prompt(2, chooses=chooses)
    seen, answers = [], []

    def choose(event):
        if event["waiting"] and not answers:
            seen.append(event)
            scores = event["rounds"][0]["scores"]
            worst = sorted(event["waiting"]["ids"], key=lambda item: scores[str(item)])[:3]
            answers.append((worst, comfy.post("/latent_clip/choose", answer(event, worst))))

    heard = listen(comfy, made, choose)
    ((worst, (status, said)),) = answers
    assert (status, said) == (200, {"chosen": worst})
    (event,) = seen
    assert event["waiting"]["round"] == 0 and event["waiting"]["ids"] == [*range(6)]
    assert len(event["waiting"]["proposed"]) == (0 if chooses == "me" else 2)
    assert 60 < event["waiting"]["deadline_ms"] / 1000 - time.time() < 300
    assert event["rounds"][0]["kept"] == [] and len(event["thumbnails"]) == 6
    report = report_of(heard, node)
    assert sorted(report["winners"]) == sorted(worst)
    saved = [data["output"]["images"] for data in of("executed", heard) if "images" in (data["output"] or {})]
    assert sorted(map(len, saved)) == [3, 3]


def test_choice_by_hand_is_kept_for_the_same_page(comfy, prompt):
    made, node = prompt(3, chooses="me")

    def choose(event):
        if event["waiting"]:
            comfy.post("/latent_clip/choose", answer(event, [4]))

    assert report_of(listen(comfy, made, choose), node)["winners"] == [4]
    asked = []
    heard = listen(comfy, made, lambda event: asked.append(event))
    assert asked == [] and heard[-1][0] == "execution_success"

    def other(event):
        if event["waiting"]:
            asked.append(comfy.post("/latent_clip/choose", answer(event, [1], "another")))

    heard = listen(comfy, made, other, client="another")
    assert asked == [(200, {"chosen": [1]})], "another page is asked itself"
    assert report_of(heard, node)["winners"] == [1]


def test_whoever_walks_away_gets_the_reward_s_choice_and_is_asked_again(comfy, prompt):
    made, node = prompt(4, chooses="reward proposes, I confirm", time_out=1.0)
    proposed = []
    heard = listen(comfy, made, lambda event: event["waiting"] and proposed.append(event["waiting"]["proposed"]))
    assert report_of(heard, node)["rounds"][0]["kept"] == proposed[0]
    again = []
    listen(comfy, made, lambda event: event["waiting"] and again.append(True))
    assert again


def test_nobody_is_waited_for_where_nobody_listens(comfy, prompt):
    made, node = prompt(5, chooses="me", time_out=0.0)
    result = comfy.run(made, client_id="nobody")
    assert result.ok and len(result.outputs[node]["latent_clip"][0]["winners"]) == 2
    asked = []

    def choose(event):
        if event["waiting"]:
            asked.append(event["waiting"])
            comfy.post("/latent_clip/choose", answer(event, [0]))

    heard = listen(comfy, made, choose)
    assert report_of(heard, node)["winners"] == [0], "what nobody chose is not taken from the cache"
    assert asked[0]["deadline_ms"] is None


def test_reload_in_the_middle_loses_nothing(comfy, prompt):
    made, node = prompt(6, chooses="me")
    seen = []

    def reload(event):
        if event["waiting"] and not seen:
            (run,) = comfy.get(RUNS)["runs"]
            seen.append(run)
            assert comfy.get("/latent_clip/runs?clientId=other") == {"runs": []}
            comfy.post("/latent_clip/choose", answer(run, [5, 2]))

    heard = listen(comfy, made, reload)
    (run,) = seen
    assert run["kind"] == "search" and run["waiting"]["ids"] == [*range(6)] and len(run["thumbnails"]) == 6
    assert sorted(report_of(heard, node)["winners"]) == [2, 5]
    assert comfy.get(RUNS) == {"runs": []}


def test_answers_that_are_none(comfy, prompt):
    made, _ = prompt(7, chooses="me")
    refused = []

    def try_them(event):
        if event["waiting"] and not refused:
            posts = [
                answer(event, [0], "other"), answer(event, [0], ""), answer(event, []), answer(event, [6]), answer(event, [1, 1]),
                answer(event, "all"), answer(event, [True]), answer(event, [0], list_index=1), answer(event, [0], node="none"),
                {"keep": [0]}, [],
            ]  # fmt: skip
            refused.extend(comfy.post("/latent_clip/choose", post) for post in posts)
            stop = {name: event[name] for name in ("prompt_id", "node")}
            refused.append(comfy.post("/latent_clip/stop", {**stop, "client_id": "page"}))
            assert comfy.post("/latent_clip/choose", answer(event, [3]))[0] == 200
            refused.append(comfy.post("/latent_clip/choose", answer(event, [3])))

    listen(comfy, made, try_them)
    assert [status for status, _ in refused] == [403, 403, 400, 400, 400, 400, 400, 404, 404, 400, 400, 404, 404]
    assert all(said["error"] for _, said in refused)


def test_cancelling_ends_the_wait_at_once(comfy, prompt):
    made, _ = prompt(8, chooses="me", time_out=0.0)
    sent = []

    def cancel(event):
        if event["waiting"] and not sent:
            comfy.post("/interrupt", {})
            sent.append(time.monotonic())

    heard = listen(comfy, made, cancel)
    assert time.monotonic() - sent[0] < 2
    assert heard[-1][0] == "execution_interrupted"
    assert of(EVENT, heard)[-1]["ended"] == "interrupted" and of(EVENT, heard)[-1]["waiting"] is None
    assert comfy.get(RUNS) == {"runs": []}


def test_cancelling_in_the_middle_of_a_sampling(comfy, prompt):
    made, _ = prompt(9, candidates=64, keep=2)
    sent = []

    def cancel(event):
        if not sent and event["cost_spent"]:
            comfy.post("/interrupt", {})
            sent.append(event)

    heard = listen(comfy, made, cancel)
    assert heard[-1][0] == "execution_interrupted"
    last = of(EVENT, heard)[-1]
    assert last["ended"] == "interrupted" and last["cost_spent"] < last["cost_plan"]


def test_error_says_so_and_the_queue_goes_on(comfy, prompt):
    made, _ = prompt(10, keep=6)
    heard = listen(comfy, made)
    (error,) = of("execution_error", heard)
    assert "keep = 6 of 6" in error["exception_message"]
    assert comfy.get(RUNS) == {"runs": []}


def test_person_is_asked_at_every_cut(comfy, prompt):
    made, node = prompt(11, look="cuts", cuts="25% → 4, 50% → 2", chooses="me")
    asked = []

    def choose(event):
        if event["waiting"] and len(asked) == event["waiting"]["round"]:
            keep = event["waiting"]["ids"][:5] if not asked else event["waiting"]["ids"][-3:]
            asked.append(keep)
            comfy.post("/latent_clip/choose", answer(event, keep))

    report = report_of(listen(comfy, made, choose), node)
    assert asked == [[0, 1, 2, 3, 4], [2, 3, 4]]
    assert sorted(report["winners"]) == [2, 3, 4]
    assert [one["name"] for one in report["rounds"]] == ["25%", "50%", "final"]


def test_list_of_latents_is_a_search_each(comfy, prompt):
    made, node = prompt(12, chooses="me")
    made["batch"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}}
    made["list"] = {"class_type": "TestLatentList", "inputs": {"latent": ["batch", 0]}}
    made[node]["inputs"]["latent_image"] = ["list", 0]
    chosen = []

    def choose(event):
        if event["waiting"] and len(chosen) == event["list_index"]:
            chosen.append(event["list_index"] + 1)
            assert comfy.post("/latent_clip/choose", answer(event, chosen[-1:]))[0] == 200

    heard = listen(comfy, made, choose)
    (output,) = [data["output"]["latent_clip"] for data in of("executed", heard) if data["node"] == node]
    assert [report["winners"] for report in output] == [[1], [2]]


def test_trace_is_the_report_without_pictures(comfy, prompt):
    made, node = prompt(13)
    made["trace"] = {"class_type": "PreviewAny", "inputs": {"source": [node, 3]}}
    outputs = comfy.run(made).outputs
    trace = json.loads(outputs["trace"]["text"][0])
    report = outputs[node]["latent_clip"][0]
    assert trace == {key: value for key, value in report.items() if key != "thumbnails"}
