"""One process of several that torchrun started: its rank, its device, and gradients averaged over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Rank:
    """Number of this process, and how many there are."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def init_distributed() -> Rank:
    """Join the process group that torchrun started; without torchrun there is one process."""
    if not dist.is_torchelastic_launched():
        return Rank()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Rank(dist.get_rank(), dist.get_world_size())


def destroy_distributed() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def distributed(task: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module so that its gradients are averaged over all processes."""
    return DistributedDataParallel(task, device_ids=[device] if device.type == "cuda" else None, static_graph=True)


def device_of(name: str) -> torch.device:
    """Return the device of this process; with several processes on CUDA, each has its own GPU."""
    if name != "cuda" or not dist.is_initialized():
        return torch.device(name)
    device = torch.device("cuda", dist.get_node_local_rank(0))
    torch.cuda.set_device(device)
    return device
