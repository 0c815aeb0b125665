"""The first nodes, as a user wires them: load, reward, score, select, classify, through POST /prompt."""

import json
import math
import re

import open_clip
import pytest
import torch
from torchvision.transforms import Normalize

from latent_clip.tests.checkpoints import save_latent_clip, save_pixel_clip, tokenize
from latent_clip.tests.host_server import TINY_SDXL


@pytest.fixture(scope="module", autouse=True)
def checkpoints(comfy):
    """Tiny networks of both kinds where the loaders look for them, and one file that is neither. Yields the networks."""
    for folder in ("latent_clip", "open_clip"):
        (comfy.models_dir / folder).mkdir(parents=True, exist_ok=True)
    latent_clip = save_latent_clip(comfy.models_dir / "latent_clip" / "tiny.safetensors")
    pixel_clip = save_pixel_clip(comfy.models_dir / "open_clip" / "tiny_pixels.safetensors")
    save_pixel_clip(comfy.models_dir / "latent_clip" / "wrong_kind.safetensors")
    (comfy.models_dir / "latent_clip" / "text.safetensors").write_text("not a checkpoint")
    return {"latent": latent_clip, "pixel": pixel_clip}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def latents(batch_size=4, channels=4, height=64, width=64, **more) -> dict:
    inputs = {"batch_size": batch_size, "channels": channels, "height": height, "width": width, "seed": 0, "std": 7.0}
    return node("TestMakeLatent", **{**inputs, "with_mask": False, "with_batch_index": False, **more})


def graph(**nodes) -> dict:
    """Latents, a Latent-CLIP and a text reward, plus `nodes`; every wire in `dump_*` is written out."""
    base = {
        "latents": latents(),
        "clip": node("LatentCLIPLoader", file="tiny.safetensors", dtype="auto"),
        "reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a red circle", weight=1.0, fit="tiles"),
    }
    return base | nodes


def run(comfy, prompt: dict, **wires) -> tuple:
    """Run a prompt and return its Result and what was on each named wire: name=(node, output)."""
    dumps = {f"dump_{name}": node("TestDump", value=list(wire), name=f"nodes_{name}") for name, wire in wires.items()}
    for name in wires:
        (comfy.output_dir / f"nodes_{name}.pt").unlink(missing_ok=True)
    result = comfy.run(prompt | dumps)
    return result, {
        name: comfy.dump(f"nodes_{name}") for name in wires if (comfy.output_dir / f"nodes_{name}.pt").exists()
    }


def test_score_gives_the_cosine_of_the_towers(comfy, checkpoints):
    prompt = graph(score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]))
    result, wires = run(comfy, prompt, out=("score", 0), scores=("score", 1), report=("score", 2), given=("latents", 0))
    raw_latents = wires["given"][0]["samples"]
    with torch.no_grad():
        image = checkpoints["latent"].encode_image(raw_latents, normalize=True)
        text = checkpoints["latent"].encode_text(tokenize(["a red circle"]), normalize=True)
    assert torch.allclose(torch.tensor(wires["scores"]), (image @ text.T)[:, 0], atol=2e-6)
    assert torch.equal(wires["out"][0]["samples"], raw_latents)
    report = json.loads(wires["report"][0])
    assert report["terms"][0]["name"] == "match: a red circle"
    assert report["scores"] == pytest.approx(wires["scores"], abs=1e-6)
    ui = result.outputs["score"]["latent_clip"][0]
    assert ui["kind"] == "scores" and len(ui["thumbnails"]) == 4
    assert all(url.startswith("data:image/jpeg;base64,") for url in ui["thumbnails"])


def test_text_to_avoid_is_subtracted(comfy):
    with_avoid = node(
        "LatentCLIPTextReward",
        latent_clip=["clip", 0],
        text="a red circle",
        text_to_avoid="a blue star",
        weight=1.0,
        fit="tiles",
    )
    only_avoid = node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a blue star", weight=1.0, fit="tiles")
    prompt = graph(r2=with_avoid, r3=only_avoid)
    for i, reward in enumerate(("reward", "r2", "r3")):
        prompt[f"s{i}"] = node("LatentCLIPScore", latent=["latents", 0], reward=[reward, 0])
    _, wires = run(comfy, prompt, match=("s0", 1), both=("s1", 1), avoid=("s2", 1))
    assert wires["both"] == pytest.approx([m - a for m, a in zip(wires["match"], wires["avoid"])], abs=2e-6)


