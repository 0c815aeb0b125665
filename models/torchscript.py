"""The tensors of a TorchScript archive, as OpenAI published CLIP, read without running anything that is in it.

Such an archive is a zip of code, of raw tensors, and of a data.pkl that says which tensor belongs where. See `models.pickles`.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from .pickles import Call, Module, follow
from .torch_archive import MOST_TENSORS, TorchArchive, is_tensor, names_in

DEEPEST = 100  # modules in modules
LONGEST_NAME = 1000


def is_torchscript(path: Path) -> bool:
    """Return true for an archive with a program in it."""
    try:
        return any(name.partition("/")[2].startswith("code/") for name in names_in(path))
    except Exception:  # a damaged archive can fail with nearly any type; whoever reads it says so
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor of the archive under the name that `state_dict` gives it, mapped from the file.

    Raises:
        ValueError: not such an archive, damaged, or with instructions that those of tensors do not need.
    """
    try:
        with TorchArchive(path, check_sums=True) as archive:
            calls = _tensors_below(follow(archive.instructions()))
            return {name: archive.tensor(call) for name, call in calls.items()}
    except Exception as error:  # damaged instructions can fail with nearly any type
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"its archive cannot be read ({type(error).__name__}: {said})") from error


def _tensors_below(tree: Any) -> dict[str, Call]:
    """Calls that make the tensors of a module and of all below it, by their dotted names; a module that is there twice counts once."""
    found: dict[str, Call] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        prefix, value, depth = waiting.pop()
        if is_tensor(value):
            found[prefix] = value
            continue
        attributes = value.attributes if isinstance(value, Module) else value
        if not isinstance(attributes, dict) or id(attributes) in seen:
            continue
        seen.add(id(attributes))
        if depth == DEEPEST or len(waiting) + len(found) + len(attributes) > MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS} tensors, or modules more than {DEEPEST} deep")
        for name, item in reversed(attributes.items()):
            full = f"{prefix}.{name}" if prefix else str(name)
            if len(full) > LONGEST_NAME:
                raise ValueError(f"a name in it has more than {LONGEST_NAME} letters")
            waiting.append((full, item, depth + 1))
    return found
