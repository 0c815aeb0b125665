"""The sentence about a package that is missing."""

import re
import sys
from pathlib import Path

import pytest

from latent_clip.host.front_end import requirements

ROOT = Path(__file__).resolve().parent.parent.parent


def hide(monkeypatch, *modules: str) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in modules else object())


def test_it_names_what_requirements_txt_names():
    assert sorted(requirements.REQUIREMENTS.values()) == sorted((ROOT / "requirements.txt").read_text().split())


def test_nothing_is_said_where_nothing_is_missing():
    assert requirements.missing_requirements() == ""
    requirements.check_requirements()


@pytest.mark.parametrize(
    ("hidden", "packages"),
    [
        (["open_clip"], ["open_clip_torch"]),
        (["einops"], ["einops"]),
        (["open_clip", "safetensors"], ["open_clip_torch", "safetensors"]),
    ],
)
def test_one_line_with_the_command_for_this_python(monkeypatch, hidden, packages):
    hide(monkeypatch, *hidden)
    with pytest.raises(ValueError) as error:
        requirements.check_requirements()
    line = str(error.value)
    assert "\n" not in line and all(package in line for package in packages)
    assert f'"{sys.executable}" -m pip install {" ".join(packages)}' in line
    assert len(re.findall("pip", line)) == 1
