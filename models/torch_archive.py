"""The zip archives that torch writes: pickled instructions, and the bytes of every storage, never packed.

Nothing that an archive says of its sizes is believed: a storage must lie in the file with exactly the bytes that its tensors need, and is
mapped, not read. So opening one costs no more memory than the file has bytes.
"""

import io
import math
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, UntypedStorage

from .pickles import Call, Stored

MOST_READ = 16 << 20  # bytes of a table of contents, or of the instructions; the authors' checkpoint has about 130,000
MOST_TENSORS = 50_000
MOST_DIMENSIONS = 64
MOST_SHARED = 2  # times the size of the file that all its tensors together may have
_STORAGES = {
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_REBUILD = re.compile(r"torch\._utils _rebuild_\w+|torch\._tensor _rebuild_from_type_v2")
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class NotPlainError(ValueError):
    """A tensor that is sparse, quantised or nested, or that claims more numbers than the file holds."""

    def __init__(self) -> None:
        super().__init__("is not a plain dense tensor with all its values in the file")


class _BoundedFile(io.FileIO):
    """A file of which nothing large is read at once, such as a table of contents that is said to have gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MOST_READ:
            raise ValueError(f"a part of it has {size} bytes, expected at most {MOST_READ}")
        return super().read(size)


def names_in(path: Path) -> list[str]:
    """Names of the members of a zip archive.

    Raises:
        Exception: of nearly any type, for a damaged one.
    """
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        return archive.namelist()


class TorchArchive:
    """An opened archive; `with` closes it. Its tensors may outlive it.

    Args:
        source: the file, or its content.
        check_sums: compare the bytes of every storage with their checksum, which reads all of them.

    Raises:
        Exception: of nearly any type, for a damaged one.
    """

    def __init__(self, source: Path | bytes, check_sums: bool = False) -> None:
        self._source = source
        self._check_sums = check_sums
        self._file = io.BytesIO(source) if isinstance(source, bytes) else _BoundedFile(source)
        self.size = self._file.seek(0, io.SEEK_END)
        self._left = MOST_SHARED * self.size + (1 << 16)  # bytes that its tensors may still have
        self._whole: UntypedStorage | None = None
        self._storages: dict[tuple[str, int], UntypedStorage] = {}
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._root = next(name for name in self._zip.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TorchArchive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def instructions(self) -> bytes:
        """Instructions of its data.pkl."""
        if f"{self._root}byteorder" in self._zip.namelist() and self._read("byteorder") != sys.byteorder.encode():
            raise ValueError("its numbers have the byte order of another kind of machine")
        return self._read("data.pkl")

    def _read(self, name: str) -> bytes:
        with self._zip.open(self._root + name) as member:
            content = member.read(MOST_READ + 1)
        if len(content) > MOST_READ:
            raise ValueError(f"its {name} has more than {MOST_READ >> 20} MB")
        return content

    def tensor(self, call: Call) -> Tensor:
        """The tensor that a call of `is_tensor` would make, mapped from the file.

        Raises:
            NotPlainError: it is another kind of tensor, or has numbers that the file lacks.
            Exception: of nearly any type, for damaged instructions.
        """
        for _ in range(3):  # a tensor may be wrapped as a parameter, and one of a class of its own
            function, arguments = call
            if function == "torch._utils _rebuild_parameter":
                call = arguments[0]
            elif function == "torch._tensor _rebuild_from_type_v2":
                call = Call(arguments[0], arguments[2])
            if not is_tensor(call):
                raise NotPlainError
        function, arguments = call
        if function not in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"):
            raise NotPlainError
        storage, dtype = self._storage(arguments[0])
        if function.endswith("_v3"):
            dtype = getattr(torch, arguments[6].removeprefix("torch "))
        offset, size, stride = arguments[1:4]
        return self._view(storage, dtype, offset, size, stride)

    def _view(self, storage: UntypedStorage, dtype: torch.dtype, offset: int, size: tuple, stride: tuple) -> Tensor:
        numbers = (offset, *size, *stride)
        if not len(size) == len(stride) <= MOST_DIMENSIONS or not all(type(number) is int and number >= 0 for number in numbers):
            raise NotPlainError
        count = math.prod(size)
        end = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1 if count else offset
        if max(end, count) * dtype.itemsize > storage.nbytes():
            raise NotPlainError
        self._left -= count * dtype.itemsize
        if self._left < 0:
            raise ValueError(f"its tensors claim more than {MOST_SHARED} times the {self.size} bytes of the file")
        empty: Any = torch.empty(0, dtype=dtype)  # torch's stubs know no set_ with a storage
        return empty.set_(storage, offset, size, stride)

    def _storage(self, reference: Any) -> tuple[UntypedStorage, torch.dtype]:
        """Map the storage named by ("storage", kind, key, device, count)."""
        name: tuple[Any, ...] = reference.name if isinstance(reference, Stored) else ()
        _, kind, key, _, count = name
        dtype = _STORAGES.get(kind.rpartition(" ")[2])
        if dtype is None or type(count) is not int or count < 0:
            raise NotPlainError
        nbytes = count * dtype.itemsize
        if (key, nbytes) not in self._storages:
            self._storages[key, nbytes] = self._mapped(f"data/{key}", nbytes, dtype.itemsize)
        return self._storages[key, nbytes], dtype

    def _mapped(self, name: str, nbytes: int, alignment: int) -> UntypedStorage:
        member = self._zip.getinfo(self._root + name)
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its {name} is compressed, which torch never does")
        start = self._start(member)
        if min(member.file_size, member.compress_size, self.size - start) < nbytes:
            raise ValueError(f"its {name} is cut short: it has {member.file_size} bytes, its tensor needs {nbytes}")
        if member.file_size > nbytes:
            raise ValueError(f"its {name} has {member.file_size} bytes, its tensor needs {nbytes}")
        if nbytes == 0:
            return UntypedStorage(0)
        if self._whole is None:
            content = self._source
            if isinstance(content, bytes):
                self._whole = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
            else:
                self._whole = cast(UntypedStorage, UntypedStorage.from_file(str(content), False, self.size))
        part = self._whole[start : start + nbytes]
        if self._check_sums and zlib.crc32(_bytes_of(part)) != member.CRC:
            raise ValueError(f"the bytes of its {name} do not have their checksum")
        return part.clone() if start % alignment else part

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Offset of a member's bytes: behind a header of its own, whose length the table of contents does not give."""
        self._file.seek(member.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise ValueError(f"its {member.filename[:100]} is not where its table of contents says")
        return member.header_offset + _LOCAL_HEADER.size + name + extra


def _bytes_of(storage: UntypedStorage) -> memoryview:
    empty: Any = torch.empty(0, dtype=torch.uint8)
    return empty.set_(storage).numpy().data


def is_tensor(value: Any) -> bool:
    """Return true if an object of the instructions is a call that makes a tensor."""
    return isinstance(value, Call) and isinstance(value.function, str) and bool(_REBUILD.fullmatch(value.function))
