"""A pack as there are many: puts its own folder first on sys.path and imports its parts by bare names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import demo  # noqa: F401
import host  # noqa: F401
import methods  # noqa: F401
import models  # noqa: F401
import tools  # noqa: F401


class GreedyNode:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    CATEGORY = "neighbours"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (1,)


NODE_CLASS_MAPPINGS = {"NeighbourGreedy": GreedyNode}
