"""Detect a second copy of the pack. Light: the host imports this when it starts."""

import logging
import sys
from pathlib import Path

LOGGER = logging.getLogger(__name__)
NODE = "LatentCLIPLoader"  # in every version of the pack


def is_first_copy() -> bool:
    """Return True unless another copy of the pack has registered its nodes already; then log one line."""
    other = other_copy()
    if other:
        LOGGER.warning(
            "Latent-CLIP is installed twice, in custom_nodes/%s and in custom_nodes/%s. The first one is used. "
            "Delete one of the two folders and restart ComfyUI.",
            other,
            Path(__file__).parent.parent.parent.name,
        )
    return not other


def other_copy() -> str:
    """The folder of another copy whose nodes the host has; empty where this is the first, or the first loaded again."""
    loaded = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(NODE)
    package = __name__.removesuffix(".host.front_end.installation")
    if loaded is None or loaded.__module__.startswith(f"{package}."):
        return ""
    return getattr(loaded, "RELATIVE_PYTHON_MODULE", loaded.__module__).split(".")[-1]
