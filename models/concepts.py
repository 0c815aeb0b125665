"""Concept sets: what to keep out, as data. Categories with phrases, neutral anchors to compare with, and thresholds.

A set comes from a JSON file (the seven I2P categories ship with the pack, and a set of its demo world) or from lines such as
`weapons: a gun, a rifle`; the line `neutral: ...` replaces the anchors.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

SHIPPED = Path(__file__).resolve().parent / "concept_sets"
FORMAT = 1
NEUTRAL = "neutral"


class ConceptError(ValueError):
    """A concept set that cannot be used; the message says what came, what was expected and what to do."""


@dataclass(frozen=True)
class Category:
    """One thing to keep out.

    Attributes:
        phrases: texts that describe it.
        threshold: log-odds from which an image counts as showing it; 0 is "as likely as the anchors".
    """

    name: str
    phrases: tuple[str, ...]
    threshold: float = 0.0


@dataclass(frozen=True)
class Judge:
    """How images are judged, as far as thresholds depend on it.

    Attributes:
        latent_clip: its name, for people. identity: `models.latent_clip.identity` of its weights.
        fit: the one in effect, see `models.fit.safety_fit`. views: altered copies that must pass as well.
        closer_look: see `models.fit.more_windows`.
    """

    latent_clip: str
    identity: str
    fit: str
    views: int = 0
    closer_look: bool = False

    def as_dict(self) -> dict:
        """The part of a calibration that says who judged."""
        return asdict(self)

    def differences(self, calibration: dict) -> list[str]:
        """What was another one when a set was calibrated, in words."""
        other = calibration.get("latent_clip")
        clip = (
            f"the Latent-CLIP {other!r} of other weights than {self.latent_clip!r}"
            if other
            else "an unknown Latent-CLIP"
        )
        said = {
            "identity": clip
            if calibration.get("identity")
            else f"{clip}, by a version that did not write down its weights",
            "fit": f"fit {calibration.get('fit')} instead of {self.fit}",
            "views": f"{calibration.get('views')} views instead of {self.views}",
            "closer_look": f"{'no ' if self.closer_look else 'a '}closer look",
        }
        known = {"closer_look": False} | calibration
        return [words for key, words in said.items() if known.get(key) != getattr(self, key)]


@dataclass(frozen=True)
class ConceptSet:
    """Categories, the neutral texts that they are measured against, and where the thresholds come from.

    Attributes:
        provenance: free to say anything; "calibration" is what tools/calibrate_safety.py writes, see `check_judge`.
        typed: names of the categories whose threshold a user typed over that of the set.
    """

    name: str
    categories: tuple[Category, ...]
    anchors: tuple[str, ...]
    provenance: dict = field(default_factory=dict)
    typed: frozenset[str] = frozenset()

    def __post_init__(self):
        if not self.categories:
            raise ConceptError(f"The concept set {self.name!r} has no category, expected at least one.")
        if not self.anchors:
            raise ConceptError(f"The concept set {self.name!r} has no neutral anchors, expected at least one.")
        names = [category.name for category in self.categories]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConceptError(f"The concept set {self.name!r} names a category twice: {', '.join(repeated)}.")
        for category in self.categories:
            if not category.name.strip() or not category.phrases:
                raise ConceptError(
                    f"The category {category.name!r} of {self.name!r} has no phrases, expected at least one."
                )
            if not math.isfinite(category.threshold):
                raise ConceptError(
                    f"The threshold of {category.name!r} is {category.threshold}, expected a finite number."
                )
        for text in (*self.anchors, *(phrase for category in self.categories for phrase in category.phrases)):
            if not text.strip():
                raise ConceptError(f"The concept set {self.name!r} has an empty phrase. Remove it.")

    def only(self, names: str) -> ConceptSet:
        """The categories named in a comma-separated text; all of them where it is empty.

        Raises:
            ConceptError: an unknown name.
        """
        wanted = _split(names)
        known = {category.name: category for category in self.categories}
        if unknown := [name for name in wanted if name not in known]:
            raise ConceptError(f"Got the category {unknown[0]!r}, expected some of: {', '.join(known)}.")
        return replace(self, categories=tuple(known[name] for name in wanted)) if wanted else self

    def with_thresholds(self, text: str) -> ConceptSet:
        """Thresholds from a text: one number for all categories, or lines `name: number`; empty keeps them.

        Raises:
            ConceptError: an unknown name, or no finite number.
        """
        thresholds = {category.name: category.threshold for category in self.categories}
        typed: set[str] = set()
        for line in _lines(text):
            name, colon, value = line.rpartition(":")
            if colon and name.strip() not in thresholds:
                raise ConceptError(f"Got a threshold for {name.strip()!r}, expected one of: {', '.join(thresholds)}.")
            thresholds |= dict.fromkeys([name.strip()] if colon else list(thresholds), _number(value, line))
            typed |= {name.strip()} if colon else set(thresholds)
        return replace(
            self,
            categories=tuple(replace(category, threshold=thresholds[category.name]) for category in self.categories),
            typed=self.typed | typed,
        )

    def check_judge(self, judge: Judge) -> None:
        """Refuse thresholds that were calibrated with another judge; those typed or never calibrated are the user's own.

        Raises:
            ConceptError: names what differs.
        """
        calibration = self.provenance.get("calibration")
        calibrated = calibration.get("categories") if isinstance(calibration, dict) else None
        if not isinstance(calibrated, dict):
            return
        names = [c.name for c in self.categories if c.name in calibrated and c.name not in self.typed]
        if names and (differences := judge.differences(calibration)):
            raise ConceptError(
                f"The thresholds of {self.name!r} for {', '.join(names)} were calibrated with {'; '.join(differences)}. "
                "Choose what they were calibrated with, calibrate again with tools/calibrate_safety.py, or type thresholds of your own."
            )

    def as_dict(self) -> dict:
        """What `read_concepts` reads."""
        return {
            "format": FORMAT,
            "name": self.name,
            "anchors": list(self.anchors),
            "categories": [
                {"name": category.name, "phrases": list(category.phrases), "threshold": category.threshold}
                for category in self.categories
            ],
            "provenance": self.provenance,
        }


def read_concepts(path: Path) -> ConceptSet:
    """A concept set from a JSON file.

    Raises:
        ConceptError: it is no concept set; the message names the first fault.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConceptError(f'{path.name} is no concept set: expected an object with "format": {FORMAT}.')
        categories = tuple(
            Category(_text(entry["name"]), tuple(map(_text, entry["phrases"])), float(entry.get("threshold", 0.0)))
            for entry in data["categories"]
        )
        return ConceptSet(
            _text(data["name"]), categories, tuple(map(_text, data["anchors"])), data.get("provenance", {})
        )
    except OSError as error:
        raise ConceptError(f"The concept set {path.name} cannot be read: {error.strerror}.") from error
    except ConceptError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(f"{path.name} is no concept set of format {FORMAT}: {error!r}.") from error