def test_combine_weighs_and_names_its_terms(comfy):
    prompt = graph(
        again=node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a red circle", weight=-2.0, fit="tiles"),
        reference=latents(batch_size=2, seed=9),
        like=node(
            "LatentCLIPLatentReward", latent_clip=["clip", 0], reference=["reference", 0], weight=0.5, fit="tiles"
        ),
        sum=node(
            "LatentCLIPCombineRewards",
            **{"rewards.reward_0": ["reward", 0], "rewards.reward_1": ["again", 0], "rewards.reward_2": ["like", 0]},
        ),
        score=node("LatentCLIPScore", latent=["latents", 0], reward=["sum", 0]),
    )
    _, wires = run(comfy, prompt, scores=("score", 1), report=("score", 2))
    terms = json.loads(wires["report"][0])["terms"]
    assert [term["name"] for term in terms] == ["match: a red circle", "match: a red circle (2)", "match: latent"]
    assert [term["weight"] for term in terms] == [1.0, -2.0, 0.5]
    expected = [sum(term["weight"] * term["values"][i] for term in terms) for i in range(4)]
    assert wires["scores"] == pytest.approx(expected, abs=1e-5)


def test_more_rewards_than_combine_has_slots_for(comfy):
    """The host hands over what the schema does not name; as sums of sums there is no limit."""
    texts = {
        f"t{i}": node("LatentCLIPTextReward", latent_clip=["clip", 0], text=f"thing {i}", weight=1.0, fit="tiles")
        for i in range(60)
    }

    def total(*names: str) -> dict:
        return node("LatentCLIPCombineRewards", **{f"rewards.reward_{i}": [name, 0] for i, name in enumerate(names)})

    prompt = graph(**texts, score=node("LatentCLIPScore", latent=["latents", 0], reward=["sum", 0]))
    for count in (51, 60):
        error = comfy.run({**prompt, "sum": total(*list(texts)[:count])}, expect_failure=True).error
        assert f"Got {count} rewards" in error and "at most 50" in error and "another Combine Rewards" in error
    halves = {"one": total(*list(texts)[:30]), "two": total(*list(texts)[30:]), "sum": total("one", "two")}
    _, wires = run(comfy, {**prompt, **halves}, report=("score", 2))
    assert len(json.loads(wires["report"][0])["terms"]) == 60


def test_latent_matches_itself_best(comfy):
    prompt = graph(
        like=node("LatentCLIPLatentReward", latent_clip=["clip", 0], reference=["latents", 0], weight=1.0, fit="tiles"),
        score=node("LatentCLIPScore", latent=["latents", 0], reward=["like", 0]),
    )
    prompt["latents"] = latents(batch_size=1)
    _, wires = run(comfy, prompt, scores=("score", 1))
    assert wires["scores"] == pytest.approx([1.0], abs=1e-5)


def test_select_with_variety_keeps_others_by_the_same_scores(comfy):
    def kept(**variety) -> tuple[list, list]:
        prompt = graph(
            select=node("LatentCLIPSelect", latent=["latents", 0], reward=["reward", 0], keep=3, use_threshold=False, threshold=0.0, **variety)
        )  # fmt: skip
        prompt["latents"] = latents(batch_size=12)
        result, wires = run(comfy, prompt, indices=("select", 2))
        return wires["indices"], result.outputs["select"]["latent_clip"][0]["scores"]

    (best, scores), (same, _), (group, again) = kept(), kept(variety=0.0), kept(variety=5.0)
    assert best == same == sorted(range(12), key=lambda i: -scores[i])[:3]
    assert group != best and again == pytest.approx(scores, abs=1e-5)
    assert group == sorted(group, key=lambda i: -scores[i])


