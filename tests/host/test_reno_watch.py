"""Views and a watch on Optimize Noise, in the real host."""

import json

import pytest
import torch

from latent_clip.tests.host.test_reno import checkpoints, graph, node, run  # noqa: F401

PIXELS = node(
    "LatentCLIPPixelReward", vae=["ckpt", 2], file="tiny_pixels.safetensors", text="a star", weight=2.0, dtype="auto", quick_gelu=False
)  # fmt: skip


def watched(**settings) -> dict:
    prompt = graph(batch_size=2, iterations=6, **settings)
    prompt["pixels"] = PIXELS
    prompt["reno"]["inputs"]["watch"] = ["pixels", 0]
    prompt["judged"] = node("LatentCLIPScore", latent=["reno", 0], reward=["pixels", 0])
    return prompt


def test_watch_is_reported_and_changes_nothing(comfy):
    plain = run(comfy, graph(batch_size=2, iterations=6), best=("reno", 0), trace=("reno", 3))
    wires = run(comfy, watched(), best=("reno", 0), trace=("reno", 3))
    assert torch.equal(plain["best"]["samples"], wires["best"]["samples"])
    before, trace = json.loads(plain["trace"]), json.loads(wires["trace"])
    assert before["watch"] == [] and not any(iteration["watch"] for iteration in before["iterations"])
    assert trace["watch"] == [{"name": "pixels match: a star", "weight": 2.0}]
    assert [len(iteration["watch"]) for iteration in trace["iterations"]] == [2] * 6
    assert [i["rewards"] for i in trace["iterations"]] == [i["rewards"] for i in before["iterations"]]


def test_what_the_watch_keeps_is_what_score_finds_best(comfy):
    wires = run(comfy, watched(watch_keeps=True), trace=("reno", 3), report=("judged", 2))
    trace = json.loads(wires["trace"])
    assert trace["settings"]["watch_keeps"] is True
    for item, score in enumerate(json.loads(wires["report"])["scores"]):
        first = trace["iterations"][0]["rewards"][item]
        allowed = [i["watch"][item] for i in trace["iterations"] if i["rewards"][item] >= first]
        assert score == pytest.approx(max(allowed), abs=1e-4) and trace["best"][item] >= first - 1e-6  # rounded


def test_item_ends_when_the_watch_has_turned_down(comfy):
    prompt = watched(patience=1)
    prompt["pixels"] = {**PIXELS, "inputs": {**PIXELS["inputs"], "weight": 0.0}}  # a watch that never rises
    trace = json.loads(run(comfy, prompt, trace=("reno", 3))["trace"])
    assert trace["stop_reasons"] == ["watch turned down"] * 2 and len(trace["iterations"]) == 2


def test_views_change_the_climb_and_the_best_is_judged_without_them(comfy):
    plain = run(comfy, graph(batch_size=2, iterations=6), best=("reno", 0), trace=("reno", 3))
    off = run(comfy, graph(batch_size=2, iterations=6, views=False, watch_keeps=False), best=("reno", 0))
    assert torch.equal(plain["best"]["samples"], off["best"]["samples"])
    prompt = graph(batch_size=2, iterations=6, views=True)
    prompt["judged"] = node("LatentCLIPScore", latent=["reno", 0], reward=["reward", 0])
    wires = run(comfy, prompt, best=("reno", 0), first=("reno", 2), trace=("reno", 3), report=("judged", 2))
    trace = json.loads(wires["trace"])
    assert trace["settings"]["views"] == {"shift": 0.125, "noise": 0.13, "seed": 0}
    assert json.loads(plain["trace"])["settings"]["views"] is None
    assert not torch.equal(wires["best"]["samples"], plain["best"]["samples"])
    assert json.loads(wires["report"])["scores"] == pytest.approx(trace["best"], abs=1e-4)
    assert all(best >= first - 1e-6 for best, first in zip(trace["best"], trace["iterations"][0]["rewards"]))


def test_watch_of_other_latents_is_refused(comfy):
    """It reads the latents that the reward reads, or the run says so before it begins."""
    prompt = watched()
    prompt["clip16"] = node("LatentCLIPShapesWorld")
    prompt["watching"] = node("LatentCLIPTextReward", latent_clip=["clip16", 3], text="a red circle", weight=1.0, fit="tiles")
    prompt["reno"]["inputs"]["watch"] = ["watching", 0]
    error = comfy.run(prompt | {"d": node("TestDump", value=["reno", 0], name="x")}, expect_failure=True).error
    assert "latents" in error and "shapes" in error.lower()
