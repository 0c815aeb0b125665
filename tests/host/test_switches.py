"""What makes our nodes run: a lazy switch leaves its branch alone, and a prompt that ends in one of them runs it."""

import pytest

from latent_clip.tests.checkpoints import save_latent_clip

ENDS = ("LatentCLIPSelect", "LatentCLIPClassify", "LatentCLIPSafetyGate")


@pytest.fixture(scope="module", autouse=True)
def checkpoint(comfy):
    folder = comfy.models_dir / "latent_clip"
    folder.mkdir(parents=True, exist_ok=True)
    save_latent_clip(folder / "tiny.safetensors")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(comfy, name: str, seed: int = 0) -> dict:
    """A counted latent, and behind it each kind of our nodes: select, classify and gate."""
    (comfy.output_dir / f"{name}.runs").unlink(missing_ok=True)
    made = node(
        "TestMakeLatent", batch_size=3, channels=4, height=8, width=8, seed=seed, std=7.0, with_mask=False,
        with_batch_index=False,
    )  # fmt: skip
    return {
        "made": made,
        "counted": node("TestCountRuns", latent=["made", 0], name=name),
        "clip": node("LatentCLIPLoader", file="tiny.safetensors", dtype="auto"),
        "reward": node("LatentCLIPTextReward", latent_clip=["clip", 0], text="a red circle", weight=1.0, fit="tiles"),
        "LatentCLIPSelect": node(
            "LatentCLIPSelect", latent=["counted", 0], reward=["reward", 0], keep=1, use_threshold=False, threshold=0.0
        ),
        "LatentCLIPClassify": node(
            "LatentCLIPClassify", latent=["counted", 0], latent_clip=["clip", 0], labels="a\nb", templates="{}",
            route="", fit="tiles",
        ),
        "LatentCLIPSafetyGate": node(
            "LatentCLIPSafetyGate", latent=["counted", 0], latent_clip=["clip", 0], concepts="typed below",
            typed="star: a star", categories="", thresholds="1000", on_block="grey", views=0, fit="tiles",
            audit_log=False, log_prompt=False,
        ),
    }  # fmt: skip


def keep(prompt: dict, kind: str) -> dict:
    """The graph with one of the three kinds only."""
    return {key: part for key, part in prompt.items() if key == kind or key not in ENDS}


