"""Every fenced example of the documentation runs, in the order that a reader meets them, or is named here with the reason why not."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from latent_clip.commands import evaluate
from latent_clip.models.checkpoint import read_checkpoint
from latent_clip.tests.original_layout import TINY, save_original
from latent_clip.tests.unit.test_docs import DOCS, ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# shell commands that no test runs as they stand, and what is tested of them
NOT_RUN = {
    "cd ComfyUI/custom_nodes": "the user's own folder",
    "git clone https://github.com/latent-clip/ComfyUI-Latent-CLIP": "the network",
    "pip install -r ComfyUI-Latent-CLIP/requirements.txt": "./dev package installs from it",
    "pip install open_clip_torch==2.24.0": "changes the environment; ./dev package asks pip about it",
    "./dev demo": "below: the command exists; it starts a server and runs for minutes",
    "./dev serve": "below: the command exists; it runs until Ctrl-C",
    "python docs/examples/queue_and_follow.py workflow_api.json --server 127.0.0.1:8188 --set 7.seed=5": "tests/host/test_api_example.py",
}
CONVERT = "python . convert"
EVALUATE = "latent-clip evaluate"  # its options are read below; tests/host/test_evaluation.py runs it


def blocks(language: str, *paths: Path) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [
        text for path in paths for found, text in FENCE.findall(path.read_text(encoding="utf-8")) if found == language
    ]


def commands() -> list[str]:
    """Every line of the blocks without a language, without its comment."""
    lines = [line.split("  #")[0].strip() for block in blocks("", *DOCS) for line in block.splitlines()]
    return [line for line in lines if line]


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A ComfyUI folder in which the README's conversion was run, with its own words, on a small file of the authors' layout."""
    comfyui = tmp_path_factory.mktemp("ComfyUI")
    folder = comfyui / "custom_nodes" / "ComfyUI-Latent-CLIP"
    folder.mkdir(parents=True)
    (folder / "__main__.py").symlink_to(ROOT / "__main__.py")
    (comfyui / "models" / "latent_clip").mkdir(parents=True)
    save_original(folder / "epoch_34.pt", TINY, vae_widths=(8, 8))
    (command,) = [line for line in commands() if line.startswith(CONVERT)]
    done = python(*shlex.split(command)[1:], folder=folder)
    assert done.returncode == 0, done.stderr
    return comfyui / "models" / "latent_clip"


def test_no_example_is_overlooked():
    languages = {language for path in DOCS for language, _ in FENCE.findall(path.read_text(encoding="utf-8"))}
    assert languages <= {"", "python", "mermaid"}
    assert {line for line in commands() if not line.startswith((CONVERT, EVALUATE))} == set(NOT_RUN)
    assert [path.name for path in DOCS if blocks("python", path)] == ["api.md", "library.md"]


@pytest.mark.parametrize("command", [line for line in NOT_RUN if line.startswith("./dev")])
def test_commands_of_dev_exist(command):
    done = python(*shlex.split(command), "--help", folder=ROOT)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith(EVALUATE)])
def test_commands_of_evaluate_have_these_options(command):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert parser.parse_args(shlex.split(command)[2:]).step == shlex.split(command)[2]


def test_requirements_are_where_the_readme_says():
    assert {"open_clip_torch", "einops", "safetensors"} == set((ROOT / "requirements.txt").read_text().split())


def test_readmes_conversion_makes_the_file_that_it_names(converted):
    checkpoint = read_checkpoint(converted / "latent-clip-b-8.safetensors")
    assert str(checkpoint.state_dict["visual.conv1.weight"].dtype) == "torch.float16"


def test_library_examples_run_on_that_file(converted, tmp_path):
    """All but the first, which needs diffusers: tests/host/test_library.py runs it."""
    (tmp_path / "ComfyUI-Latent-CLIP").symlink_to(ROOT)
    for name in ("latent-clip-b-8", "own"):
        (tmp_path / f"{name}.safetensors").symlink_to(converted / "latent-clip-b-8.safetensors")
    (service,) = blocks("python", ROOT / "docs" / "api.md")
    assert "require_gate(" in service, "that one runs in tests/host/test_require_gate.py"
    first, *others = blocks("python", ROOT / "docs" / "library.md")
    kept = [line for line in first.splitlines() if line.startswith(("import", "prompt", "clip", "reward"))]
    program = "\n".join([*kept, *others]).replace('device="cuda"', 'device="cpu"')
    (tmp_path / "example.py").write_text(program, encoding="utf-8")
    done = python("example.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    best, again, own = done.stdout.splitlines()
    assert best.endswith("['iterations', 'iterations']") and own.startswith("sdxl torch.Size([1, ")
    assert re.findall(r"-?0\.\d{3}", best)[:2] == re.findall(r"-?0\.\d{3}", again)[:2]
