"""Switch off ComfyUI's own compiler (from 0.34 on) while a gradient is wanted.

On an NVIDIA GPU with dynamic VRAM the host records what a forward pass allocates, and replays blocks as CUDA graphs. A
replayed block runs no Python, so hooks, recomputed blocks and autograd do not exist in it. The host reads its arguments at
every forward pass; prompts run one at a time, so setting them for a while changes nothing for anybody else.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from comfy.cli_args import args

SWITCHES = ("disable_comfy_compiler", "disable_cuda_graphs")


def compiles(device: torch.device) -> bool:
    """Return True if the host compiles models on this device; False for hosts that have no compiler."""
    try:
        from comfy.model_prefetch import malloc_graph_enabled
    except ImportError:
        return False
    return bool(malloc_graph_enabled(device))


@contextmanager
def compiler_off() -> Iterator[None]:
    """Switch the host's compiler off inside, and set its arguments back to what they were."""
    before = {name: getattr(args, name) for name in SWITCHES if hasattr(args, name)}
    try:
        for name in before:
            setattr(args, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
