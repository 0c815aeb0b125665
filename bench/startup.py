"""Cost of the pack at the host's start: its import, entry point and schemas, in fresh processes beside an empty pack."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAZY = ("open_clip", "timm")  # torchvision and transformers are the host's own imports
EMPTY = "async def comfy_entrypoint():\n    from comfy_api.latest import ComfyExtension\n\n    class E(ComfyExtension):\n        async def get_node_list(self):\n            return []\n\n    return E()\n"
PROBE = """
import asyncio, json, sys, time
sys.path.insert(0, sys.argv[1])
import utils
from comfy.cli_args import args
args.cpu, args.base_directory, args.disable_api_nodes = True, sys.argv[2], True
import nodes, server
loop = asyncio.new_event_loop(); server.PromptServer(loop)
loop.run_until_complete(nodes.load_custom_node(sys.argv[2] + "/custom_nodes/warm_up"))
began = time.perf_counter()
ok = loop.run_until_complete(nodes.load_custom_node(sys.argv[2] + "/custom_nodes/" + sys.argv[3]))
took = time.perf_counter() - began
for node in list(nodes.NODE_CLASS_MAPPINGS.values()):
    if node.__name__.startswith("LatentCLIP"):
        node.INPUT_TYPES()
print(json.dumps({"ok": ok, "ms": took * 1000, "lazy": [name for name in sys.argv[4:] if name in sys.modules]}))
"""


def run(rounds: int = 5) -> dict:
    """Median milliseconds of loading the pack and of loading an empty one, in turn, and what must not have been imported."""
    tree = os.environ["COMFYUI_PATH"]
    with tempfile.TemporaryDirectory() as base:
        packs = Path(base) / "custom_nodes"
        for name in ("warm_up", "empty"):
            (packs / name).mkdir(parents=True)
            (packs / name / "__init__.py").write_text(EMPTY)
        (packs / "latent_clip").symlink_to(ROOT, target_is_directory=True)
        loads: dict[str, list[dict]] = {"empty": [], "latent_clip": []}
        for _ in range(rounds):
            for name, results in loads.items():
                command = [sys.executable, "-c", PROBE, tree, base, name, *LAZY]
                results.append(
                    json.loads(
                        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
                    )
                )
    if not all(load["ok"] for results in loads.values() for load in results):
        raise RuntimeError("the host could not load a pack")
    medians = {name: statistics.median(load["ms"] for load in results) for name, results in loads.items()}
    return {
        "device": f"{os.cpu_count()}-core CPU",
        "rounds": rounds,
        "pack_ms": round(medians["latent_clip"], 1),
        "empty_pack_ms": round(medians["empty"], 1),
        "added_ms": round(medians["latent_clip"] - medians["empty"], 1),
        "imported_too_early": sorted({name for load in loads["latent_clip"] for name in load["lazy"]}),
    }
