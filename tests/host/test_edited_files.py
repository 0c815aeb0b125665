"""Files that are edited while the host runs: the next prompt goes by what they say then, and an untouched file is read once."""

import importlib
import json
import os

import pytest

from latent_clip.tests.checkpoints import save_latent_clip, save_pixel_clip

CONCEPTS = {"concepts": "edited.json", "typed": "", "categories": "", "thresholds": ""}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def write(comfy):
    """write(threshold, name) → the concept file with it."""
    folder = comfy.models_dir / "latent_clip" / "concepts"
    folder.mkdir(parents=True, exist_ok=True)

    def write(threshold: float, name: str = "edited.json"):
        category = {"name": "star", "phrases": ["a red star"], "threshold": threshold}
        content = {"format": 1, "name": "edited", "anchors": ["a red circle"], "categories": [category]}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder / name

    return write


def generation(**more) -> dict:
    """Shapes World, an empty latent, two prompts, and `more`."""
    return {
        "world": node("LatentCLIPShapesWorld"),
        "pos": node("CLIPTextEncode", clip=["world", 1], text="a red star"),
        "instead": node("CLIPTextEncode", clip=["world", 1], text="a green circle"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        **more,
    }


def sampled(model: list) -> dict:
    return node(
        "KSampler", model=model, positive=["pos", 0], negative=["pos", 0], latent_image=["empty", 0], seed=3, steps=4, cfg=1.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip


def test_gate_goes_by_the_file_as_it_is_now(comfy, write):
    gate = node(
        "LatentCLIPSafetyGate", latent=["ks", 0], latent_clip=["world", 3], on_block="grey", views=0, fit="tiles",
        audit_log=False, log_prompt=False, **CONCEPTS,
    )  # fmt: skip
    prompt = generation(ks=sampled(["world", 0]), gate=gate)

    def blocked() -> list[bool]:
        return comfy.run(prompt).outputs["gate"]["latent_clip"][0]["blocked"]

    for threshold, expected in ((1000.0, [False]), (-1000.0, [True]), (1000.0, [False])):
        path = write(threshold)
        assert blocked() == expected
    # the same length and the same time, as archive tools leave them
    before = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("1000.0", "-100.0"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and blocked() == [True]
    path.unlink()
    result = comfy.run(prompt, expect_failure=True)
    assert "edited.json" in result.error


def test_safety_guidance_and_everything_after_it(comfy, write):
    guard = node(
        "LatentCLIPSafetyGuidance", model=["world", 0], latent_clip=["world", 3], strength=1.0, start=0.2, end=1.0, every_n=1,
        momentum=0.0, fit="tiles", instead=["instead", 0], **CONCEPTS,
    )  # fmt: skip
    dump = node("TestDump", value=["ks", 0], name="edited_guided")
    prompt = generation(guard=guard, ks=sampled(["guard", 0]), dump=dump)
    images = []
    for threshold in (1000.0, -1000.0, 1000.0):
        write(threshold)
        assert comfy.run(prompt).ok
        images.append(comfy.dump("edited_guided")[0]["samples"])
    assert images[0].equal(images[2]) and not images[0].allclose(images[1], atol=0.1)


def test_avoid_reward(comfy, write):
    prompt = generation(
        latents=node("TestMakeLatent", batch_size=2, channels=4, height=8, width=8, seed=0, std=7.0, with_mask=False, with_batch_index=False),
        reward=node("LatentCLIPAvoidReward", latent_clip=["world", 3], weight=1.0, fit="tiles", **CONCEPTS),
        score=node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]),
    )  # fmt: skip
    scores = []
    for threshold in (1000.0, -1000.0):
        write(threshold)
        scores.append(comfy.run(prompt).outputs["score"]["latent_clip"][0]["scores"])
    assert max(scores[0]) == 0 and max(scores[1]) < -900


@pytest.mark.parametrize(("folder", "save"), [("latent_clip", save_latent_clip), ("open_clip", save_pixel_clip)])
def test_checkpoint_that_is_replaced_is_loaded_again(comfy, folder, save):
    path = comfy.models_dir / folder / f"edited_{folder}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    rewards = {
        "latent_clip": {
            "clip": node("LatentCLIPLoader", file=path.name, dtype="fp32"),
            "reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a star", weight=1.0, fit="tiles"),
        },
        "open_clip": {
            "ckpt": node("CheckpointLoaderSimple", ckpt_name="tiny_sdxl.safetensors"),
            "reward": node(
                "LatentCLIPPixelReward", vae=["ckpt", 2], file=path.name, text="a star", weight=1.0, dtype="fp32", quick_gelu=False
            ),
        },
    }  # fmt: skip
    prompt = {
        **rewards[folder],
        "latents": node("TestMakeLatent", batch_size=2, channels=4, height=8, width=8, seed=0, std=1.0, with_mask=False, with_batch_index=False),
        "score": node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]),
    }  # fmt: skip

    def scores() -> list[float]:
        result = comfy.run(prompt)
        assert result.ok, result.error
        return result.outputs["score"]["latent_clip"][0]["scores"]

    save(path, seed=0)
    first = scores()
    assert scores() == first
    replacement = path.with_name("replacement.tmp")
    save(replacement, seed=1)
    if folder == "open_clip":
        replacement.with_suffix(".json").replace(path.with_suffix(".json"))
    os.utime(replacement, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert replacement.stat().st_size == path.stat().st_size
    replacement.replace(path)  # of the same size and time
    assert scores() != first
    path.with_suffix(".json").write_text("{}", encoding="utf-8")  # the architecture beside it is read too
    result = comfy.run(prompt, expect_failure=True)
    assert path.name in result.error


def test_checkpoint_that_is_overwritten_in_place_is_new(comfy):
    """Same size, time and inode: neither its tower nor its text features may be those from before."""
    folder = comfy.models_dir / "latent_clip"
    folder.mkdir(parents=True, exist_ok=True)
    path, other = folder / "in_place.safetensors", folder / "in_place_other.safetensors"
    save_latent_clip(path, seed=0)
    save_latent_clip(other, seed=1)

    def scores(name: str) -> list[float]:
        result = comfy.run({
            "clip": node("LatentCLIPLoader", file=name, dtype="fp32"),
            "reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a star", weight=1.0, fit="tiles"),
            "latents": node("TestMakeLatent", batch_size=2, channels=4, height=8, width=8, seed=0, std=1.0, with_mask=False, with_batch_index=False),
            "score": node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]),
        })  # fmt: skip
        assert result.ok, result.error
        return result.outputs["score"]["latent_clip"][0]["scores"]

    first, before = scores(path.name), path.stat()
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert [after.st_size, after.st_mtime_ns, after.st_ino] == [before.st_size, before.st_mtime_ns, before.st_ino]
    assert scores(path.name) == scores(other.name) != first


