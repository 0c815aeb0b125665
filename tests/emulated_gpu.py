"""A GPU that is not there: tensors that say they are on one, hold their numbers on the CPU, and refuse what it would refuse.

Fake tensors of cuda and mps cannot go backward without the driver, so this is a device of its own name, which torch lets a test
register. Everything is computed, so results can be compared with the CPU's; what is shown is that tensors of two devices never
meet, that no operator is reached which the device does not have, and where the CPU waits for it. It does not show what a
driver does.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from ..tools.comfy_server import PACK_FOLDER

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
NAME = "emulated"
ROOMS = ("models", "methods", "host", "nodes")
PACK = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
LIBRARY = torch.library.Library("aten", "IMPL")
# what MPS does not have (PyTorch 2.11: ATen/native/mps/operations/Pooling.mm and AdaptivePooling.mm, missing kernels)
MISSING_ON_MPS = {"aten::_upsample_bicubic2d_aa_backward", "aten::upsample_trilinear3d_backward", "aten::linalg_eigh"}
POOLS = {"aten::_adaptive_avg_pool2d", "aten::_adaptive_avg_pool2d_backward", "aten::adaptive_avg_pool2d"}
NO_FLOAT64 = (torch.float64, torch.complex128)
# operators whose answer the CPU needs before it can go on
WAITS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
}
MOVES = {"aten::_to_copy", "aten::copy_"}
TAKE_CPU_INDICES = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}


def device() -> torch.device:
    """The emulated device, registered with torch the first time."""
    try:
        return torch.device(NAME, 0)
    except RuntimeError:

        class Module(backend_registration._DummyBackendModule):
            """What torch.emulated is: checkpointing asks it for the state of random numbers, autocast for dtypes."""

            def get_amp_supported_dtype(self) -> list[torch.dtype]:
                return [torch.float16, torch.bfloat16]

            def get_rng_state(self, device=None) -> torch.Tensor:
                return torch.get_rng_state()

            def set_rng_state(self, state: torch.Tensor, device=None) -> None:
                torch.set_rng_state(state)

        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
        for name, make in (("empty_strided", torch.empty_strided), ("empty.memory_format", torch.empty)):
            LIBRARY.impl(
                name, lambda size, *args, _make=make, **kwargs: _allocated(_make, size, args, kwargs), "PrivateUse1"
            )
        LIBRARY.impl("_copy_from", _copied, "PrivateUse1")
        return torch.device(NAME, 0)


def _copied(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    numbers_of(target).copy_(numbers_of(source))
    return target


def _allocated(make, size, args, kwargs) -> "OnDevice":
    """Memory that torch asks the device for past every mode."""
    kept = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "layout")}
    return OnDevice(make(size, *args, **kept))


class OnDevice(torch.Tensor):
    """A tensor of the emulated device. `numbers`: an ordinary tensor with its memory."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device=device(), requires_grad=False,
        )  # fmt: skip
        tensor.numbers = numbers
        return tensor

    def __tensor_flatten__(self):
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(parts, _context, _size, _stride):
        return OnDevice(parts["numbers"])

    def tolist(self):
        if EmulatedGPU.now is not None:
            EmulatedGPU.now.waits[where()] += 1
        return self.numbers.tolist()

    def __repr__(self, **_):
        return f"OnDevice({self.numbers!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(EmulatedGPU.now, function, args, kwargs or {})


class EmulatedGPU(TorchDispatchMode):
    """While active, the emulated device exists.

    Attributes:
        kind: `cuda` or `mps`, for what it refuses.
        waits: the lines of the pack at which the CPU waited for the device, with how often.
    """

    now: "EmulatedGPU | None" = None

    def __init__(self, kind: str = "cuda"):
        super().__init__()
        self.kind, self.waits = kind, Counter()
        self.recording: list | None = None  # operators of the graph that is being recorded

    def __enter__(self):
        device()
        EmulatedGPU.now = self
        self._engine = torch.autograd._engine_run_backward
        torch.autograd._engine_run_backward = self._backward
        return super().__enter__()

    def __exit__(self, *exception):
        EmulatedGPU.now = None
        torch.autograd._engine_run_backward = self._engine
        return super().__exit__(*exception)

    def _backward(self, *args, **kwargs):
        """In this thread: those of autograd were started for the devices that there were."""
        with torch.autograd.set_multithreading_enabled(False):
            return self._engine(*args, **kwargs)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(self, function, args, kwargs or {})


