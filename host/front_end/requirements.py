"""Check the pack's requirements without importing them: open_clip alone takes seconds."""

import logging
import sys
from importlib.util import find_spec

LOGGER = logging.getLogger(__name__)
REQUIREMENTS = {"open_clip": "open_clip_torch", "einops": "einops", "safetensors": "safetensors"}
"""Module → the package that has it, as in requirements.txt."""


def missing_requirements() -> str:
    """Return one line that names the missing packages and the command for this Python; "" if none is missing."""
    packages = [package for module, package in REQUIREMENTS.items() if find_spec(module) is None]
    if not packages:
        return ""
    names, verb = " and ".join(packages), "is" if len(packages) == 1 else "are"
    command = f'"{sys.executable}" -m pip install {" ".join(packages)}'
    return f"Latent-CLIP needs {names}, which {verb} not installed. Run: {command} and restart ComfyUI."


def warn_of_missing_requirements() -> None:
    """Log one line at the start if something is missing. The nodes exist all the same, and raise when they run."""
    if sentence := missing_requirements():
        LOGGER.warning(sentence)


def check_requirements() -> None:
    """Refuse to load a network while a package is missing.

    Raises:
        ValueError: something is missing.
    """
    if sentence := missing_requirements():
        raise ValueError(sentence)
