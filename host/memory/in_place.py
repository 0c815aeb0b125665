"""Networks that write into their activations, as the host's transformers do to save memory (`img += ...` in Flux's blocks).

Autograd refuses a tensor that was overwritten after it was kept for backward. Here a kept tensor is copied just before it is
overwritten, and nothing else is.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WRITES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"}


class _Kept:
    """Tensor that autograd keeps; an alias of it, until its memory is about to be overwritten."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.version, self.is_alias = tensor, 0, False
        if _is_plain(tensor):
            self.tensor, self.version, self.is_alias = tensor.detach(), tensor._version, True

    def copy(self) -> None:
        self.tensor, self.is_alias = self.tensor.clone(), False

    def unpack(self) -> Tensor:
        if self.is_alias and self.tensor._version != self.version:
            raise RuntimeError("one of the variables needed for the gradient was modified by an inplace operation")
        return self.tensor


def _is_plain(tensor: Tensor) -> bool:
    """Return True if the tensor has writable memory of its own; quantised weights have not, and are never overwritten."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta"


class _CopyBeforeWrite(TorchFunctionMode):
    """Torch function mode that finds calls that write into a kept tensor, and copies it first."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, list[weakref.ref[_Kept]]] = {}

    def keep(self, tensor: Tensor) -> _Kept:
        one = _Kept(tensor)
        if not one.is_alias:
            return one
        place = tensor.untyped_storage().data_ptr()
        alive = [other for other in self._kept.get(place, ()) if other() is not None]
        self._kept[place] = [*alive, weakref.ref(one)]
        return one

    def __torch_function__(self, func: Callable, types, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        writes = name in WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        targets = [args[0] if writes and args else None, kwargs.get("out")]
        for target in targets:
            if isinstance(target, Tensor) and _is_plain(target):
                for other in self._kept.pop(target.untyped_storage().data_ptr(), ()):
                    if (one := other()) is not None:
                        one.copy()
        return func(*args, **kwargs)


@contextmanager
def writable_activations() -> Iterator[None]:
    """Let a network write into tensors that autograd keeps. The backward pass must be inside too."""
    mode = _CopyBeforeWrite()
    with torch.autograd.graph.saved_tensors_hooks(mode.keep, _Kept.unpack), mode:
        yield


def recomputed(forward: Callable, args: tuple, kwargs: dict) -> Any:
    """Run `forward(*args, **kwargs)`; autograd keeps only its inputs and computes the rest again in the backward pass.

    PyTorch's own checkpoint would compute it again from what `forward` has overwritten. Tensors are taken from the arguments
    and from lists and dicts in them; the result is a tensor or a tuple of tensors.
    """
    tensors: list[Tensor] = []
    _gather((args, kwargs), tensors)

    def run(given: list[Tensor]) -> Any:
        # copies, as the block may write into them, and what went in is needed again
        mapping = {id(tensor): new.clone() for tensor, new in zip(tensors, given)}
        args_now, kwargs_now = _replaced((args, kwargs), mapping)
        return forward(*args_now, **kwargs_now)

    return _Recomputed.apply(run, *tensors)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Callable, *tensors: Tensor) -> Any:
        ctx.run, ctx.wanted = run, [tensor.requires_grad for tensor in tensors]
        ctx.save_for_backward(*tensors)
        return run(list(tensors))

    @staticmethod
    def backward(ctx, *cotangents: Tensor) -> tuple:
        inputs = [t.detach().requires_grad_(wanted) for t, wanted in zip(ctx.saved_tensors, ctx.wanted)]
        with torch.enable_grad(), writable_activations():
            results = ctx.run(inputs)
            results = results if isinstance(results, tuple) else (results,)
            pairs = [(r, c) for r, c in zip(results, cotangents) if isinstance(r, Tensor) and r.requires_grad]
            leaves = [tensor for tensor in inputs if tensor.requires_grad]
            outs, backs = [r for r, _ in pairs], [c for _, c in pairs]
            found = iter(torch.autograd.grad(outs, leaves, backs, allow_unused=True))
        return None, *(next(found) if wanted else None for wanted in ctx.wanted)


def _gather(value: Any, tensors: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        if not value.is_inference():  # the host's own, made before: autograd keeps none, and nobody can overwrite them here
            tensors.append(value)
    elif type(value) is dict:
        for item in value.values():
            _gather(item, tensors)
    elif type(value) in (list, tuple):
        for item in value:
            _gather(item, tensors)


def _replaced(value: Any, mapping: dict[int, Tensor]) -> Any:
    """Copy dicts and lists at every depth, with their tensors replaced; return everything else unchanged."""
    if isinstance(value, Tensor):
        return mapping.get(id(value), value)
    if type(value) is dict:
        return {key: _replaced(item, mapping) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced(item, mapping) for item in value)
    return value
