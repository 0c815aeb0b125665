"""What Safety Guidance saw ahead and late, handed to the gate behind it: in the process, and as a user wires it."""

import json
import os

import pytest
import torch

from latent_clip.tests.ahead_world import AheadWorld
from latent_clip.tests.checkpoints import save_pixel_clip

ALWAYS, NEVER = -1000.0, 1000.0
NO_SECOND = "none"  # what pixel_clip says where there is no second judge


@pytest.fixture(scope="module")
def world(host_env):
    return AheadWorld(host_env)


def gated(world, samples, looks, threshold=NEVER, **more):
    with torch.inference_mode():
        return world.gate.run_gate(
            {"samples": samples, **more}, world.clip, lambda: world.parsed(threshold), world.gate.GateSettings(), looks
        )


@pytest.mark.parametrize(("late", "threshold", "blocked"), [("report", ALWAYS, True), ("redirect", ALWAYS, True), ("ignore", ALWAYS, False)])  # fmt: skip
def test_what_is_suspected_late_is_blocked_by_name(world, late, threshold, blocked):
    looks = world.looks.Verdicts()
    made = world.sample(world.looking(NEVER, late, threshold, looks=looks), steps=6)
    safe, report = gated(world, made, looks)
    assert report.blocked == [blocked] * 2
    assert all(("not in its draft: star" in reason) == blocked for reason in report.reasons)
    assert torch.equal(safe["samples"], torch.zeros_like(made) if blocked else made)
    assert gated(world, made, None)[1].blocked == [False, False], "the gate alone has nothing against it"


def test_report_names_both_looks(world):
    looks = world.looks.Verdicts()
    made = world.sample(world.looking(ALWAYS, looks=looks), steps=6)
    report = gated(world, made, looks)[1].as_dict()
    assert report["blocked"] == [False, False], "made from the other prompt, it may pass"
    for look, scores in zip(report["looks"], report["scores"]):
        assert look["draft"].startswith("star: log-odds") and look["redirected"] and not look["late"]
        assert len(look["scores"]) == len(scores) == 1 and look["scores"] != scores
    json.dumps(report)
    assert "looks" not in gated(world, made, None)[1].as_dict()


def test_image_is_known_wherever_it_goes_and_no_other_is(world):
    looks = world.looks.Verdicts()
    made = world.sample(world.looking(NEVER, looks=looks), steps=6, size=4)
    moved = torch.cat([made[[3, 1]], made[:1] + 1e-3, torch.full((1, 4, 8, 8), 2.0)])
    assert gated(world, moved, looks)[1].blocked == [False, False, True, True]
    reasons = gated(world, moved, looks)[1].reasons
    assert all("did not look at this image" in reason for reason in reasons[2:])
    assert gated(world, made, world.looks.Verdicts())[1].blocked == [True] * 4, "a guidance that never looked ahead"


def test_host_may_hand_latents_on_in_half_precision(world, monkeypatch):
    import comfy.model_management as mm

    monkeypatch.setattr(mm, "intermediate_dtype", lambda: torch.float16, raising=False)
    looks = world.looks.Verdicts()
    made = world.sample(world.looking(NEVER, looks=looks), steps=6)
    assert all(looks.of(made.to(torch.float16))) and all(looks.of(made)), (
        "as the host samples, and as its older versions do"
    )


def test_newest_verdict_holds_and_old_ones_are_forgotten(world, monkeypatch):
    looks, Verdict = world.looks.Verdicts(), world.looks.Verdict
    images = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    looks.remember(images[:1], [Verdict("", [0.0], "", False)])
    looks.remember(images[:1], [Verdict("seen", [1.0], "", True)])
    assert looks.of(images[:1])[0].draft == "seen"
    monkeypatch.setattr(world.looks, "REMEMBERED", 3)
    looks.remember(images[1:], [Verdict("", [0.0], "", False)] * 5)
    assert [verdict is None for verdict in looks.of(images)] == [True] * 3 + [False] * 3
    looks.remember(images[5:], [None])
    assert looks.of(images[5:]) == [None], "made again, and not looked at"


def test_broken_hand_over_blocks(world):
    made = world.sample(world.model, steps=2)
    _, report = gated(world, made, "no looks")
    assert report.blocked == [True, True] and "could not be judged" in report.reasons[0]


# As a user wires it