def run(gpu: EmulatedGPU | None, function, args, kwargs):
    """One operator: on the CPU where no tensor is of the device and none is asked for there."""
    name = function._schema.name
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    before = tensors((args, kwargs))
    there = any(isinstance(tensor, OnDevice) for tensor in before)
    wanted = target is not None and target.type == NAME
    if not there and not wanted:
        return function(*args, **kwargs)
    if name == "aten::_has_compatible_shallow_copy_type":  # of a parameter and its copy on another device
        return False
    if gpu is not None and function.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return in_parts(gpu, function, args, kwargs)  # in inference mode operators come here whole
    refuse_mix(name, before)
    plain = {key: value for key, value in kwargs.items() if key != "device"}
    if target is not None:
        plain["device"] = CPU
    plain.pop("pin_memory", None)
    args_on_cpu, plain = tree_map(numbers_of, (args, plain))
    away = name == "aten::_to_copy" and target is not None and target.type != NAME
    if gpu is not None and (
        name in WAITS or by_mask(name, before) or away or (name == "aten::copy_" and not isinstance(args[0], OnDevice))
    ):
        gpu.waits[where()] += 1
        refuse_while_recording(gpu, name)
    if gpu is not None and name in MOVES and any(not isinstance(tensor, OnDevice) for tensor in before):
        refuse_while_recording(gpu, name)  # a copy from the CPU's ordinary memory waits for it
    result = function(*args_on_cpu, **plain)
    if gpu is not None and gpu.recording is not None:
        gpu.recording.append((function, args_on_cpu, plain, result))
    if gpu is not None and gpu.kind == "mps":
        refuse_as_mps(name, before, tensors(result))
    if away or (name == "aten::copy_" and not isinstance(args[0], OnDevice)):
        return result.clone() if away and result is args_on_cpu[0] else args[0] if name == "aten::copy_" else result
    result = tree_map(lambda x: wrapped(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(function, args, kwargs, result) if there else result


def wrapped(numbers: torch.Tensor) -> OnDevice:
    """An inference tensor where `numbers` is one: a view of another tensor is none, also in inference mode."""
    with torch.inference_mode(numbers.is_inference()):
        return OnDevice(numbers)


def refuse_while_recording(gpu: EmulatedGPU, name: str) -> None:
    if gpu.recording is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})")


class Graph:
    """What torch.cuda.CUDAGraph is on this device: operators that are done again, from and into the memory that they had."""

    def __init__(self):
        self.operators: list = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, result in self.operators:
            for kept, new in zip(tensors(result), tensors(function(*args, **kwargs))):
                if kept.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    kept.copy_(new)


@contextmanager
def record(graph: Graph, pool=None) -> Iterator[None]:
    """What torch.cuda.graph is."""
    gpu = EmulatedGPU.now
    assert gpu is not None
    gpu.recording = []
    try:
        yield
        graph.operators = gpu.recording
    finally:
        gpu.recording = None


class Stream:
    """The one that there is."""

    def wait_stream(self, other: "Stream") -> None:
        pass


def with_graphs(monkeypatch) -> list[Graph]:
    """torch.cuda's graphs and streams on this device. Returns a list that fills with the graphs that are made."""
    made: list[Graph] = []

    def graph() -> Graph:
        made.append(Graph())
        return made[-1]

    for name, value in {
        "CUDAGraph": graph, "graph": record, "graph_pool_handle": object, "Stream": Stream, "current_stream": Stream,
        "stream": lambda _: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def in_parts(gpu: EmulatedGPU, function, args, kwargs):
    TorchDispatchMode.__enter__(gpu)
    try:
        return function.decompose(*args, **kwargs)
    finally:
        TorchDispatchMode.__exit__(gpu, None, None, None)


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def numbers_of(value):
    return value.numbers if isinstance(value, OnDevice) else value


def by_mask(name: str, before: list[torch.Tensor]) -> bool:
    """Whether tensors are indexed by a mask of the device, whose hits the CPU must count."""
    return name in TAKE_CPU_INDICES and any(x.dtype == torch.bool and isinstance(x, OnDevice) for x in before[1:])


def refuse_mix(name: str, before: list[torch.Tensor]) -> None:
    if name in MOVES or name in TAKE_CPU_INDICES:
        return
    others = [tensor for tensor in before if not isinstance(tensor, OnDevice) and tensor.ndim]
    if others and len(others) < len(before):
        raise RuntimeError(f"{name}: expected all tensors on the same device, but found {NAME} and {others[0].device}.")


def refuse_as_mps(name: str, before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    if name in MISSING_ON_MPS:
        raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device.")
    if name in POOLS:
        sides = [tensor.shape[-2:] for tensor in (*before, *after)]
        for larger, smaller in zip(map(max, zip(*sides)), map(min, zip(*sides))):
            if larger % smaller:
                raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")
    if any(tensor.dtype in NO_FLOAT64 for tensor in after):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")


def where() -> str:
    """The innermost function of the pack that is being run, such as host/scorers/scoring.py:_over_chunks."""
    found = [f"{room}:{frame.name}" for frame in traceback.extract_stack() if (room := _in_pack(frame.filename))]
    return found[-1] if found else "elsewhere"


def _in_pack(filename: str) -> str:
    """methods/gate.py and the like; "" for a file that is in none of the pack's rooms."""
    parts = Path(filename).parts
    at = next(
        (i for i, part in enumerate(parts[:-1]) if part in (PACK.name, PACK_FOLDER) and parts[i + 1] in ROOMS), None
    )
    return "" if at is None else "/".join(parts[at + 1 :])
