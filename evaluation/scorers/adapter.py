"""A benchmark's own scorer as a program in an environment of its own: the exact command is printed, its results are read from files."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from .. import EvaluationError


def command_for(template: str, folder: Path) -> str:
    """A command line with the arm's folder in it.

    Raises:
        EvaluationError: it does not say {folder}, or has other braces.
    """
    if "{folder}" not in template:
        raise EvaluationError(f"Got the command {template!r}, expected {{folder}} where the folder of pictures goes.")
    return template.replace("{folder}", str(folder.resolve()))


def run_scorer(template: str, folder: Path, directory: Path | None, say: Callable[[str], None]) -> None:
    """Run a scorer on one arm's folder and wait for it. What it prints goes to the terminal.

    Args:
        directory: where to run it, the scorer's repository. say: told the exact command before it runs.

    Raises:
        EvaluationError: it cannot be started, or ends with an error.
    """
    command = command_for(template, folder)
    say((f"cd {shlex.quote(str(directory))} && " if directory else "") + command)
    if directory is not None and not directory.is_dir():
        raise EvaluationError(f"{directory}: no such folder, expected the scorer's repository.")
    try:
        code = subprocess.call(shlex.split(command), cwd=directory)
    except OSError as error:
        raise EvaluationError(f"{shlex.split(command)[0]}: cannot be started ({error.strerror}). Is it in the PATH?") from error
    if code:
        raise EvaluationError(f"The scorer ended with exit code {code}; what it printed says why. Its command was: {command}")