def graph(look_ahead: str, draft: str, late: str, prompt="a red star", **more) -> dict:
    judge = {
        "latent_clip": ["world", 3],
        "concepts": "shapes-world-stars",
        "typed": "",
        "categories": "",
        "fit": "tiles",
    }

    def encode(text: str) -> dict:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": text}}

    return {
        "world": {"class_type": "LatentCLIPShapesWorld", "inputs": {}},
        "text": encode(prompt), "nothing": encode(""), "instead": encode("a green circle"),
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "guide": {"class_type": "LatentCLIPSafetyGuidance", "inputs": {
            "model": ["world", 0], **judge, "thresholds": late, "strength": 1.0, "start": 0.2, "end": 1.0, "every_n": 1, "momentum": 0.0,
            "instead": ["instead", 0], "look_ahead": look_ahead, "draft_steps": 4, "draft_thresholds": draft,
        } | more},
        "sample": {"class_type": "KSampler", "inputs": {
            "model": ["guide", 0], "positive": ["text", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0], "seed": 7,
            "steps": 8, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        }},
        "gate": {"class_type": "LatentCLIPSafetyGate", "inputs": {
            "latent": ["sample", 0], **judge, "thresholds": "1000", "on_block": "grey", "views": 0, "audit_log": False, "log_prompt": False,
            "looks": ["guide", 1],
        }},
        "plain": {"class_type": "KSampler", "inputs": {
            "model": ["world", 0], "positive": ["text", 0], "negative": ["nothing", 0], "latent_image": ["empty", 0], "seed": 7,
            "steps": 8, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        }},
        **{
            f"dump_{name}": {"class_type": "TestDump", "inputs": {"value": value, "name": f"looks_{name}"}}
            for name, value in (("made", ["sample", 0]), ("plain", ["plain", 0]), ("report", ["gate", 3]))
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("look_ahead", "draft", "late", "blocked", "redirected"),
    [
        ("draft only", "1000", "-1000", False, False),
        ("draft only", "-1000", "1000", False, True),
        ("draft, report late", "1000", "-1000", True, False),
        ("draft, redirect late", "1000", "-1000", True, True),
        ("off", "1000", "1000", True, False),
    ],
)
def test_nodes_over_http(comfy, look_ahead, draft, late, blocked, redirected):
    comfy.run(graph(look_ahead, draft, late))
    report = json.loads(comfy.dump("looks_report")[0])
    assert report["blocked"] == [blocked] * 2, report["reasons"]
    made, plain = (comfy.dump(f"looks_{name}")[0]["samples"] for name in ("made", "plain"))
    assert torch.equal(torch.as_tensor(made), torch.as_tensor(plain)) != redirected
    if look_ahead == "off":
        assert report["looks"] == [None, None] and "look_ahead is off" in report["reasons"][0]
    else:
        assert [look["redirected"] for look in report["looks"]] == [redirected] * 2


def test_sets_own_thresholds_are_those_of_drafts(comfy):
    """Empty `draft_thresholds` are the calibrated ones of the set, whatever `thresholds` of the watch are."""
    comfy.run(graph("draft only", "", "1000"))
    report = json.loads(comfy.dump("looks_report")[0])
    assert any("threshold 0.44" in look["draft"] for look in report["looks"])


def test_look_ahead_without_another_prompt_says_what_to_do(comfy):
    wrong = graph("draft only", "", "")
    del wrong["guide"]["inputs"]["instead"]
    result = comfy.run(wrong, expect_failure=True)
    assert "Connect a CLIP Text Encode" in str(result.error)


# The second judge, as a user sets it


@pytest.fixture
def pixel_clip(comfy):
    """Path of a tiny pixel CLIP where the node looks for one."""
    folder = comfy.models_dir / "open_clip"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "second_judge.safetensors"
    save_pixel_clip(path)
    return path


def by_two(draft: str, pixels: str, **more) -> dict:
    """The graph with a second judge of drafts."""
    second = {"vae": ["world", 2], "pixel_clip": "second_judge.safetensors", "pixel_thresholds": pixels}
    return graph("draft only", draft, "1000", **second | more)


@pytest.mark.parametrize(
    ("draft", "pixels", "reasons"),
    [
        ("1000", "-1000", ["star, in pixels: log-odds"]),
        ("1000", "star: -1000", ["star, in pixels: log-odds"]),
        ("-1000", "1000", ["star: log-odds"]),
        ("-1000", "-1000", ["star: log-odds", "star, in pixels: log-odds"]),
        ("1000", "1000", []),
    ],
)
def test_either_of_two_judges_may_suspect_over_http(comfy, pixel_clip, draft, pixels, reasons):
    comfy.run(by_two(draft, pixels))
    report = json.loads(comfy.dump("looks_report")[0])
    for look in report["looks"]:
        assert len(look["scores"]) == 2 and look["redirected"] == bool(reasons)
        assert [reason in look["draft"] for reason in reasons] == [True] * len(reasons)
        assert look["draft"].count("log-odds") == len(reasons)
    made, plain = (torch.as_tensor(comfy.dump(f"looks_{name}")[0]["samples"]) for name in ("made", "plain"))
    assert torch.equal(made, plain) != bool(reasons)


def test_without_a_second_judge_its_vae_and_thresholds_mean_nothing(comfy, pixel_clip):
    comfy.run(by_two("1000", "-1000", pixel_clip=NO_SECOND))
    looks = json.loads(comfy.dump("looks_report")[0])["looks"]
    assert all(len(look["scores"]) == 1 and not look["redirected"] for look in looks)


def test_another_file_under_the_same_name_judges_anew(comfy, pixel_clip):
    seen = []
    for seed in (0, 1):
        save_pixel_clip(pixel_clip, seed)
        os.utime(pixel_clip, (1e9 + seed, 1e9 + seed))
        comfy.run(by_two("1000", "1000"))
        seen.append([look["scores"] for look in json.loads(comfy.dump("looks_report")[0])["looks"]])
    (first, second) = seen
    assert [scores[0] for scores in first] == [scores[0] for scores in second], "of the same Latent-CLIP"
    assert all(one[1] != two[1] for one, two in zip(first, second))


@pytest.mark.parametrize(
    ("missing", "message"), [("vae", "no VAE. Connect the VAE of the model to `vae`"), ("pixel_thresholds", "type thresholds")]
)
def test_second_judge_that_lacks_something_says_what_to_do(comfy, pixel_clip, missing, message):
    wrong = by_two("1000", "1000")
    del wrong["guide"]["inputs"][missing]
    assert message in str(comfy.run(wrong, expect_failure=True).error)
