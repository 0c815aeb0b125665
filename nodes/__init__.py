"""V3 schemas and thin execute methods, one file per family."""

from comfy_api.latest import ComfyExtension, io


def all_nodes() -> list[type[io.ComfyNode]]:
    """Every node of the pack, in the order of the add-node menu."""
    from .avoid import LatentCLIPAvoidReward
    from .classify import LatentCLIPClassify
    from .guide import LatentCLIPGuideModel
    from .load import LatentCLIPLoader, LatentCLIPPixelLoader
    from .optimize import LatentCLIPOptimizeNoise
    from .rewards import LatentCLIPCombineRewards, LatentCLIPLatentReward, LatentCLIPPixelReward, LatentCLIPTextReward
    from .safety import LatentCLIPSafetyGate, LatentCLIPSafetyGuidance
    from .score import LatentCLIPScore, LatentCLIPSelect
    from .search import LatentCLIPSearch
    from .shapes_world import LatentCLIPShapesWorld

    return [
        LatentCLIPLoader,
        LatentCLIPTextReward,
        LatentCLIPLatentReward,
        LatentCLIPPixelReward,
        LatentCLIPAvoidReward,
        LatentCLIPCombineRewards,
        LatentCLIPScore,
        LatentCLIPSelect,
        LatentCLIPClassify,
        LatentCLIPOptimizeNoise,
        LatentCLIPSearch,
        LatentCLIPGuideModel,
        LatentCLIPSafetyGuidance,
        LatentCLIPSafetyGate,
        LatentCLIPShapesWorld,
        LatentCLIPPixelLoader,
    ]


class LatentCLIPExtension(ComfyExtension):
    def __init__(self, nodes: list[type[io.ComfyNode]] | None = None):
        self.nodes = nodes

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return all_nodes() if self.nodes is None else self.nodes
