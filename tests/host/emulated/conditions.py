"""Conditions of a GPU machine, taken as true on a CPU: the host's own code, with one line of it reading otherwise.

They show what the host's code does under a condition, not what a driver does.
"""

import contextlib
import inspect
import types
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def host_function(function: types.FunctionType, **replacements: str) -> types.FunctionType:
    """The host's own function with lines of its source replaced; each must be there in one of its spellings."""
    source = inspect.getsource(function)
    for old, new in replacements.values():
        assert old in source, f"{function.__name__} of this host reads otherwise: {old!r} is not in it"
        source = source.replace(old, new)
    namespace = dict(function.__globals__)
    exec(source, namespace)  # noqa: S102 - the host's source, read from its own file
    return namespace[function.__name__]


class Stream:
    """What torch.cuda.Stream offers to the host; it counts the kernels that were queued before it last waited."""

    def __init__(self, clock: list[int]):
        self.clock, self.waited, self.freed = clock, 0, []

    @staticmethod
    def as_context(_stream):
        return contextlib.nullcontext()

    def wait_stream(self, _other):
        self.waited = self.clock[0]

    def synchronize(self):
        pass


class Hazards(TorchDispatchMode):
    """Counts the casts on a side stream into memory that the main stream may still read."""

    def __init__(self):
        super().__init__()
        self.clock, self.found, self.casts = [0], 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.clock[0] += 1
        return result


def partly_loaded(monkeypatch, network: torch.nn.Module, cuda_malloc: bool) -> Hazards:
    """Every weight of `network` lies elsewhere and comes through the host's cast buffers and side streams.

    Args:
        cuda_malloc: NVIDIA's default, a buffer of its own for each cast; else the shared ones (AMD, some NVIDIA settings).
    """
    import comfy.model_management as mm
    import comfy.ops
    from comfy.cli_args import args

    hazards = Hazards()
    streams = [Stream(hazards.clock), Stream(hazards.clock)]

    def get_offload_stream(_device):
        if mm.NUM_STREAMS == 0:
            return None
        streams[0].wait_stream(None)  # the host lets the oldest wait and takes the next
        streams.reverse()
        return streams[0]

    def cast_to(weight, dtype=None, device=None, non_blocking=False, copy=False, stream=None, r=None):
        hazards.casts += 1
        if stream is not None:
            hazards.found += any(freed > stream.waited for freed in stream.freed)
            stream.freed.clear()
        if r is None:  # the branch for a weight on another device
            r = torch.empty_like(weight, dtype=dtype, device=device)
            if stream is not None:
                storage = r.untyped_storage()
                weakref.finalize(storage, lambda: stream.freed.append(hazards.clock[0]))
        r.copy_(weight)
        return r

    elsewhere = host_function(comfy.ops.cast_bias_weight, device=("device != s.weight.device or", "True or"))
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", elsewhere)
    monkeypatch.setattr(mm, "get_offload_stream", get_offload_stream)
    monkeypatch.setattr(mm, "cast_to", cast_to)
    monkeypatch.setattr(mm, "NUM_STREAMS", 2)
    monkeypatch.setattr(args, "cuda_malloc", cuda_malloc)
    monkeypatch.setattr(mm, "STREAM_CAST_BUFFERS", {})
    monkeypatch.setattr(mm, "LARGEST_CASTED_WEIGHT", (None, 0))
    for module in network.modules():
        if hasattr(module, "comfy_cast_weights"):
            monkeypatch.setattr(module, "comfy_cast_weights", True, raising=False)
    return hazards


class Page:
    """A layer's slice of dynamic VRAM: memory, and whether another allocation has had it since."""

    def __init__(self, size: int):
        self.memory, self.generation, self.pinned = torch.empty(size, dtype=torch.uint8).untyped_storage(), 0, 0

    def tensor(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(self.memory, 0, (self.memory.nbytes(),), (1,))

    def evict(self) -> None:
        """Another allocation takes the page, unless it is pinned."""
        if self.pinned <= 0:
            self.tensor().fill_(63)
            self.generation += 1


def dynamic(monkeypatch, network: torch.nn.Module) -> list[Page]:
    """Every layer of `network` with a weight is in dynamic VRAM (comfy-aimdo), as on a default NVIDIA card."""
    import comfy.memory_management
    import comfy.ops
    import comfy.pinned_memory
    import comfy_aimdo.model_vbar as vbar
    import comfy_aimdo.torch

    def fault(page):
        page.pinned += 1
        return ("signature", id(page), page.generation)

    monkeypatch.setattr(vbar, "vbar_fault", fault)
    monkeypatch.setattr(vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b)
    monkeypatch.setattr(vbar, "vbar_unpin", lambda page: setattr(page, "pinned", page.pinned - 1))
    monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda page, device: page.tensor(), raising=False)
    for name in ("get_pin", "pin_memory"):
        monkeypatch.setattr(comfy.pinned_memory, name, lambda *args, **kwargs: None)
    if hasattr(comfy.ops, "cast_bias_weight_with_vbar"):  # older hosts
        name, lines = "cast_bias_weight_with_vbar", {"cpu": ("comfy.model_management.is_device_cpu(device)", "False")}
    else:
        name = "cast_bias_weight"
        lines = {
            "cpu": ('hasattr(s, "_v") and comfy.model_management.is_device_cpu(device)', "False"),
            "elsewhere": ('hasattr(s, "_v") and s.weight.device != device', 'hasattr(s, "_v")'),
        }
    monkeypatch.setattr(comfy.ops, name, host_function(getattr(comfy.ops, name), **lines))
    pages = []
    for key, module in network.named_modules():
        if not hasattr(module, "comfy_cast_weights") or getattr(module, "weight", None) is None:
            continue
        geometry = comfy.memory_management.tensors_to_geometries([module.weight, module.bias])
        pages.append(Page(comfy.memory_management.vram_aligned_size(geometry)))
        fields = {
            "comfy_cast_weights": True, "seed_key": key, "_v": pages[-1], "_v_signature": None, "weight_function": [],
            "bias_function": [], "weight_lowvram_function": None, "bias_lowvram_function": None,
        }  # fmt: skip
        for field, value in fields.items():
            monkeypatch.setattr(module, field, value, raising=False)
    return pages


def dynamic_patcher(model, load_device, offload_device):
    """A patcher that says it is dynamic, as the host's does; its loader has no other to offer."""
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

        def loaded_ram_size(self):
            return 0

        def get_non_dynamic_delegate(self):
            raise RuntimeError("cached_patcher_init is not set up for this loader")

    return Dynamic(model, load_device, offload_device)
