"""Write locales/en/nodeDefs.json from the schemas, so that English has one source.

    ./dev serve --port 8188                       # in one terminal
    python tools/locales.py http://127.0.0.1:8188

The other languages are written by hand; tests/host/test_locales.py says what they lack.
"""

import json
import re
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

LOCALES = Path(__file__).resolve().parent.parent / "locales"
PREFIX = "LatentCLIP"
# The front end's message compiler takes these for syntax.
SYNTAX = re.compile(r"[{}@|]")


def texts_of_nodes(object_info: dict) -> dict:
    """Return every text of our nodes, from the host's /object_info, in the structure of the front end's nodeDefs.json.

    Display name, description, and name and tooltip of every input and output; what a schema leaves out is left out.
    """
    return {name: texts_of_node(info) for name, info in sorted(object_info.items()) if name.startswith(PREFIX)}


def texts_of_node(info: dict) -> dict:
    """The texts of one node."""
    inputs = {
        name: options
        for group in ("required", "optional")
        for name, (_, options) in info["input"].get(group, {}).items()
    }
    outputs = zip(info["output_name"], info["output_tooltips"])
    return prune({
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": options.get("display_name") or name, "tooltip": tooltip_of(options)}
            for name, options in inputs.items()
        },
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    })  # fmt: skip


def tooltip_of(options: dict) -> str | None:
    """The tooltip of an input, or that of the slots it grows."""
    if "template" not in options or "tooltip" in options:
        return options.get("tooltip")
    ((_, slot),) = options["template"]["input"]["required"].values()
    return slot.get("tooltip")


def prune(tree: dict, keep: Callable[[str], bool] = bool) -> dict:
    """The tree without the texts that `keep` refuses and without branches that hold none."""
    kept = {key: prune(value, keep) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if (value if isinstance(value, dict) else keep(value))}


def is_plain(text: str) -> bool:
    """Return True if the front end shows the text as it is."""
    return not SYNTAX.search(text)


def english(object_info: dict) -> dict:
    """Return the content of locales/en/nodeDefs.json. A text that is not plain is left to the schema."""
    return prune(texts_of_nodes(object_info), is_plain)


def main() -> None:
    """Ask the host at the URL and write the file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with urllib.request.urlopen(sys.argv[1].rstrip("/") + "/object_info", timeout=60) as response:
        texts = english(json.load(response))
    path = LOCALES / "en" / "nodeDefs.json"
    path.write_text(json.dumps(texts, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.relative_to(LOCALES.parent)}: {len(texts)} nodes")


if __name__ == "__main__":
    main()
