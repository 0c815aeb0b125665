"""The tensors of a TorchScript archive, as OpenAI published CLIP, read without running anything that is in it.

Such an archive is a zip of code, of raw tensors, and of a data.pkl that says which tensor belongs where. Its instructions are
walked here one by one and only ever make dicts, lists and tuples: what would call a function in an ordinary reader is
kept as the name of that function and its arguments.
"""

import zipfile
from pathlib import Path
from pickletools import genops
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_NOTHING = {"PROTO", "FRAME", "STOP"}
_VALUES = {
    "GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
_MARK = object()


class Call(NamedTuple):
    """A call that is not made."""

    function: Any
    arguments: Any


class Stored(NamedTuple):
    """The name under which something lies elsewhere in the archive."""

    name: Any


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with a program in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archive under the name that `state_dict` gives it.

    Raises:
        ValueError: not such an archive, damaged, or with instructions that those of tensors do not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            tree = _walk(archive.read(root))
            tensors: dict[str, Tensor] = {}
            _collect(tree, "", archive, root.removesuffix("data.pkl"), tensors)
            return tensors
    except Exception as error:  # damaged instructions can fail with nearly any type
        raise ValueError(f"its archive cannot be read ({type(error).__name__}: {error})") from error


def _walk(instructions: bytes) -> Any:
    """What the instructions build, with a `Call` where they would call something."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def to_mark() -> list[Any]:
        place = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[place + 1 :]
        del stack[place:]
        return items

    for instruction, argument, _ in genops(instructions):
        name: str = instruction.name
        if name in _NOTHING:
            continue
        if name == "MARK":
            stack.append(_MARK)
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
            stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif "PUT" in name:
            memo[argument] = stack[-1]
        elif "GET" in name:
            stack.append(memo[argument])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = to_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = to_mark()
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name == "BINPERSID":
            stack.append(Stored(stack.pop()))
        elif name == "NEWOBJ":
            stack[-2:] = [{}]  # a module of whatever class: its attributes follow
        elif name == "BUILD":
            attributes = stack.pop()
            stack[-1].update(attributes)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(Call(function, arguments))
        else:
            raise LookupError(f"it has the instruction {name}")
    return stack.pop()


def _collect(value: Any, prefix: str, archive: zipfile.ZipFile, root: str, tensors: dict[str, Tensor]) -> None:
    """Tensors of a module and of all below it, by their dotted names."""
    if isinstance(value, Call) and value.function == _REBUILD:
        tensors[prefix] = _tensor(value, archive, root)
    elif isinstance(value, dict):
        for name, item in value.items():
            _collect(item, f"{prefix}.{name}" if prefix else str(name), archive, root, tensors)


def _tensor(call: Call, archive: zipfile.ZipFile, root: str) -> Tensor:
    """From the bytes of its storage: (storage, offset, size, stride, ...)."""
    storage, offset, size, stride = call.arguments[:4]
    _, kind, key, _, count = storage.name
    dtype = _DTYPES[kind.split()[-1]]
    content = bytearray(archive.read(f"{root}data/{key}"))
    if len(content) < count * dtype.itemsize:
        raise LookupError(f"its tensor {key} is cut short")
    return torch.frombuffer(content, dtype=dtype, count=count).as_strided(size, stride, offset)
