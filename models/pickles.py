"""Pickled instructions, followed without calling anything that they name.

An ordinary unpickler makes whatever a file asks for, also five gigabytes of zeros out of ten bytes. This one only ever makes dicts, lists,
tuples and numbers: a call is kept as the name of its function and its arguments. Every instruction costs a fixed amount of memory, so that
what is made is bounded by the length of the instructions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pickletools import genops
from typing import Any, NamedTuple

MOST_INSTRUCTIONS = 2_000_000  # the authors' checkpoint of 1.9 GB has about 40,000

_NOTHING = {"PROTO", "FRAME", "STOP"}
_VALUES = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


class Call(NamedTuple):
    """A call that is not made."""

    function: Any
    arguments: Any


class Stored(NamedTuple):
    """The name under which something lies elsewhere in the archive."""

    name: Any


@dataclass(eq=False, slots=True)
class Module:
    """An object of whatever class: nothing but its attributes."""

    attributes: Any = None


def follow(instructions: bytes, check: Callable[[str], None] = lambda name: None) -> Any:
    """The objects that the instructions build, with a `Call` where they would call something.

    Args:
        check: called with "module name" of every function and class that they name; raises for one that is not allowed.

    Raises:
        Exception: of nearly any type, for damaged instructions.
    """
    machine = _Machine(check)
    for count, (instruction, argument, _) in enumerate(genops(instructions)):
        if count == MOST_INSTRUCTIONS:
            raise ValueError(f"it has more than {MOST_INSTRUCTIONS} instructions")
        machine.step(instruction.name, argument)
    return machine.stack.pop()


class _Machine:
    """The stack of the objects in the making, those below the last mark, and the numbered ones."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self.check = check
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif handler := _HANDLERS.get(name):
            handler(self, argument)
        elif name not in _NOTHING:
            raise LookupError(f"it has the instruction {name}")

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def name(self, name: str) -> None:
        self.check(name)
        self.stack.append(name)

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def tuple_of_marked(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(tuple(items))

    def tuple_of(self, size: int) -> None:
        if len(self.stack) < size:
            raise LookupError("a tuple lacks its items")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("it appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, str | int | float | None):  # hashing a tuple of a million tuples crashes Python
                raise TypeError("its keys are neither texts nor numbers")
            target[key] = value

    def new_object(self, _: Any) -> None:
        self.stack[-2:] = [Module()]

    def build(self, _: Any) -> None:
        attributes = self.stack.pop()
        if isinstance(self.stack[-1], Module):  # those of a dict, such as the versions in a state_dict, are not needed
            self.stack[-1].attributes = attributes

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if function == "numpy dtype":  # one name, and a number or a text or any object according to what it is called with
            self.check(f"{function} {arguments[0]}")
        ordered = function == "collections OrderedDict" and arguments == ()
        self.stack.append({} if ordered else Call(function, arguments))

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def stored(self, _: Any) -> None:
        self.stack.append(Stored(self.stack.pop()))


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.name,
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.tuple_of_marked,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.stored,
}
