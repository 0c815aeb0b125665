"""Tensors of a safetensors file or of a torch pickle, by name, memory-mapped: what is not needed is never read.

Neither kind of file is trusted. Sizes are compared with those of the file before any memory is taken, and nothing that a pickle names is
called.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from . import known_files
from .pickles import follow
from .torch_archive import MOST_TENSORS, NotPlainError, TorchArchive, is_tensor

MOST_HEADER = 16 << 20  # bytes of the header of a safetensors file; those of large models have half a million

# What torch itself writes into files of tensors and plain numbers; nothing of it is ever called. The optimizer state of an original
# checkpoint holds numpy scalars, whose constructor has two names under numpy 1 and 2.
_ALLOWED = re.compile(
    r"torch(\.storage)? \w+Storage|torch (Size|device|Tensor|[a-z]*(float|int|bool|complex)\w*|per_\w+)|torch\.serialization _get_layout"
    r"|torch\._utils _rebuild_\w+|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter (Parameter|Buffer)"
    r"|collections (OrderedDict|Counter)|_codecs encode|builtins (set|complex)|numpy(\._?core\.multiarray scalar| dtype( [?biuf]\d*)?)"
)


class CheckpointError(ValueError):
    """A file that is no checkpoint of the expected kind; the message says what it is and what to do."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of a ValueError that lacks it, and make it a CheckpointError."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, CheckpointError) and str(error).startswith(f"{path.name}: "):
            raise
        raise CheckpointError(f"{path.name}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the tensors of a safetensors file or torch pickle.

    Returns:
        (state_dict without the DDP prefix, safetensors metadata or {}).

    Raises:
        CheckpointError: missing, damaged, neither format, or holding anything but tensors and plain numbers.
    """
    metadata: dict[str, str] = {}
    start = _read_start(path)
    if start.startswith(b"PK\x03\x04"):
        tensors = _read_pickle(path)
    elif start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path, int.from_bytes(start[:8], "little"))
    elif known := known_files.of_start(start):
        raise CheckpointError(f"{path.name}: {known}")
    else:
        raise CheckpointError(f"{path.name}: neither a safetensors file nor a torch checkpoint. Download it again.")
    if not tensors:
        raise CheckpointError(f"{path.name}: holds no tensors.")
    with naming(path):
        return renamed(tensors, lambda key: key.removeprefix("module.")), metadata


def _read_start(path: Path) -> bytes:
    if path.is_dir():
        known = known_files.of_folder(path) or "a folder, expected a file. Choose a file in it."
        raise CheckpointError(f"{path.name}: {known}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.name}: no such file. Put Latent-CLIP weights into ComfyUI/models/latent_clip."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read ({error}). Check its permissions and the disk.") from error
    if not start:
        raise CheckpointError(f"{path.name}: an empty file. Download it again.")
    return start


def renamed(tensors: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same tensors under other names.

    Raises:
        CheckpointError: two would have one name.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if (name := rename(key)) in found:
            raise CheckpointError(
                f"Two tensors of the file are both {first_names([name])}, expected one. It mixes two layouts."
            )
        found[name] = tensor
    return found


def _read_safetensors(path: Path, header: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if header > MOST_HEADER:
            raise ValueError(f"its header claims {header} bytes, expected at most {MOST_HEADER}")
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if len(keys) > MOST_TENSORS:
                raise ValueError(f"it has {len(keys)} tensors, expected at most {MOST_TENSORS}")
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except Exception as error:  # a damaged header can fail with nearly any type
        raise CheckpointError(
            f"{path.name}: damaged safetensors file ({_said(error)}). Download or convert it again."
        ) from error


def read_tensor_bytes(content: bytes, name: str) -> Tensor:
    """The one tensor of a small torch file, as the authors' shards of latents hold them.

    Raises:
        CheckpointError: it is damaged, or holds anything but one tensor.
    """
    try:
        with TorchArchive(content) as archive:
            made = follow(archive.instructions(), _check_name)
            tensor = archive.tensor(made) if is_tensor(made) else None
    except NotPlainError as error:
        raise CheckpointError(f"{name}: expected one plain tensor, got one that {error}.") from error
    except Exception as error:  # as in _read_pickle
        raise CheckpointError(
            f"{name}: not a readable torch tensor, or it holds more than tensors, which is refused because pickles can run code "
            f"({_said(error)})."
        ) from error
    if tensor is None:
        raise CheckpointError(f"{name}: expected one plain tensor, got {type(made).__name__}.")
    return tensor


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors alone, mapped from the file: neither the optimizer nor anything else in it is made."""
    if known := known_files.of_zip(path):
        raise CheckpointError(f"{path.name}: {known}")
    try:
        with TorchArchive(path) as archive:
            content = follow(archive.instructions(), _check_name)
            return _tensors_in(content, archive)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    except Exception as error:  # a damaged pickle can fail with nearly any type; every one means the same to the user
        raise CheckpointError(
            f"{path.name}: not a readable torch checkpoint, or it holds more than tensors, which is refused because "
            f"pickles can run code ({_said(error)}). Download it again from its authors."
        ) from error


def _tensors_in(content: object, archive: TorchArchive) -> dict[str, Tensor]:
    calls = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(calls, dict) or not all(isinstance(key, str) and is_tensor(call) for key, call in calls.items()):
        kind = "Tensor" if is_tensor(content) else type(content).__name__
        raise CheckpointError(f"expected a state_dict of tensors, got {kind} with other content.")
    if len(calls) > MOST_TENSORS:
        raise CheckpointError(f"it has {len(calls)} tensors, expected at most {MOST_TENSORS}.")
    tensors: dict[str, Tensor] = {}
    for key, call in calls.items():
        try:
            tensors[key] = archive.tensor(call)
        except NotPlainError as error:
            raise CheckpointError(f"{first_names([key])} {error}.") from error
    return tensors


def _check_name(name: str) -> None:
    """Refuse functions and classes that files of tensors do not need.

    Raises:
        ValueError: it is another one.
    """
    if not _ALLOWED.fullmatch(name):
        raise ValueError(f"it asks for {name.replace(' ', '.')[:100]}")


def _said(error: Exception) -> str:
    """The message of an error as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_names(keys: Iterable[str]) -> str:
    """The first three, as one line however odd they are."""
    return ", ".join(" ".join(key.split())[:100] for key in islice(keys, 3))
