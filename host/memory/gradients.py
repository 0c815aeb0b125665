"""Gradients inside the executor: the one place that leaves inference mode.

The host runs nodes under `torch.inference_mode()`, and weights that it has moved there are inference tensors, which
autograd refuses to save. Nothing is copied: parameters are swapped for ordinary tensors over the same storage.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.model_management as mm
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .compiler import compiler_off
from .in_place import recomputed, writable_activations

# What holds most activations of a U-Net. Transformers name their blocks as they like, but keep them in lists.
CHECKPOINTED = ("ResBlock", "BasicTransformerBlock")


@contextmanager
def gradients(modules: Iterable[nn.Module], latent_format: object | None = None) -> Iterator[None]:
    """Let autograd work through `modules` inside; put back every parameter and buffer as the same object afterwards.

    Likewise through a latent format of the host, whose means and deviations are tensors in Wan's and others.

    Weights that the host keeps elsewhere are copied to the device by the layer that needs them, as ordinary tensors
    that autograd may keep: neither in pages that dynamic VRAM gives to another weight meanwhile, nor in the host's
    shared cast buffers, nor by a side stream that the backward pass does not wait for. The host's compiler is off (`host.memory.compiler`).
    """
    with torch.inference_mode(False), torch.enable_grad(), compiler_off(), _no_offload_streams(), _plain_operations():
        swaps = Swaps()
        try:
            for module in {part for whole in modules for part in whole.modules()}:
                tables: tuple[dict, ...] = (module._parameters, module._buffers)
                for tensors in tables:
                    for name, tensor in tensors.items():
                        if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                            swaps.set(tensors, name, _alias(tensor))
                if "_v" in module.__dict__:
                    _leave_pages(module.__dict__, swaps)
            constants = [] if latent_format is None else list(vars(latent_format).items())
            for name, constant in constants:
                if isinstance(constant, Tensor) and constant.is_inference():
                    swaps.set(latent_format.__dict__, name, _alias(constant))
            yield
        finally:
            swaps.undo()


class Swaps:
    """Temporary replacements of entries in dicts."""

    _absent = object()

    def __init__(self) -> None:
        self._before: list[tuple[dict, str, object]] = []

    def set(self, owner: dict, name: str, value: object) -> None:
        self._before.append((owner, name, owner.get(name, self._absent)))
        owner[name] = value

    def remove(self, owner: dict, name: str) -> None:
        self._before.append((owner, name, owner.pop(name)))

    def undo(self) -> None:
        """Restore every entry as it was before the first swap."""
        for owner, name, value in reversed(self._before):
            if value is self._absent:
                owner.pop(name, None)
            else:
                owner[name] = value
        self._before.clear()


def _leave_pages(attributes: dict, swaps: Swaps) -> None:
    """Take a layer out of dynamic VRAM: without its slice `_v` the host casts its weight for every use.

    That cast applies `weight_function` only, so the patches (LoRA) that wait for the page go in front of it.
    """
    swaps.remove(attributes, "_v")
    for name in ("weight", "bias"):
        patch = attributes.get(f"{name}_lowvram_function")
        if patch is not None:
            swaps.set(attributes, f"{name}_function", [patch, *attributes.get(f"{name}_function", [])])


@contextmanager
def _no_offload_streams() -> Iterator[None]:
    streams, mm.NUM_STREAMS = mm.NUM_STREAMS, 0
    try:
        yield
    finally:
        mm.NUM_STREAMS = streams


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Switch the host to its training operations: rotary positions by PyTorch, not by kernels without a gradient."""
    before, mm.in_training = mm.in_training, True
    try:
        yield
    finally:
        mm.in_training = before


def _alias(tensor: Tensor) -> Tensor:
    """Return an ordinary tensor without gradient over the same memory; a Parameter stays one, as modules demand.

    A quantised weight is rebuilt around aliases of its parts. Other subclasses (GGUF) carry what only they know how to
    copy, so they stay; their layers dequantise them into ordinary tensors.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        parts = {name: _alias(getattr(tensor, name)) for name in names}
        rebuild: Any = type(tensor)
        alias = rebuild.__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
    elif type(tensor) in (Tensor, nn.Parameter):
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    else:
        return tensor
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def ordinary(tensor: Tensor) -> Tensor:
    """Return an inference tensor as an ordinary clone; any other tensor unchanged."""
    return tensor.clone() if tensor.is_inference() else tensor


def differentiable_attention(_function, *args, **kwargs) -> Tensor:
    """Override `optimized_attention`: other backends have no backward pass, or fail in it when they chunk."""
    return attention_pytorch(*args, **kwargs)


@contextmanager
def checkpointed_blocks(model: nn.Module, blocks: Iterable[nn.Module] | None = None) -> Iterator[int]:
    """Recompute the blocks of a network in the backward pass: they keep only their inputs.

    Gradients are the same, activations cost a fraction. Yields the number of blocks.

    Args:
        blocks: of `model`, none in another; default: those of a diffusion network.
    """
    again: Callable[..., Any] = _again
    if blocks is None:
        blocks = _blocks_of_unet(model)
        if not blocks:
            blocks, again = set(_listed(model)), recomputed
    blocks = {m for m in blocks if "forward" not in m.__dict__}
    try:
        for block in blocks:
            block.forward = _Checkpointed(block.forward, again)
        yield len(blocks)
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def overwriting_allowed(model: nn.Module) -> Iterator[None]:
    """Let a transformer write into its activations; U-Nets do not, and skip the check."""
    with nullcontext() if _blocks_of_unet(model) else writable_activations():
        yield


def _blocks_of_unet(model: nn.Module) -> set[nn.Module]:
    return {m for m in model.modules() if type(m).__name__ in CHECKPOINTED}


def _listed(module: nn.Module) -> Iterator[nn.Module]:
    """Modules in the outermost lists of a network that have submodules themselves."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from (block for block in child.children() if any(True for _ in block.children()))
        else:
            yield from _listed(child)


class _Checkpointed:
    """Replacement `forward` of one block: under checkpointing, or a plain call if no gradient is wanted."""

    def __init__(self, forward, again):
        self.forward, self.again = forward, again

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return self.again(self.forward, args, kwargs)


def _again(block, args: tuple, kwargs: dict):
    """Checkpoint a block that overwrites nothing, by PyTorch's own function."""
    # The options that the network hands from block to block are one dict, which later blocks write into: what is
    # computed again must see what the first time saw.
    seen = _copied((args, kwargs))
    again = False

    def forward(*args, **kwargs):
        nonlocal again
        if again:
            args, kwargs = _copied(seen)
        again = True
        return block(*args, **kwargs)

    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _copied(value):
    """Copy dicts and lists at every depth; return everything else unchanged."""
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return value
