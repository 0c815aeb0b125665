"""latent-clip convert: a small file with the same numbers, or an error and no file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from latent_clip import commands, models
from latent_clip.models.checkpoint import read_checkpoint
from latent_clip.models.latent_clip import identity, load_latent_clip
from latent_clip.tests.original_layout import MINUTE, save_original

ROOT = Path(__file__).resolve().parent.parent.parent


def main(arguments: list[str]) -> int:
    return commands.main(["convert", *arguments])


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("original") / "epoch_34.pt"
    save_original(path, MINUTE, vae_widths=(8, 8))
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_the_source_without_the_rest(original, tmp_path, dtype, capsys):
    target = tmp_path / "clip.safetensors"
    assert main([str(original), str(target), "--dtype", dtype]) == 0
    source, result = read_checkpoint(original), read_checkpoint(target)
    assert (result.config, result.space, result.dropped) == (source.config, source.space, 0)
    for key, tensor in source.state_dict.items():
        expected = tensor if key == "logit_scale" else tensor.to(DTYPES[dtype])
        assert result.state_dict[key].dtype == expected.dtype
        assert torch.equal(result.state_dict[key], expected)
    assert target.stat().st_size < original.stat().st_size / 3
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    output = capsys.readouterr().out
    assert f"kept      {len(source.state_dict)} tensors" in output
    assert f"left out  {source.dropped} tensors" in output
    assert re.search(r"largest change of an image-text cosine: \d\.\de[+-]\d\d\n", output)


def identity_of(path: Path) -> str:
    checkpoint = read_checkpoint(path)
    return identity(load_latent_clip(checkpoint.config, checkpoint.state_dict))


def test_formats_and_fp16_leave_the_identity_and_other_weights_do_not(original, tmp_path):
    files = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in DTYPES}
    for dtype, target in files.items():
        main([str(original), str(target), "--dtype", dtype])
    known = identity_of(original)
    assert len(known) == 16 and identity_of(files["fp32"]) == identity_of(files["fp16"]) == known
    assert identity_of(files["bf16"]) != known, "its log-odds differ too much for the same thresholds"
    again = tmp_path / "again.safetensors"
    main([str(files["fp16"]), str(again), "--dtype", "fp32"])
    assert identity_of(again) == known


@pytest.mark.parametrize("key", ["visual.conv1.weight", "text.ln_final.bias", "logit_scale", "visual.transformer.resblocks.0.mlp.c_fc.weight"])  # fmt: skip
def test_training_any_weight_makes_another_identity(original, key):
    checkpoint = read_checkpoint(original)
    known = identity(load_latent_clip(checkpoint.config, checkpoint.state_dict))
    trained = checkpoint.state_dict | {key: checkpoint.state_dict[key] + 0.01}
    assert identity(load_latent_clip(checkpoint.config, trained)) != known


def test_metadata_says_where_it_comes_from(original, tmp_path):
    main([str(original), str(tmp_path / "clip.safetensors")])
    with safe_open(tmp_path / "clip.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "latent-clip"
    assert metadata["source_file"] == "epoch_34.pt"
    assert metadata["latent_space"] == "sdxl"


def test_it_runs_as_a_script_and_converts_its_own_results(original, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    command = [sys.executable, str(ROOT), "convert", str(original), str(first)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert main([str(first), str(second)]) == 0
    source, result = read_checkpoint(first).state_dict, read_checkpoint(second).state_dict
    assert all(torch.equal(result[key], tensor) for key, tensor in source.items())


def fails(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


def test_target_is_only_replaced_by_force(original, tmp_path, capsys):
    target = tmp_path / "clip.safetensors"
    target.write_text("precious")
    assert "is there already, and is left as it is" in fails(capsys, original, target)
    assert target.read_text() == "precious"
    assert main([str(original), str(target), "--force"]) == 0
    assert read_checkpoint(target).config == MINUTE


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "an empty file"), (b"hello world", "neither a safetensors file nor")],
)
def test_bad_source_leaves_no_file(tmp_path, capsys, content, message):
    source, target = tmp_path / "epoch_34.pt", tmp_path / "clip.safetensors"
    if content is not None:
        source.write_bytes(content)
    assert message in fails(capsys, source, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [("clip.pt", "must end in .safetensors"), ("nowhere/clip.safetensors", "no such folder")],
)
def test_bad_target_is_named(original, tmp_path, capsys, target, message):
    assert message in fails(capsys, original, tmp_path / target)


def test_source_is_never_the_target(original, tmp_path, capsys):
    target = tmp_path / "clip.safetensors"
    main([str(original), str(target)])
    capsys.readouterr()
    assert "the same file" in fails(capsys, target, target, "--force")


def test_weights_that_overflow_in_fp16_are_refused_and_nothing_is_replaced(tmp_path, capsys):
    weights = save_original(tmp_path / "epoch_34.pt", MINUTE, vae_widths=(8, 8))
    weights["visual.latent_vit.proj"] *= 1e6
    torch.save({"state_dict": weights}, tmp_path / "epoch_34.pt")
    target = tmp_path / "clip.safetensors"
    target.write_text("precious")
    message = fails(capsys, tmp_path / "epoch_34.pt", target, "--dtype", "fp16", "--force")
    assert "visual.proj holds NaN or infinite values" in message
    assert target.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"epoch_34.pt", "clip.safetensors"}


def test_result_that_scores_otherwise_is_refused(original, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models.convert, "_cast", lambda key, tensor, dtype: tensor * 1.2 if "proj" in key else tensor)
    assert "its scores change by" in fails(capsys, original, tmp_path / "clip.safetensors")
    assert not list(tmp_path.iterdir())
