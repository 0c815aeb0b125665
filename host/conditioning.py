"""Prepared conditioning, as the host's guiders hold it during a sampling: change its tensors, take single items."""

import copy
from collections.abc import Callable

from torch import Tensor


def map_conds(value, function: Callable[[Tensor], Tensor]):
    """The prepared conditioning with `function` applied to every tensor, also those inside the host's cond objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_conds(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_conds(item, function) for item in value)
    if hasattr(value, "cond"):
        value = copy.copy(value)
        value.cond = map_conds(value.cond, function)
    return value


def cond_items(conds: dict, items: list[int], size: int) -> dict:
    """Conditioning for some items of the batch: tensors with one entry per item are cut down, shared ones stay."""
    return map_conds(conds, lambda tensor: tensor[items] if tensor.ndim > 0 and len(tensor) == size > 1 else tensor)
