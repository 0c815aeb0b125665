"""The language of Shapes World: what a caption says, as text and as data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

KINDS = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)


@dataclass(frozen=True, order=True)
class Thing:
    """A colour and a kind, e.g. Thing("red", "circle")."""

    colour: str
    kind: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.kind}"


THINGS = tuple(Thing(colour, kind) for colour in COLOURS for kind in KINDS)


@dataclass(frozen=True)
class Caption:
    """One thing, two things ("and"), or two things with a `relation` of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    def __str__(self) -> str:
        return f" {self.relation or 'and'} ".join(map(str, self.things))

    @property
    def category(self) -> str:
        return "single" if len(self.things) == 1 else "relation" if self.relation else "and"

    def swapped(self) -> Caption:
        """The same kinds with their colours exchanged: false whenever this caption is true."""
        first, second = self.things
        return Caption((Thing(second.colour, first.kind), Thing(first.colour, second.kind)), self.relation)

    def reversed(self) -> Caption:
        """The same things in the opposite relation: false whenever this caption is true."""
        return Caption(self.things, OPPOSITE[self.relation])

    def meaning(self) -> tuple:
        """Equal for captions that say the same, e.g. "a left of b" and "b right of a"."""
        if self.relation in ("right of", "below"):
            return tuple(reversed(self.things)), OPPOSITE[self.relation]
        return (self.things if self.relation else tuple(sorted(self.things))), self.relation


def parse(text: str) -> Caption:
    """Read a caption back from text.

    Raises:
        ValueError: when the text is not a caption of this world.
    """

    def thing(words: str) -> Thing:
        parts = words.split()
        if len(parts) == 3 and parts[0] in ("a", "an") and parts[1] in COLOURS and parts[2] in KINDS:
            return Thing(parts[1], parts[2])
        raise ValueError(
            f'expected "a <colour> <kind>", got "{words}" in "{text}"; colours: {", ".join(COLOURS)}; kinds: {", ".join(KINDS)}'
        )

    clean = " ".join(text.lower().split())
    for joint in ("and", *RELATIONS):
        first, found, second = clean.partition(f" {joint} ")
        if found:
            return Caption((thing(first), thing(second)), None if joint == "and" else joint)
    return Caption((thing(clean),))


def is_held_out(pair: tuple[Thing, Thing]) -> bool:
    """Return true for an unordered pair in the fifth of all pairs that no training caption or scene ever shows."""
    name = " | ".join(map(str, sorted(pair)))
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0
