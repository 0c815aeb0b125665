"""The repository as the library `latent_clip`: installed by pip, and run from its folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    target, copy = tmp_path_factory.mktemp("site-packages"), tmp_path_factory.mktemp("copy") / "ComfyUI-Latent-CLIP"
    others = shutil.ignore_patterns(".*", "tests", "docs", "bench", "studies", "js", "build", "__pycache__", "output")
    shutil.copytree(ROOT, copy, ignore=others)  # pip builds in the folder that it is given
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, "--target", target, copy], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def python(*arguments, folder: Path, path: Path | None = None) -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONSAFEPATH": "1", **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_library_has_its_data_and_nothing_else_at_its_top(installed, tmp_path):
    code = (
        "import latent_clip; from latent_clip.models import config, concepts, shapes_world;"
        "print(latent_clip.__file__); print(len(config.published_configs()), concepts.shipped_concepts().name);"
        "print(shapes_world.load_latent_clip()[1]['embed_dim'])"
    )
    where, configs, size = python("-c", code, folder=tmp_path, path=installed).splitlines()
    assert Path(where).parent == installed / "latent_clip"
    assert configs == "2 i2p" and int(size) > 0
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} <= {
        "latent_clip",
        "bin",
        "Scripts",
    }
    assert (installed / "latent_clip" / "py.typed").exists()


def test_every_file_of_an_installed_room_is_there(installed):
    """pyproject.toml names packages one by one: a new folder that it does not name would be missing."""
    package = installed / "latent_clip"
    rooms = [room.name for room in package.iterdir() if room.is_dir() and room.name != "__pycache__"]
    assert "methods" in rooms
    for room in rooms:
        assert {path.relative_to(package) for path in (package / room).rglob("*.py")} == {
            path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py")
        }  # fmt: skip


@pytest.mark.parametrize("command", ["convert", "calibrate", "embed", "train", "card"])
def test_its_commands_start(installed, tmp_path, command):
    assert "usage: latent-clip" in python("-P", installed / "bin" / "latent-clip", command, "--help", folder=tmp_path, path=installed)  # fmt: skip
    assert "usage: latent-clip" in python(ROOT, command, "--help", folder=tmp_path)


@pytest.mark.parametrize(("old", "new"), [("convert_checkpoint.py", "convert"), ("calibrate_safety.py", "calibrate")])
def test_old_commands_say_where_they_went(tmp_path, old, new):
    done = subprocess.run([sys.executable, ROOT / "tools" / old, "x"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and f"{ROOT} {new}" in done.stderr
