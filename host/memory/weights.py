"""The weights of a diffusion network that the host casts for every use: partly loaded, dynamic VRAM, fp8, LoRA on the fly.

Autograd keeps every such copy until the backward pass is over. A run that evaluates the network again and again casts
them once instead, where there is room.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ops
import torch
from torch import nn

from .gradients import Swaps


def bytes_when_cast(patcher) -> int:
    """Bytes on the device of the weights that the host will cast for every use, as far as it is known before loading.

    Layers that a non-dynamic model keeps elsewhere for want of room are not among them.
    """
    dtype, dynamic = patcher.model.get_dtype_inference(), patcher.is_dynamic()
    layers = [layer for layer in _layers(patcher.model.diffusion_model) if dynamic or layer.comfy_cast_weights]
    weights = [weight for layer in layers for weight in _weights(layer) if dynamic or weight.dtype != dtype]
    return sum(weight.numel() for weight in weights) * dtype.itemsize


def bytes_elsewhere(network: nn.Module, device: torch.device) -> int:
    """Bytes of the weights that are copied to the device for every use."""
    return sum(
        w.numel() * w.element_size() for layer in _layers(network) for w in _weights(layer) if w.device != device
    )


@contextmanager
def cast_once(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Keep every weight on the device, patched, in the compute dtype of the network.

    To be used inside `gradients`, without which a dynamic layer would hand out its page.
    """
    swaps = Swaps()
    try:
        for layer in _layers(network):
            if _is_cast(layer, device, dtype):
                weight, bias = comfy.ops.cast_bias_weight(layer, dtype=dtype, device=device, bias_dtype=dtype)
                for name, tensor in (("weight", weight), ("bias", bias)):
                    if tensor is not None:
                        swaps.set(layer._parameters, name, nn.Parameter(tensor, requires_grad=False))
                    swaps.set(layer.__dict__, f"{name}_function", [])
        yield
    finally:
        swaps.undo()


def _layers(network: nn.Module) -> list[nn.Module]:
    """The host's layers that have a weight and can cast it; norms are small, and some compute in a dtype of their own."""
    layers = [
        m for m in network.modules() if hasattr(m, "comfy_cast_weights") and getattr(m, "weight", None) is not None
    ]
    return [layer for layer in layers if layer.weight.ndim > 1]


def _weights(layer: nn.Module) -> list[torch.Tensor]:
    return [w for w in (layer.weight, getattr(layer, "bias", None)) if isinstance(w, torch.Tensor)]


def _is_cast(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if casting this layer's weight once saves anything. Quantised weights stay as they are."""
    weights = _weights(layer)
    if any(type(weight) not in (torch.Tensor, nn.Parameter) for weight in weights):
        return False
    patched = bool(layer.weight_function or layer.bias_function)
    return patched or any(w.device != device or (layer.comfy_cast_weights and w.dtype != dtype) for w in weights)
