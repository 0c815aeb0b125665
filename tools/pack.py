"""Make the checkout importable as `latent_clip_pack`, and run its modules as scripts.

ComfyUI gives a pack whatever module name its folder has, and the repository root must never be on sys.path (the host
owns a top-level `nodes`). So tests and command-line tools register the root under one fixed name instead:

    python tools/pack.py demo.train --minutes 5     # runs latent_clip_pack/demo/train.py as a script
"""

import importlib.machinery
import runpy
import sys
import types
from pathlib import Path

NAME = "latent_clip_pack"
ROOT = Path(__file__).resolve().parent.parent


def register() -> types.ModuleType:
    """Put the repository root into sys.modules as a package, without running its __init__.py. Safe to call twice."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    package = types.ModuleType(NAME)
    package.__path__ = [str(ROOT)]
    package.__spec__ = importlib.machinery.ModuleSpec(NAME, None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules[NAME] = package
    return package


def main() -> None:
    """Run the module named by the first argument with the remaining ones as its argv."""
    if len(sys.argv) < 2:
        sys.exit("usage: python tools/pack.py MODULE [arguments], for example: python tools/pack.py demo.train")
    register()
    # Python put tools/ itself first on sys.path; nothing there is meant to be imported by its bare name.
    if sys.path and Path(sys.path[0]).resolve() == ROOT / "tools":
        del sys.path[0]
    module = f"{NAME}.{sys.argv[1]}"
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