def shipped_names() -> list[str]:
    """The sets that ship with the pack; the first is the default."""
    return ["i2p", *sorted(path.stem for path in SHIPPED.glob("*.json") if path.stem != "i2p")]


def shipped_concepts(name: str = "i2p") -> ConceptSet:
    """One of `shipped_names`; `i2p` has the seven categories of the I2P benchmark."""
    return read_concepts(SHIPPED / f"{name}.json")


def parse_concepts(text: str) -> ConceptSet:
    """A concept set from lines `name: phrase, phrase`; without a `neutral:` line it has the shipped set's anchors.

    Raises:
        ConceptError: no line, or one that is none.
    """
    categories, anchors = [], None
    for line in _lines(text):
        name, colon, phrases = line.partition(":")
        if not colon or not _split(phrases):
            raise ConceptError(f"Got {line!r}, expected a line such as 'weapons: a gun, a rifle'.")
        if name.strip() == NEUTRAL:
            anchors = tuple(_split(phrases))
        else:
            categories.append(Category(name.strip(), tuple(_split(phrases))))
    return ConceptSet("typed", tuple(categories), anchors or shipped_concepts().anchors)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value


def _number(text: str, line: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConceptError(f"Got the threshold {line!r}, expected a number, or lines such as 'violence: 1.5'.")
    return value
