"""The harness itself: what other host tests rely on is shown to work, and to fail when it should."""

import socket

import pytest
import torch
from PIL import Image

from latent_clip.tests.host_server import text_to_image
from latent_clip.tools import comfy_server
from latent_clip.tools.comfy_server import ComfyError, ComfyServer, make_base


def test_stock_text_to_image_runs_on_the_tiny_sdxl(comfy):
    result = comfy.run(text_to_image(batch_size=2))
    images = result.outputs["save"]["images"]
    assert len(images) == 2
    with Image.open(comfy.output_dir / images[0]["filename"]) as picture:
        assert picture.size == (64, 64)
        extrema = picture.convert("L").getextrema()
    assert extrema[0] < extrema[1], "a flat picture means that the tiny weights are broken"


def test_sampling_is_repeatable_and_depends_on_the_seed(comfy):
    samples = []
    for seed in (1, 1, 2):
        prompt = text_to_image(seed=seed)
        del prompt["dec"], prompt["save"]
        prompt["dump"] = {"class_type": "TestDump", "inputs": {"value": ["ks", 0], "name": f"seed{len(samples)}"}}
        comfy.run(prompt)
        samples.append(comfy.dump(f"seed{len(samples)}")[0]["samples"])
    assert torch.isfinite(samples[0]).all()
    assert torch.equal(samples[0], samples[1])
    assert not torch.allclose(samples[0], samples[2], atol=0.1)


def test_dump_shows_the_whole_latent(comfy):
    size = {"batch_size": 3, "channels": 4, "height": 8, "width": 12}
    inputs = size | {"seed": 5, "std": 7.0, "with_mask": True, "with_batch_index": True}
    comfy.run({
        "1": {"class_type": "TestMakeLatent", "inputs": inputs},
        "2": {"class_type": "TestDump", "inputs": {"value": ["1", 0], "name": "whole"}},
    })  # fmt: skip
    (latent,) = comfy.dump("whole")
    assert latent["samples"].shape == (3, 4, 8, 12)
    assert latent["noise_mask"].shape == (3, 1, 64, 96)
    assert latent["batch_index"] == [100, 101, 102]


def test_latent_written_by_the_test_arrives_unchanged(comfy):
    for value in (1.0, 2.0):  # the second one must not come from the executor's cache
        written = {"samples": torch.full((1, 4, 8, 8), value), "batch_index": [7]}
        comfy.save_input("mine", written)
        comfy.run({
            "1": {"class_type": "TestLoadLatent", "inputs": {"name": "mine"}},
            "2": {"class_type": "TestDump", "inputs": {"value": ["1", 0], "name": "back"}},
        })  # fmt: skip
        (latent,) = comfy.dump("back")
        assert torch.equal(latent["samples"], written["samples"])
        assert latent["batch_index"] == [7]


def test_refused_prompt_names_the_node_and_the_input(comfy):
    prompt = text_to_image(steps=0)
    with pytest.raises(ComfyError, match=r"KSampler #ks: .*steps"):
        comfy.run(prompt)
    result = comfy.run(prompt, expect_failure=True)
    assert not result.ok
    assert "ks" in result.node_errors


def test_failing_node_gives_its_exception_and_the_queue_goes_on(comfy):
    comfy.save_input("wrong", {"samples": torch.ones(1, 3, 8, 8)})
    prompt = text_to_image() | {"empty": {"class_type": "TestLoadLatent", "inputs": {"name": "wrong"}}}
    result = comfy.run(prompt, expect_failure=True)
    assert result.exception["node_type"] == "KSampler"
    assert result.exception["exception_type"] in result.error
    assert comfy.run(text_to_image(seed=3)).ok


def test_expecting_a_failure_that_does_not_happen_is_an_error(comfy):
    with pytest.raises(ComfyError, match="expected the prompt to fail"):
        comfy.run(text_to_image(seed=4), expect_failure=True)


def test_shipped_checkpoint_name_can_stand_for_the_tiny_one(comfy):
    comfy.tiny_sdxl_as("sd_xl_turbo_1.0_fp16.safetensors")
    prompt = text_to_image(seed=5)
    prompt["ckpt"]["inputs"]["ckpt_name"] = "sd_xl_turbo_1.0_fp16.safetensors"
    assert comfy.run(prompt).ok


def test_busy_port_is_not_announced_as_ours(comfy, tmp_path):
    with pytest.raises(ComfyError, match=f"Port {comfy.port} is taken: another program, perhaps another ComfyUI"):
        ComfyServer(comfy.tree, make_base(tmp_path), port=comfy.port).__enter__()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(ComfyError, match="is taken"):
            ComfyServer(comfy.tree, make_base(tmp_path), port=stranger.getsockname()[1]).__enter__()
    assert comfy_server.is_free(comfy_server.free_port())


def test_server_that_takes_the_port_a_moment_later_is_not_announced_as_ours(comfy, tmp_path, monkeypatch):
    """The condition taken as true: the port was free when it was looked at."""
    monkeypatch.setattr(comfy_server, "is_free", lambda port: True)
    server = ComfyServer(comfy.tree, make_base(tmp_path), port=comfy.port)
    with pytest.raises(ComfyError, match=f"{comfy.url} is answered by another server than ours"):
        server.__enter__()
    assert server.process.poll() is not None, "ours must not stay behind"
