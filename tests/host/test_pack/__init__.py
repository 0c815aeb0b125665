"""A pack for the tests' host only: a tiny SDXL for the stock loader, and nodes that show what is on a wire."""

from collections import Counter
from pathlib import Path
from typing import ClassVar

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph_utils import GraphBuilder
from typing_extensions import override

from . import families
from .tiny_sdxl import make_tiny_sdxl, register

register()
families.register()
CHECKPOINT = Path(folder_paths.models_dir) / "checkpoints" / "tiny_sdxl.safetensors"
if not CHECKPOINT.exists():
    make_tiny_sdxl(CHECKPOINT)


class TestMakeLatent(io.ComfyNode):
    """Random raw latents with whatever metadata a test asks for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestMakeLatent",
            category="tests",
            inputs=[
                io.Int.Input("batch_size", default=4, min=0),
                io.Int.Input("channels", default=4),
                io.Int.Input("height", default=8),
                io.Int.Input("width", default=8),
                io.Int.Input("seed", default=0),
                io.Float.Input("std", default=7.0),
                io.Boolean.Input("with_mask", default=False, tooltip="add a noise_mask, different for each item"),
                io.Boolean.Input("with_batch_index", default=False, tooltip="add batch_index 100, 101, ..."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, batch_size, channels, height, width, seed, std, with_mask, with_batch_index) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        latent = {"samples": torch.randn(batch_size, channels, height, width, generator=generator) * std}
        if with_mask:
            latent["noise_mask"] = torch.rand(batch_size, 1, height * 8, width * 8, generator=generator)
        if with_batch_index:
            latent["batch_index"] = [100 + i for i in range(batch_size)]
        return io.NodeOutput(latent)


class TestLoadLatent(io.ComfyNode):
    """A LATENT that the test wrote with comfy.save_input(name, latent)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestLoadLatent",
            category="tests",
            inputs=[io.String.Input("name", default="latent")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, name) -> float:
        return (Path(folder_paths.get_input_directory()) / f"{name}.pt").stat().st_mtime

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(torch.load(Path(folder_paths.get_input_directory()) / f"{name}.pt", weights_only=True))


class TestDump(io.ComfyNode):
    """Everything that arrives on one wire, whole, as a list in output/<name>.pt. Read it with comfy.dump(name)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestDump",
            category="tests",
            is_output_node=True,
            is_input_list=True,
            inputs=[io.AnyType.Input("value"), io.String.Input("name", default="dump")],
        )

    @classmethod
    def execute(cls, value, name) -> io.NodeOutput:
        path = Path(folder_paths.get_output_directory()) / f"{name[0]}.pt"
        torch.save(value, path)
        return io.NodeOutput(ui={"dumped": [path.name]})


class TestLatentList(io.ComfyNode):
    """A batch as a list of latents of one item each, as Rebatch Latents makes it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestLatentList",
            category="tests",
            inputs=[io.Latent.Input("latent")],
            outputs=[io.Latent.Output(is_output_list=True)],
        )

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        return io.NodeOutput([{"samples": item} for item in latent["samples"].split(1)])


class TestExpand(io.ComfyNode):
    """Expands into a graph with Optimize Noise in it, as loop nodes and node groups do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestExpand",
            category="tests",
            inputs=[
                io.Noise.Input("noise"), io.Guider.Input("guider"), io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"), io.Custom("LATENT_REWARD").Input("reward"),
            ],
            outputs=[io.Latent.Output()],
            enable_expand=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, **wires) -> io.NodeOutput:
        graph = GraphBuilder()
        settings = {
            "iterations": 1000, "learning_rate": 5.0, "optimizer": "nesterov", "gradient_clip": 0.1,
            "prior_weight": 0.01, "patience": 0, "memory": "auto",
        }  # fmt: skip
        reno = graph.node("LatentCLIPOptimizeNoise", **wires, **settings)
        return io.NodeOutput(reno.out(0), expand=graph.finalize())


class TestCountRuns(io.ComfyNode):
    """Passes a latent on and counts, under a name, how often it did: whether a branch was run."""

    runs: ClassVar[Counter] = Counter()

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestCountRuns",
            category="tests",
            inputs=[io.Latent.Input("latent"), io.String.Input("name")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, latent, name) -> io.NodeOutput:
        TestCountRuns.runs[name] += 1
        path = Path(folder_paths.get_output_directory()) / f"{name}.runs"
        path.write_text(str(TestCountRuns.runs[name]))
        return io.NodeOutput(latent)


class TestStockFiles(io.ComfyNode):
    """Small models and VAEs under the names that the host's own templates ask for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestStockFiles", category="tests", is_output_node=True, inputs=[])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        families.save_stock_files(Path(folder_paths.models_dir))
        return io.NodeOutput()


class TestTinyText(io.ComfyNode):
    """A text encoder for the small model of a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestTinyText", category="tests", inputs=[io.String.Input("file")], outputs=[io.Clip.Output()]
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(families.TinyText(families.FAMILIES[families.STOCK_MODELS[file]]))


class TestExtension(ComfyExtension):
    """The test nodes."""

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestMakeLatent, TestLoadLatent, TestDump, TestLatentList, TestExpand, TestCountRuns, TestStockFiles, TestTinyText]


async def comfy_entrypoint() -> TestExtension:
    """What the host calls."""
    return TestExtension()
