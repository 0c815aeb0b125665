"""Gradients inside the executor: the one place that leaves inference mode.

The host runs nodes under `torch.inference_mode()`, and weights that it has moved there are inference tensors, which
autograd refuses to save. Nothing is copied: parameters are swapped for ordinary tensors over the same storage.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# what holds most activations: in U-Nets by class, in transformers whatever stands in a list of blocks
CHECKPOINTED = ("ResBlock", "BasicTransformerBlock")
BLOCK_LISTS = ("blocks", "double_blocks", "single_blocks", "joint_blocks", "transformer_blocks", "layers")


@contextmanager
def gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, autograd works through `modules`; afterwards every parameter and buffer is the very object it was."""
    with torch.inference_mode(False), torch.enable_grad():
        originals = []
        try:
            for module in {part for whole in modules for part in whole.modules()}:
                tables: tuple[dict, ...] = (module._parameters, module._buffers)
                for tensors in tables:
                    for name, tensor in tensors.items():
                        if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                            originals.append((tensors, name, tensor))
                            tensors[name] = _alias(tensor)
            yield
        finally:
            for tensors, name, tensor in originals:
                tensors[name] = tensor


def _alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor without gradient over the same memory; a Parameter stays one, as modules demand."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def ordinary(tensor: Tensor) -> Tensor:
    """An inference tensor as an ordinary clone; any other tensor as it is."""
    return tensor.clone() if tensor.is_inference() else tensor


def differentiable_attention(_function, *args, **kwargs) -> Tensor:
    """For `optimized_attention_override`: other backends have no backward pass, or fail in it when they chunk."""
    return attention_pytorch(*args, **kwargs)


@contextmanager
def checkpointed_blocks(model: nn.Module) -> Iterator[int]:
    """Inside, the blocks of a diffusion network keep only their inputs and are computed again on the way back.

    Gradients are the same, activations cost a fraction. Yields the number of blocks.
    """
    blocks = {m for m in model.modules() if type(m).__name__ in CHECKPOINTED}
    if not blocks:
        lists = [m for name, m in model.named_modules() if name.split(".")[-1] in BLOCK_LISTS]
        blocks = {m for blocks_list in lists if isinstance(blocks_list, nn.ModuleList) for m in blocks_list}
    blocks = {m for m in blocks if "forward" not in m.__dict__}
    try:
        for block in blocks:
            block.forward = _Checkpointed(block.forward)
        yield len(blocks)
    finally:
        for block in blocks:
            del block.forward


class _Checkpointed:
    """`forward` of one block under checkpointing; a plain call where no gradient is wanted."""

    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
