"""Hand a small network to the host, so that it is moved and freed beside the diffusion models."""

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class TowerPatcher(comfy.model_patcher.ModelPatcher):
    """ModelPatcher for networks of plain torch modules, which is moved whole or not at all.

    The host's partial loading counts on its own layer classes casting weights on the fly. open_clip's layers do not,
    and parameters of modules that have children (class embedding, in_proj) would be left behind on the CPU.
    """

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        return super().load(device_to, 0, force_patch_weights, full_load=True)

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        return 0  # so the host unloads it whole

    def deepclone_multigpu(self, new_load_device=None, models_cache=None):
        """Keep one copy where the host puts a diffusion model on several devices: the encoder stays where it is."""
        return self.clone()


def tower_dtype(choice: str, device: torch.device) -> torch.dtype:
    """Weight dtype for `choice` (auto, fp16, bf16, fp32): what the host itself would take on that device."""
    if choice != "auto":
        return DTYPES[choice]
    if comfy.model_management.should_use_fp16(device):
        return torch.float16
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


def tower_patcher(module: nn.Module, device: torch.device, offload_device: torch.device) -> TowerPatcher:
    """Freeze a module and wrap it."""
    return TowerPatcher(module.train(False).requires_grad_(False), load_device=device, offload_device=offload_device)


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Present device of a module, and its compute dtype."""
    weight = next(module.parameters())
    return weight.device, weight.dtype
