"""Command line `latent-clip COMMAND`: one thin file per subcommand, with `add_arguments`, `run` and `ERRORS`, the errors of its input.

The work itself is done in methods, models, host, training and evaluation.
"""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return its exit status, 0 or 1."""
    from . import calibrate, card, convert, embed, finetune_vae, train

    modules = {"convert": convert, "calibrate": calibrate, "embed": embed, "train": train}
    modules |= {"finetune-vae": finetune_vae, "card": card}
    if (Path(__file__).parent / "evaluate.py").is_file():  # missing in the registry's archive, since it talks to servers
        from . import evaluate

        modules["evaluate"] = evaluate
    parser = argparse.ArgumentParser("latent-clip", description="Tools of Latent-CLIP for ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in modules.items():
        about = (module.__doc__ or "").strip()
        module.add_arguments(
            commands.add_parser(
                name, help=about.split("\n")[0], description=about, formatter_class=argparse.RawDescriptionHelpFormatter
            )
        )
    options = parser.parse_args(argv)
    module = modules[options.command]
    try:
        print(module.run(options))
    except module.ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