def test_select_keeps_the_best_with_its_mask_and_index(comfy):
    prompt = graph(
        score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]),
        select=node(
            "LatentCLIPSelect", latent=["latents", 0], reward=["reward", 0], keep=2, use_threshold=False, threshold=0.0
        ),
    )
    prompt["latents"] = latents(batch_size=5, with_mask=True, with_batch_index=True)
    result, wires = run(
        comfy,
        prompt,
        given=("latents", 0),
        scores=("score", 1),
        best=("select", 0),
        rest=("select", 1),
        indices=("select", 2),
        kept=("select", 3),
    )
    order = sorted(range(5), key=lambda i: -wires["scores"][i])
    given, best, rest = wires["given"][0], wires["best"][0], wires["rest"][0]
    assert wires["indices"] == order[:2] == result.outputs["select"]["latent_clip"][0]["kept"]
    assert wires["kept"] == pytest.approx([wires["scores"][i] for i in order[:2]])
    for part, indices in ((best, order[:2]), (rest, order[2:])):
        assert torch.equal(part["samples"], given["samples"][indices])
        assert torch.equal(part["noise_mask"], given["noise_mask"][indices])
        assert part["batch_index"] == [100 + i for i in indices]


def test_output_without_items_stops_only_what_follows(comfy):
    prompt = graph(
        select=node(
            "LatentCLIPSelect", latent=["latents", 0], reward=["reward", 0], keep=4, use_threshold=True, threshold=2.0
        )
    )
    result, wires = run(comfy, prompt, best=("select", 0), rest=("select", 1))
    assert result.ok and "best" not in wires
    assert len(wires["rest"][0]["samples"]) == 4


def test_classify_gives_probabilities_and_routes(comfy):
    labels = "a red circle\na blue star\na green square"
    prompt = graph(
        classify=node(
            "LatentCLIPClassify",
            latent=["latents", 0],
            latent_clip=["clip", 0],
            labels=labels,
            templates="{}\na picture of {}",
            route="",
            fit="tiles",
        )
    )
    prompt["latents"] = latents(batch_size=8)
    _, wires = run(
        comfy,
        prompt,
        labels=("classify", 0),
        top=("classify", 1),
        report=("classify", 2),
        matched=("classify", 3),
        rest=("classify", 4),
    )
    table = json.loads(wires["report"][0])["probabilities"]
    for row, label, top in zip(table, wires["labels"], wires["top"]):
        assert sum(row.values()) == pytest.approx(1.0, abs=1e-4)
        assert max(row, key=row.get) == label and row[label] == pytest.approx(top, abs=1e-5)
    routed = sum(len(wires[name][0]["samples"]) for name in ("matched", "rest") if name in wires)
    assert routed == 8
    assert (
        len(wires["matched"][0]["samples"]) == wires["labels"].count("a red circle")
        if "matched" in wires
        else "a red circle" not in wires["labels"]
    )


def test_pixel_reward_decodes_and_judges(comfy, checkpoints):
    prompt = graph(
        ckpt=node("CheckpointLoaderSimple", ckpt_name=TINY_SDXL),
        pixels=node(
            "LatentCLIPPixelReward",
            vae=["ckpt", 2],
            file="tiny_pixels.safetensors",
            text="a red circle",
            weight=1.0,
            dtype="auto",
            quick_gelu=False,
        ),
        score=node("LatentCLIPScore", latent=["latents", 0], reward=["pixels", 0]),
        decode=node("VAEDecode", samples=["latents", 0], vae=["ckpt", 2]),
    )
    prompt["latents"] = latents(batch_size=2, height=8, width=8)
    _, wires = run(comfy, prompt, scores=("score", 1), images=("decode", 0))
    pixels = wires["images"][0].movedim(-1, 1)
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
    pixels = Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)(pixels)
    with torch.no_grad():
        image = checkpoints["pixel"].encode_image(pixels, normalize=True)
        text = checkpoints["pixel"].encode_text(tokenize(["a red circle"]), normalize=True)
    assert torch.allclose(torch.tensor(wires["scores"]), (image @ text.T)[:, 0], atol=1e-5)


