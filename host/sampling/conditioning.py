"""Prepared conditioning, as the host's guiders hold it during a sampling: change its tensors, take single items."""

import copy
import uuid
from collections.abc import Callable

import comfy.conds
from torch import Tensor

NOT_FOR_ALL = ("control", "area", "mask", "gligen", "hooks", "timestep_start", "timestep_end")
"""What a prepared prompt has that holds for a part of the image or of the sampling, or needs its rows in order."""


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


def cond_items(conds, items: list[int], size: int) -> dict:
    """Conditioning for some items of the batch: tensors with one entry per item are cut down, shared ones stay."""
    return map_conds(conds, lambda tensor: tensor[items] if tensor.ndim > 0 and len(tensor) == size > 1 else tensor)


def with_items_of_another(conds: dict, other: list[dict], rows: list[int], size: int) -> dict | None:
    """A guider's prepared conds, of which some rows of the batch have another prompt; the negative ones stay.

    Returns:
        None where either is more than one plain prompt, or the two cannot stand in one tensor.
    """
    changed = {}
    for name, entries in conds.items():
        if "negative" not in name:
            entries = _joined(entries, other, rows, size)
            if entries is None:
                return None
        changed[name] = entries
    return changed


def _joined(entries: list[dict] | None, other: list[dict], rows: list[int], size: int) -> list[dict] | None:
    if entries is None or len(entries) != 1 or len(other) != 1:
        return None
    entry, mine, theirs = entries[0], other[0]["model_conds"], entries[0]["model_conds"]
    if any(entry.get(key) is not None for key in NOT_FOR_ALL) or mine.keys() != theirs.keys():
        return None
    joined = {name: _joined_cond(cond, mine[name], rows, size) for name, cond in theirs.items()}
    if any(cond is None for cond in joined.values()):
        return None
    return [{**entry, "model_conds": joined, "uuid": uuid.uuid5(entry["uuid"], f"another for {rows}")}]


def _joined_cond(cond, other, rows: list[int], size: int):
    if type(cond) is not type(other):
        return None
    if isinstance(cond, comfy.conds.CONDConstant):
        return cond if not isinstance(cond.cond, Tensor) and cond.cond == other.cond else None
    one, two = cond.cond, other.cond
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.shape[1:] != two.shape[1:]:
        return None
    whole = one[[row % len(one) for row in range(size)]]  # as the host repeats it
    whole[rows] = two[[row % len(two) for row in rows]].to(whole)
    return cond._copy_with(whole)


class ItemsOfConds:
    """Prepared conditioning for some rows of a batch, each row with what the host would repeat to it in the whole batch.

    What is made for the same rows is kept: a ControlNet's hint is prepared once.
    """

    def __init__(self) -> None:
        self._controls: dict = {}

    def __call__(self, conds: list[list[dict] | None], rows: list[int]) -> list[list[dict] | None]:
        """The conditions that the host's calc_cond_batch takes, for `rows`."""
        return [None if entries is None else [self._entry(entry, rows) for entry in entries] for entries in conds]

    def forget(self) -> None:
        """The rows that go on are others now."""
        self._controls.clear()

    def _entry(self, entry: dict, rows: list[int]) -> dict:
        # an id of its own, by which step-skipping nodes file what they remember of a prompt's batch
        entry = {**entry, "uuid": uuid.uuid5(entry["uuid"], f"rows {rows}")}
        entry["model_conds"] = {name: _cond_rows(cond, rows) for name, cond in entry["model_conds"].items()}
        if isinstance(entry.get("mask"), Tensor):
            entry["mask"] = _repeated(entry["mask"], rows)
        if entry.get("control") is not None:
            entry["control"] = self._control(entry["control"], rows)
        return entry

    def _control(self, control, rows: list[int]):
        """A ControlNet and those before it: a hint for each item, and what was computed from it, is of other rows."""
        key = (id(control), tuple(rows))
        if key not in self._controls:
            self._controls[key] = (
                control,
                _control_rows(control, rows),
            )  # with the original, whose id must stay its own
        return self._controls[key][1]


def _control_rows(control, rows: list[int]):
    previous = control.previous_controlnet
    theirs = None if previous is None else _control_rows(previous, rows)
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
        control.cond_hint_original = _repeated(hint, rows)
    control.extra_concat_orig = [_repeated(extra, rows) for extra in control.extra_concat_orig]
    return control


def _cond_rows(cond, rows: list[int]):
    if isinstance(cond, comfy.conds.CONDConstant):
        return cond
    if isinstance(cond, comfy.conds.CONDList):
        return cond._copy_with([_repeated(tensor, rows) for tensor in cond.cond])
    if isinstance(getattr(cond, "cond", None), Tensor):
        return cond._copy_with(_repeated(cond.cond, rows))
    return cond


def _repeated(tensor: Tensor, rows: list[int]) -> Tensor:
    """Rows of what the host repeats to the size of the batch, and cuts to it."""
    return tensor if len(tensor) == 1 else tensor[[row % len(tensor) for row in rows]]