def test_untouched_file_is_read_once(comfy, write):
    save_latent_clip(comfy.models_dir / "latent_clip" / "untouched.safetensors")
    prompt = {
        "clip": node("LatentCLIPLoader", file="untouched.safetensors", dtype="fp32"),
        "latents": node("TestMakeLatent", batch_size=1, channels=4, height=64, width=64, seed=0, std=1.0, with_mask=False, with_batch_index=False),
        "reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a star", weight=1.0, fit="tiles"),
        "score": node("LatentCLIPScore", latent=["latents", 0], reward=["reward", 0]),
    }  # fmt: skip

    def cached() -> list[str]:
        messages = comfy.run(prompt).history["status"]["messages"]
        return next(data["nodes"] for kind, data in messages if kind == "execution_cached")

    cached()
    assert {"clip", "reward"} <= set(cached())
    prompt["reward"]["inputs"]["text"] = "a circle"
    assert "clip" in cached()


def test_new_file_is_offered_at_once(comfy, write):
    save_latent_clip(comfy.models_dir / "latent_clip" / "new.safetensors")
    write(0.0, "new.json")
    write(0.0, "._new.json")  # what macOS leaves beside a file
    info = comfy.object_info()

    def options(node: str, name: str) -> list[str]:
        kind, more = info[node]["input"]["required"][name]
        return more["options"] if kind == "COMBO" else kind

    assert "new.safetensors" in options("LatentCLIPLoader", "file")
    for name in ("LatentCLIPSafetyGate", "LatentCLIPSafetyGuidance", "LatentCLIPAvoidReward"):
        assert "new.json" in options(name, "concepts") and "._new.json" not in options(name, "concepts")


def test_choice_that_is_wired_stands_for_every_file(host_env, tmp_path, monkeypatch):
    """The host asks for the fingerprint before other nodes have run: then it is unknown which file will be read."""
    concepts = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.concepts")
    folder = host_env.base / "models" / "latent_clip" / "concepts"
    folder.mkdir(parents=True, exist_ok=True)
    seen = set()
    for content in ("1", "2"):
        (folder / "wired.json").write_text(content)
        seen.add(concepts.concepts_fingerprint(None))
    assert len(seen) == 2
    assert concepts.concepts_fingerprint("i2p") == concepts.concepts_fingerprint("i2p")
    (folder / "wired.json").unlink()
