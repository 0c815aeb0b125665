"""Prepared conditioning, as the host's guiders hold it during a sampling: change its tensors, take single items."""

import copy
import uuid
from collections.abc import Callable

import comfy.conds
from torch import Tensor

NOT_FOR_ALL = ("control", "area", "mask", "gligen", "hooks", "timestep_start", "timestep_end")
"""Entries of a prepared prompt that hold for a part of the image or of the sampling, or need its items in order."""


def map_conds(value, function: Callable[[Tensor], Tensor]):
    """Apply `function` to every tensor of prepared conditioning, also inside the host's cond objects."""
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


def cond_items(conds, items: list[int], size: int) -> dict:
    """Conditioning for some items of the batch: tensors with one entry per item are cut down, shared ones stay."""
    return map_conds(conds, lambda tensor: tensor[items] if tensor.ndim > 0 and len(tensor) == size > 1 else tensor)


def with_items_of_another(conds: dict, other: list[dict], items: list[int], size: int) -> dict | None:
    """Give some items of the batch another positive prompt, in a guider's prepared conds.

    Returns:
        None where either is more than one plain prompt, or the two cannot stand in one tensor.
    """
    changed = {}
    for name, entries in conds.items():
        if "negative" not in name:
            entries = _joined(entries, other, items, size)
            if entries is None:
                return None
        changed[name] = entries
    return changed


def _joined(entries: list[dict] | None, other: list[dict], items: list[int], size: int) -> list[dict] | None:
    if entries is None or len(entries) != 1 or len(other) != 1:
        return None
    entry, mine, theirs = entries[0], other[0]["model_conds"], entries[0]["model_conds"]
    if any(entry.get(key) is not None for key in NOT_FOR_ALL) or mine.keys() != theirs.keys():
        return None
    joined = {name: _joined_cond(cond, mine[name], items, size) for name, cond in theirs.items()}
    if any(cond is None for cond in joined.values()):
        return None
    return [{**entry, "model_conds": joined, "uuid": uuid.uuid5(entry["uuid"], f"another for {items}")}]


def _joined_cond(cond, other, items: list[int], size: int):
    if type(cond) is not type(other):
        return None
    if isinstance(cond, comfy.conds.CONDConstant):
        return cond if not isinstance(cond.cond, Tensor) and cond.cond == other.cond else None
    one, two = cond.cond, other.cond
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.shape[1:] != two.shape[1:]:
        return None
    whole = one[[item % len(one) for item in range(size)]]  # as the host repeats it
    whole[items] = two[[item % len(two) for item in items]].to(whole)
    return cond._copy_with(whole)


class ItemsOfConds:
    """Prepared conditioning for some items of a batch, each with the entry that the host would repeat to it.

    What is made for the same items is kept: a ControlNet's hint is prepared once.
    """

    def __init__(self) -> None:
        self._controls: dict = {}

    def __call__(self, conds: list[list[dict] | None], items: list[int]) -> list[list[dict] | None]:
        """Return the conditions that the host's calc_cond_batch takes, for `items`."""
        return [None if entries is None else [self._entry(entry, items) for entry in entries] for entries in conds]

    def forget(self) -> None:
        """Drop cached ControlNets; call it when the active items change."""
        self._controls.clear()

    def _entry(self, entry: dict, items: list[int]) -> dict:
        # an id of its own, by which step-skipping nodes file what they remember of a prompt's batch
        entry = {**entry, "uuid": uuid.uuid5(entry["uuid"], f"items {items}")}
        entry["model_conds"] = {name: _cond_for_items(cond, items) for name, cond in entry["model_conds"].items()}
        if isinstance(entry.get("mask"), Tensor):
            entry["mask"] = _repeated(entry["mask"], items)
        if entry.get("control") is not None:
            entry["control"] = self._control(entry["control"], items)
        return entry

    def _control(self, control, items: list[int]):
        """Copy a ControlNet and its predecessors, with a hint for each of `items`."""
        key = (id(control), tuple(items))
        if key not in self._controls:
            self._controls[key] = (
                control,
                _control_for_items(control, items),
            )  # with the original, whose id must stay its own
        return self._controls[key][1]


def _control_for_items(control, items: list[int]):
    previous = control.previous_controlnet
    theirs = None if previous is None else _control_for_items(previous, items)
    hint = control.cond_hint_original
    extras = [extra for extra in control.extra_concat_orig if len(extra) > 1]
    if theirs is previous and not extras and (hint is None or len(hint) == 1):
        return control
    control = copy.copy(control)
    control.previous_controlnet = theirs
    control.cond_hint = control.extra_concat = None
    if hasattr(control, "control_input"):  # what a T2I-Adapter computes from its hint
        control.control_input = None
    if hint is not None:
        control.cond_hint_original = _repeated(hint, items)
    control.extra_concat_orig = [_repeated(extra, items) for extra in control.extra_concat_orig]
    return control


def _cond_for_items(cond, items: list[int]):
    if isinstance(cond, comfy.conds.CONDConstant):
        return cond
    if isinstance(cond, comfy.conds.CONDList):
        return cond._copy_with([_repeated(tensor, items) for tensor in cond.cond])
    if isinstance(getattr(cond, "cond", None), Tensor):
        return cond._copy_with(_repeated(cond.cond, items))
    return cond


def _repeated(tensor: Tensor, items: list[int]) -> Tensor:
    """Select items of a tensor that the host repeats or cuts to the size of the batch."""
    return tensor if len(tensor) == 1 else tensor[[item % len(tensor) for item in items]]