def runs(comfy, name: str) -> int:
    path = comfy.output_dir / f"{name}.runs"
    return int(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize("kind", ENDS)
def test_branch_that_is_off_is_not_run(comfy, kind):
    """With the host's own If/Else Switch."""
    name = f"off_{kind}"
    output = 3 if kind == "LatentCLIPClassify" else 0
    prompt = keep(graph(comfy, name), kind) | {
        "other": node(
            "TestMakeLatent", batch_size=1, channels=4, height=8, width=8, seed=5, std=7.0, with_mask=False,
            with_batch_index=False,
        ),
        "switch": node("ComfySwitchNode", switch=False, on_false=["other", 0], on_true=[kind, output]),
        "dump": node("TestDump", value=["switch", 0], name=name),
    }  # fmt: skip
    result = comfy.run(prompt)
    assert runs(comfy, name) == 0 and kind not in result.outputs
    assert len(comfy.dump(name)[0]["samples"]) == 1
    prompt["switch"]["inputs"]["switch"] = True
    result = comfy.run(prompt)
    assert runs(comfy, name) == 1 and len(result.outputs[kind]["latent_clip"]) == 1


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("beside", [False, True])
def test_prompt_that_ends_in_one_runs_it(comfy, kind, beside):
    """As in 0.1: alone, and beside an output node that does not need it. Also when it is queued again."""
    name = f"end_{kind}_{beside}"
    prompt = keep(graph(comfy, name, seed=1 + beside), kind)
    if beside:
        prompt["score"] = node("LatentCLIPScore", latent=["made", 0], reward=["reward", 0])
    else:
        prompt.pop("reward" if kind != "LatentCLIPSelect" else "none", None)
    first = comfy.run(prompt)
    assert len(first.outputs[kind]["latent_clip"]) == 1
    assert runs(comfy, name) == 1
    again = comfy.run(prompt)
    assert runs(comfy, name) == 1, "the second time it comes from the cache"
    if comfy.version >= (0, 20):
        assert again.outputs[kind] == first.outputs[kind]


def test_score_is_an_end(comfy):
    prompt = {key: part for key, part in graph(comfy, "score").items() if key not in ENDS}
    prompt["score"] = node("LatentCLIPScore", latent=["counted", 0], reward=["reward", 0])
    for _ in range(2):
        result = comfy.run(prompt)
        assert set(result.outputs) == {"score"} and len(result.outputs["score"]["latent_clip"]) == 1


def test_cached_nodes_between_others_are_in_the_history_again(comfy):
    prompt = graph(comfy, "between", seed=4)
    for kind, output in zip(ENDS, (0, 2, 0)):
        prompt[f"dump_{kind}"] = node("TestDump", value=[kind, output], name=f"between_{kind}")
    first = comfy.run(prompt)
    again = comfy.run(prompt)
    assert runs(comfy, "between") == 1
    for kind in ENDS:
        assert len(first.outputs[kind]["latent_clip"]) == 1
        if comfy.version >= (0, 20):
            assert again.outputs[kind] == first.outputs[kind]


def test_chosen_nodes_only(comfy):
    """A run of chosen output nodes stays one."""
    prompt = keep(graph(comfy, "chosen", seed=6), "LatentCLIPSelect")
    prompt["dump"] = node("TestDump", value=["made", 0], name="chosen")
    body = {"prompt": prompt, "client_id": "", "partial_execution_targets": ["dump"]}
    status, answer = comfy.post("/prompt", body)
    assert status == 200
    assert set(comfy.wait(answer["prompt_id"]).outputs) == {"dump"}
    assert runs(comfy, "chosen") == 0


@pytest.mark.parametrize("output", [0, 2, 3])
def test_what_follows_an_empty_selection_is_not_run(comfy, output):
    """`best`, `indices` and `scores`; in 0.1 the empty lists crashed the host with an IndexError."""
    name = f"empty_{output}"
    prompt = keep(graph(comfy, name), "LatentCLIPSelect")
    prompt["LatentCLIPSelect"]["inputs"] |= {"use_threshold": True, "threshold": 500.0}
    prompt["next"] = node("PreviewAny", source=["LatentCLIPSelect", output])
    prompt["rest"] = node("TestDump", value=["LatentCLIPSelect", 1], name=name)
    result = comfy.run(prompt)
    assert "next" not in result.outputs
    assert result.outputs["LatentCLIPSelect"]["latent_clip"][0]["kept"] == []
    assert len(comfy.dump(name)[0]["samples"]) == 3


def test_one_empty_selection_of_a_list_leaves_the_others_in_step(comfy):
    """Three latents one by one against a threshold that one of them misses: what follows runs twice."""
    prompt = keep(graph(comfy, "list"), "LatentCLIPSelect")
    prompt["score"] = node("LatentCLIPScore", latent=["counted", 0], reward=["reward", 0])
    scores = comfy.run(prompt).outputs["score"]["latent_clip"][0]["scores"]
    prompt["list"] = node("TestLatentList", latent=["counted", 0])
    threshold = (sorted(scores)[0] + sorted(scores)[1]) / 2
    prompt["LatentCLIPSelect"]["inputs"] |= {"latent": ["list", 0], "use_threshold": True, "threshold": threshold}
    prompt["next"] = node("PreviewAny", source=["LatentCLIPSelect", 3])
    result = comfy.run(prompt)
    reports = result.outputs["LatentCLIPSelect"]["latent_clip"]
    assert [report["kept"] for report in reports] == [[0] if score > threshold else [] for score in scores]
    assert [float(text) for text in result.outputs["next"]["text"]] == pytest.approx(
        [score for score in scores if score > threshold], abs=1e-6
    )
