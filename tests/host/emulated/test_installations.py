"""The real host on machines where the installation is not as it should be: open_clip missing, the pack there twice."""

import asyncio
import sys
import urllib.request

import pytest

from latent_clip.tools.comfy_server import PACK_FOLDER, PACK_ROOT, ComfyServer, make_base
from latent_clip.tools.package import node_ids

SECOND = "latent-clip-copy"
# Python's own finder for files, without one package: what it says of a package that is not installed
WITHOUT_OPEN_CLIP = """
import asyncio
import sys
from importlib.machinery import PathFinder

class WithoutOpenClip(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "open_clip" else super().find_spec(name, path, target)

sys.meta_path[:] = [WithoutOpenClip if finder is PathFinder else finder for finder in sys.meta_path]
"""


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


class TestOpenClipIsMissing:
    @pytest.fixture(scope="class")
    def server(self, comfy_tree, tmp_path_factory):
        hidden, base = tmp_path_factory.mktemp("without"), tmp_path_factory.mktemp("base")
        (hidden / "sitecustomize.py").write_text(WITHOUT_OPEN_CLIP)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(hidden))
            with ComfyServer(comfy_tree, make_base(base)) as server:
                yield server

    def test_one_line_at_the_start_names_the_command_for_this_python(self, server):
        lines = [line for line in server.log().splitlines() if "open_clip" in line]
        assert len(lines) == 1, lines
        assert f'"{sys.executable}" -m pip install open_clip_torch' in lines[0]
        assert "IMPORT FAILED" not in server.log() and "ModuleNotFoundError" not in server.log()

    @pytest.mark.parametrize("kind", ["LatentCLIPShapesWorld"])
    def test_nodes_are_there_and_say_the_same(self, server, kind):
        assert {name for name in server.object_info() if name.startswith("LatentCLIP")} == node_ids(PACK_ROOT)
        prompt = {
            "1": node(kind),
            "2": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "3": node("LatentCLIPTextReward", latent_clip=["1", 3], text="a star", weight=1.0, fit="tiles"),
            "4": node("LatentCLIPScore", latent=["2", 0], reward=["3", 0]),
        }
        result = server.run(prompt, expect_failure=True)
        assert result.exception["exception_type"] == "ValueError"
        assert f'"{sys.executable}" -m pip install open_clip_torch' in result.exception["exception_message"]


class TestTwoCopies:
    @pytest.fixture(scope="class")
    def server(self, comfy_tree, tmp_path_factory):
        packs = {PACK_FOLDER: PACK_ROOT, SECOND: PACK_ROOT}
        with ComfyServer(comfy_tree, make_base(tmp_path_factory.mktemp("twice"), packs)) as server:
            yield server

    def test_host_starts_and_says_so_once(self, server):
        (line,) = [line for line in server.log().splitlines() if "installed twice" in line]
        assert PACK_FOLDER in line and SECOND in line
        assert "IMPORT FAILED" not in server.log()

    def test_nodes_and_routes_are_of_the_same_copy(self, server):
        """Stop reaches a run: with the routes of one copy and the nodes of the other it answered 404."""
        prompt = {
            "world": node("LatentCLIPShapesWorld"),
            "cond": node("CLIPTextEncode", clip=["world", 1], text="a red circle"),
            "guider": node("BasicGuider", model=["world", 0], conditioning=["cond", 0]),
            "noise": node("RandomNoise", noise_seed=1),
            "sigmas": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=1, denoise=1.0),
            "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "reward": node("LatentCLIPTextReward", latent_clip=["world", 3], text="a star", weight=1.0, fit="tiles"),
            "reno": node(
                "LatentCLIPOptimizeNoise", noise=["noise", 0], guider=["guider", 0], sigmas=["sigmas", 0],
                latent_image=["empty", 0], reward=["reward", 0], iterations=1000, learning_rate=5.0,
                optimizer="nesterov", gradient_clip=0.1, prior_weight=0.01, patience=0, memory="auto",
            ),
            "score": node("LatentCLIPScore", latent=["reno", 0], reward=["reward", 0]),
        }  # fmt: skip
        answers = []

        def stop():
            for run in server.get("/latent_clip/runs")["runs"]:
                body = {"prompt_id": run["prompt_id"], "node": run["node"]}
                answers.append(server.post("/latent_clip/stop", body))

        result = server.run(prompt, poll=stop)
        assert answers[0] == (200, {"stopping": True})
        assert result.outputs["reno"]["latent_clip"][0]["stop_reasons"] == ["stopped"]

    def test_page_gets_the_files_of_both(self, server):
        """So the page has to cope with it; tests/browser/test_copies.py looks at that."""
        with urllib.request.urlopen(f"{server.url}/extensions", timeout=30) as response:
            text = response.read().decode()
        assert f"/extensions/{SECOND}/scores.js" in text and f"/extensions/{PACK_FOLDER}/scores.js" in text


def test_same_copy_loaded_again_is_no_second_one_and_adds_no_route(host_env, caplog):
    """As packs that reload others do it."""
    paths = [route.path for route in host_env.server.routes]
    handlers = len(host_env.server.on_prompt_handlers)
    extension = asyncio.run(host_env.pack.comfy_entrypoint())
    assert {node.define_schema().node_id for node in asyncio.run(extension.get_node_list())} == node_ids(PACK_ROOT)
    assert [route.path for route in host_env.server.routes] == paths
    assert paths.count("/latent_clip/runs") == paths.count("/latent_clip/stop") == 1
    assert len(host_env.server.on_prompt_handlers) == handlers
    assert "installed twice" not in caplog.text
