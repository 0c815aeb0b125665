"""`python ComfyUI-Latent-CLIP COMMAND …`: the commands, with ComfyUI's own Python and without installing anything.

`python ComfyUI-Latent-CLIP -m tools.demo …` runs a module of the repository, as `python -m latent_clip.tools.demo` does where
it is installed.
"""

import runpy
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Give this folder its name as a package, whatever it is called, and take it off the path: the host owns `nodes`."""
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    package = types.ModuleType("latent_clip")
    package.__path__ = [str(ROOT)]
    sys.modules["latent_clip"] = package
    if sys.argv[1:2] == ["-m"] and len(sys.argv) > 2:
        module = sys.argv[2]
        sys.argv = sys.argv[2:]
        runpy.run_module(f"latent_clip.{module}", run_name="__main__", alter_sys=True)
        return 0
    from latent_clip.commands import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
