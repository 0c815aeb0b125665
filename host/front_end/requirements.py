"""What the pack needs beside ComfyUI, looked for without importing it: open_clip alone takes seconds."""

import logging
import sys
from importlib.util import find_spec

LOGGER = logging.getLogger(__name__)
REQUIREMENTS = {"open_clip": "open_clip_torch", "einops": "einops", "safetensors": "safetensors"}
"""Module → the package that has it, as in requirements.txt."""


def missing_requirements() -> str:
    """One line that names what is missing and the command for this Python; empty where nothing is."""
    packages = [package for module, package in REQUIREMENTS.items() if find_spec(module) is None]
    if not packages:
        return ""
    names, verb = " and ".join(packages), "is" if len(packages) == 1 else "are"
    command = f'"{sys.executable}" -m pip install {" ".join(packages)}'
    return f"Latent-CLIP needs {names}, which {verb} not installed. Run: {command} and restart ComfyUI."


def warn_of_missing_requirements() -> None:
    """One line in the log at the start. The nodes are there all the same, and say it again when they run."""
    if sentence := missing_requirements():
        LOGGER.warning(sentence)


def check_requirements() -> None:
    """Called by every node that loads a network.

    Raises:
        ValueError: something is missing.
    """
    if sentence := missing_requirements():
        raise ValueError(sentence)
