"""The second way to the host: its code inside the test process, for what POST /prompt cannot show."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest


@dataclass
class HostEnv:
    """ComfyUI's own modules in this process, on the CPU, with a base directory of their own.

    `import comfy...`, `execution`, `folder_paths` and `nodes` (the host's) work in tests that use the fixture.
    """

    tree: Path
    base: Path
    pack: ModuleType
    """Our pack as the host's loader imported it: its classes are what the host runs."""

    def executor(self):
        """A real PromptExecutor on the host's own (not listening) PromptServer: nodes run in inference mode."""
        import execution

        sizes = {"lru": 0, "ram": 2.0, "ram_inactive": 2.0}  # newer hosts read these whatever the cache
        return execution.PromptExecutor(self.server, cache_type=execution.CacheType.CLASSIC, cache_args=sizes)

    @property
    def server(self):
        """The host's PromptServer."""
        import server

        return server.PromptServer.instance

    def execute(self, prompt: dict):
        """Run an API prompt through a new executor, with all that nothing else in it reads.

        Returns the executor: see .success, .status_messages, .history_result.
        """
        executor = self.executor()
        wires = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
        read = {wire[0] for wire in wires if wire and isinstance(wire[0], str)}
        outputs = [key for key, node in prompt.items() if key not in read or self._is_output(node["class_type"])]
        executor.execute(prompt, "in-process", {}, outputs)
        return executor

    @staticmethod
    def _is_output(class_type: str) -> bool:
        import nodes

        return bool(getattr(nodes.NODE_CLASS_MAPPINGS[class_type], "OUTPUT_NODE", False))


@pytest.fixture(scope="session")
def host_env(comfy_tree, tmp_path_factory) -> HostEnv:
    """Import the real host into this process, once, and load the pack and the test pack with its own loader."""
    from latent_clip.tests.host_server import TEST_PACK
    from latent_clip.tools.comfy_server import PACK_FOLDER, PACK_ROOT, make_base

    if loaded := {"comfy", "folder_paths", "nodes", "execution"} & set(sys.modules):
        pytest.fail(f"{sorted(loaded)} imported before host_env could choose the CPU and a base directory")
    base = make_base(tmp_path_factory.mktemp("in-process"), {PACK_FOLDER: PACK_ROOT, "test_pack": TEST_PACK})
    sys.path.insert(0, str(comfy_tree))
    import utils  # noqa: F401 - before `nodes`, which puts comfy/, with a utils.py in it, in front on sys.path
    from comfy.cli_args import args

    args.cpu, args.base_directory, args.disable_api_nodes = True, str(base), True
    import nodes
    import server

    loop = asyncio.new_event_loop()
    server.PromptServer(loop)
    for pack in ("test_pack", PACK_FOLDER):
        folder = str(base / "custom_nodes" / pack)
        assert loop.run_until_complete(nodes.load_custom_node(folder)), f"the host could not load {pack}"
    return HostEnv(comfy_tree, base, sys.modules[folder.replace(".", "_x_")])
