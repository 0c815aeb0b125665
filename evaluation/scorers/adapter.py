"""Adapter for a benchmark's own scorer, a program in its own environment: print the exact command and run it. Its results are files."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from .. import EvaluationError


def command_for(template: str, folder: Path) -> str:
    """Fill the arm's folder into a command line.

    Raises:
        EvaluationError: the command line has no {folder}.
    """
    if "{folder}" not in template:
        raise EvaluationError(f"Got the command {template!r}, expected {{folder}} where the folder of pictures goes.")
    return template.replace("{folder}", str(folder.resolve()))


def run_scorer(template: str, folder: Path, directory: Path | None, log: Callable[[str], None]) -> None:
    """Run a scorer on one arm's folder and wait for it. Its output goes to the terminal.

    Args:
        directory: working directory, the scorer's repository. log: called with the exact command before it runs.

    Raises:
        EvaluationError: the scorer cannot be started, or ends with an error.
    """
    command = command_for(template, folder)
    log((f"cd {shlex.quote(str(directory))} && " if directory else "") + command)
    if directory is not None and not directory.is_dir():
        raise EvaluationError(f"{directory}: no such folder, expected the scorer's repository.")
    try:
        code = subprocess.call(shlex.split(command), cwd=directory)
    except OSError as error:
        raise EvaluationError(f"{shlex.split(command)[0]}: cannot be started ({error.strerror}). Is it in the PATH?") from error
    if code:
        raise EvaluationError(f"The scorer ended with exit code {code}; see its output for the reason. Its command was: {command}")