def test_pixel_and_latent_rewards_add_up(comfy):
    prompt = graph(
        ckpt=node("CheckpointLoaderSimple", ckpt_name=TINY_SDXL),
        pixels=node(
            "LatentCLIPPixelReward",
            vae=["ckpt", 2],
            file="tiny_pixels.safetensors",
            text="a star",
            weight=1.0,
            dtype="auto",
            quick_gelu=False,
        ),
        sum=node("LatentCLIPCombineRewards", **{"rewards.reward_0": ["reward", 0], "rewards.reward_1": ["pixels", 0]}),
        score=node("LatentCLIPScore", latent=["latents", 0], reward=["sum", 0]),
    )
    _, wires = run(comfy, prompt, report=("score", 2))
    assert [term["name"] for term in json.loads(wires["report"][0])["terms"]] == [
        "match: a red circle",
        "pixels match: a star",
    ]


BAD = {
    "channels": ({"latents": latents(channels=16)}, "flux or sd3 space.*sdxl"),
    "pixels": ({"latents": latents(channels=3)}, "pixel space"),
    "empty text": (
        {"reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="  ", weight=1.0, fit="tiles")},
        "empty text",
    ),
    "wrong kind": ({"clip": node("LatentCLIPLoader", file="wrong_kind.safetensors", dtype="auto")}, "reads pixels"),
    "text file": ({"clip": node("LatentCLIPLoader", file="text.safetensors", dtype="auto")}, "neither a safetensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_to_do_and_the_queue_goes_on(comfy, name):
    change, message = BAD[name]
    prompt = graph(score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0])) | change
    result = comfy.run(prompt, expect_failure=True)
    assert result.exception["exception_type"].endswith(("ValueError", "CheckpointError", "LatentSpaceError"))
    assert re.search(message, result.error), result.error
    assert comfy.run(graph(score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]))).ok


@pytest.mark.parametrize(
    "samples", [torch.ones(1, 4, 3, 8, 8), torch.full((2, 4, 64, 64), float("nan")), torch.ones(0, 4, 64, 64)]
)
def test_latents_that_cannot_be_judged(comfy, samples):
    comfy.save_input("bad", {"samples": samples})
    prompt = graph(score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]))
    prompt["latents"] = node("TestLoadLatent", name="bad")
    result = comfy.run(prompt, expect_failure=True)
    assert "expected" in result.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_broken_latent_does_not_hide_the_others(comfy, value):
    """Judged as without it, ranked last, never kept; null in the report and "no number" on the node."""
    samples = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 7
    comfy.save_input("whole", {"samples": samples})
    samples[2, 1, 3, 3] = value
    comfy.save_input("broken", {"samples": samples})
    judged, places = {}, [0, 1, 3, 4, 5, 6, 7]
    for name in ("whole", "broken"):
        prompt = graph(
            latents=node("TestLoadLatent", name=name),
            score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]),
            select=node(
                "LatentCLIPSelect", latent=["latents", 0], reward=["reward", 0], keep=8, use_threshold=False, threshold=0.0
            ),
            classes=node(
                "LatentCLIPClassify", latent=["latents", 0], latent_clip=["clip", 0], labels="a circle\na star",
                templates="{}", route="", fit="tiles",
            ),
        )  # fmt: skip
        wires = {"scores": ("score", 1), "indices": ("select", 2), "kept": ("select", 3), "labels": ("classes", 0)}
        wires |= {"best": ("select", 0), "left": ("select", 1), "probabilities": ("classes", 1)}
        judged[name] = run(comfy, prompt, **wires)
    (_, whole), (result, broken) = judged["whole"], judged["broken"]
    assert [broken["scores"][i] for i in places] == pytest.approx([whole["scores"][i] for i in places], abs=1e-6)
    assert math.isnan(broken["scores"][2])
    assert broken["indices"] == [i for i in whole["indices"] if i != 2]
    assert broken["left"][0]["batch_index"] == [2]
    assert len(broken["best"][0]["samples"]) == 7 and broken["best"][0]["samples"].isfinite().all()
    assert broken["labels"] == [*whole["labels"][:2], "", *whole["labels"][3:]]
    assert math.isnan(broken["probabilities"][2])
    scores, classes = (result.outputs[name]["latent_clip"][0] for name in ("select", "classes"))
    assert scores["scores"][2] is None and scores["terms"][0]["values"][2] is None
    assert classes["labels"][2] == "" and set(classes["probabilities"][2].values()) == {None}
    for ui in (scores, classes):
        assert [bool(picture) for picture in ui["thumbnails"]] == [True, True, False, *[True] * 5]
