"""Concept sets: what to keep out, as data. Categories with phrases, neutral anchors to compare with, and thresholds.

A set comes from a JSON file (the seven I2P categories ship with the pack, and a set of its demo world) or from lines such as
`weapons: a gun, a rifle`; the line `neutral: ...` replaces the anchors.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .strict_json import checked, only_known, read_json, short

SHIPPED = Path(__file__).resolve().parent / "concept_sets"
FORMAT = 1
NEUTRAL = "neutral"
MAX_TEXTS = 5000  # phrases of one category, or anchors
MAX_THRESHOLD = 10_000

_FIELDS = ("format", "name", "description", "anchors", "categories", "provenance")
_CATEGORY_FIELDS = ("name", "phrases", "threshold")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_PUNCTUATION = str.maketrans({"：": ":", "，": ",", "、": ",", "\ufeff": None})


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
class ScorerId:
    """Scorer that a threshold was calibrated with, as far as thresholds depend on it.

    Attributes:
        latent_clip: its name, for people. identity: `models.latent_clip.identity` of its weights.
        fit: the one in effect, see `models.fit.safety_fit`. views: altered copies that must pass as well.
        closer_look: see `models.fit.safety_windows`.
    """

    latent_clip: str
    identity: str
    fit: str
    views: int = 0
    closer_look: bool = False

    def as_dict(self) -> dict:
        """Record of the scorer, as a calibration keeps it."""
        return asdict(self)

    def differences(self, calibration: dict) -> list[str]:
        """Describe in words how the scorer of a calibration differs."""
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
        provenance: free to say anything; "calibration" is what latent-clip calibrate writes, see `check_scorer`.
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
        if twice := _same([category.name for category in self.categories]):
            raise ConceptError(f"The concept set {self.name!r} names a category twice: {', '.join(twice)}. Make them one.")
        for category in self.categories:
            if _folded(category.name) == NEUTRAL:
                raise ConceptError(
                    f"The concept set {self.name!r} has a category {category.name!r}, which names the anchors."
                )
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
        neutral = {_folded(text) for text in self.anchors}
        for category in self.categories:
            if both := [phrase for phrase in category.phrases if _folded(phrase) in neutral]:
                raise ConceptError(
                    f"Got {short(both[0])} as a phrase of {category.name!r} and as a neutral text of {self.name!r}, which say opposite "
                    f"things of the same image. Change one of them; a line '{NEUTRAL}: ...' replaces the neutral texts."
                )

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
            ConceptError: an unknown name, one that comes twice, or no finite number.
        """
        thresholds = {category.name: category.threshold for category in self.categories}
        named: list[str] = []
        typed: set[str] = set()
        for number, line in enumerate(_lines(text)):
            name, colon, value = line.rpartition(":")
            name = name.strip()
            if colon and name not in thresholds:
                raise ConceptError(f"Got a threshold for {name!r}, expected one of: {', '.join(thresholds)}.")
            if name in named or (number > 0 and not colon):
                raise ConceptError(
                    f"Got {short(line)} after other thresholds, which it would undo. Name every category once, and put a number "
                    "for all of them into the first line."
                )
            named += [name] if colon else []
            thresholds |= dict.fromkeys([name] if colon else list(thresholds), _number(value, line))
            typed |= {name} if colon else set(thresholds)
        return replace(
            self,
            categories=tuple(replace(category, threshold=thresholds[category.name]) for category in self.categories),
            typed=self.typed | typed,
        )

    def check_scorer(self, judge: ScorerId) -> None:
        """Refuse thresholds that were calibrated with another scorer; those typed or never calibrated are the user's own.

        Raises:
            ConceptError: names what differs.
        """
        calibration = self.provenance.get("calibration")
        if not isinstance(calibration, dict) or not isinstance(calibrated := calibration.get("categories"), dict):
            return
        names = [c.name for c in self.categories if c.name in calibrated and c.name not in self.typed]
        if names and (differences := judge.differences(calibration)):
            raise ConceptError(
                f"The thresholds of {self.name!r} for {', '.join(names)} were calibrated with {'; '.join(differences)}. "
                "Choose what they were calibrated with, calibrate again with latent-clip calibrate, or type thresholds of your own."
            )

    def as_dict(self) -> dict:
        """Return the JSON value that `read_concepts` reads."""
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
    """A concept set from a JSON file: every field must be of its type and range, and known.

    Raises:
        ConceptError: it is no concept set; the message names the first fault.
    """
    try:
        data = read_json(path)
    except OSError as error:
        raise ConceptError(f"The concept set {path.name} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConceptError(f"{path.name} is no concept set: {error}.") from error
    if not isinstance(data, dict) or type(data.get("format")) is not int or data["format"] != FORMAT:
        raise ConceptError(f'{path.name} is no concept set: expected an object with "format": {FORMAT}.')
    try:
        only_known(data, "the set", _FIELDS)
        checked(data.get("description", ""), "description", str)
        entries = [
            checked(entry, "an entry of categories", dict) for entry in checked(data["categories"], "categories", list)
        ]
        return ConceptSet(
            checked(data["name"], "name", str),
            tuple(map(_category, entries)),
            _texts(data["anchors"], "anchors"),
            checked(data.get("provenance", {}), "provenance", dict),
        )
    except ValueError as error:
        raise ConceptError(f"{path.name}: {error}") from error
    except KeyError as error:
        raise ConceptError(
            f"{path.name}: got no {error.args[0]!r}, expected one in every set of format {FORMAT}."
        ) from error


def _category(entry: dict) -> Category:
    only_known(entry, "a category", _CATEGORY_FIELDS)
    name = checked(entry["name"], "name of a category", str).strip()
    if any(mark in name for mark in ",\n\r"):
        raise ConceptError(f"Got the category name {name!r}, expected one without commas and line breaks.")
    threshold = checked(entry.get("threshold", 0.0), f"threshold of {name!r}", int, float)
    return Category(
        name, _texts(entry["phrases"], f"phrases of {name!r}"), _finite(threshold, f"the threshold of {name!r}")
    )


def _texts(value: object, name: str) -> tuple[str, ...]:
    """A list of different texts; a single text is none, for its letters would be read as phrases."""
    texts = tuple(checked(text, f"one of the {name}", str) for text in checked(value, name, list))
    _check_texts(texts, name)
    return texts


def _check_texts(texts: tuple[str, ...], name: str) -> None:
    if len(texts) > MAX_TEXTS:
        raise ConceptError(f"Got {len(texts)} {name}, expected at most {MAX_TEXTS}.")
    if twice := _same(texts):
        also = "" if twice[0] == twice[1] else f", the second time as {short(twice[1])}"
        raise ConceptError(f"Got {short(twice[0])} twice in the {name}{also}. Remove one.")
    if broken := [text for text in texts if any(c == "\ufffd" or (c < " " and not c.isspace()) for c in text)]:
        raise ConceptError(f"Got {short(broken[0])} in the {name}, which is no text any more. Type it again.")


def _folded(text: str) -> str:
    """A text without what people do not see: case, Unicode form and spaces. A CLIP reads it as the same words."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _same(texts: Sequence[str]) -> tuple[str, str] | None:
    """The first two texts that are the same to a reader; None where all differ."""
    seen: dict[str, str] = {}
    for text in texts:
        if (folded := _folded(text)) in seen:
            return seen[folded], text
        seen[folded] = text
    return None


def _finite(value: float, name: str) -> float:
    """A threshold in the range of log-odds, generously: those of a CLIP lie within ±200."""
    if not abs(value) <= MAX_THRESHOLD:  # NaN too; an int may be too large for a float
        raise ConceptError(f"Got {short(value)} as {name}, expected a number from -{MAX_THRESHOLD} to {MAX_THRESHOLD}.")
    return float(value)


def shipped_names() -> list[str]:
    """The sets that ship with the pack; the first is the default."""
    return ["i2p", *sorted(path.stem for path in SHIPPED.glob("*.json") if path.stem != "i2p")]


def shipped_file(name: str = "i2p") -> Path:
    """Path of one of `shipped_names`."""
    return SHIPPED / f"{name}.json"


def shipped_concepts(name: str = "i2p") -> ConceptSet:
    """One of `shipped_names`; `i2p` has the seven categories of the I2P benchmark."""
    return read_concepts(shipped_file(name))


def parse_concepts(text: str) -> ConceptSet:
    """A concept set from lines `name: phrase, phrase`; without a `neutral:` line it has the shipped set's anchors.

    Raises:
        ConceptError: no line, or one that is none.
    """
    categories: list[Category] = []
    anchors: tuple[str, ...] | None = None
    for line in _lines(text):
        name, colon, phrases = line.partition(":")
        name, texts = name.strip(), tuple(_split(phrases))
        if not colon or not name or not texts:
            raise ConceptError(f"Got {short(line)}, expected a line such as 'weapons: a gun, a rifle'.")
        if line.startswith(("{", "[", '"')):
            raise ConceptError(
                f"Got {short(line)}, which looks like JSON. Type lines such as 'weapons: a gun, a rifle', or save it as a file in "
                "models/latent_clip/concepts."
            )
        _check_texts(texts, f"phrases of {name!r}")
        if "," in name:
            raise ConceptError(
                f"Got the category name {name!r}, expected one without commas: they separate names in `categories`. Write "
                f"{name.replace(',', ' and')!r}."
            )
        if _folded(name) != NEUTRAL:
            categories.append(Category(name, texts))
        elif anchors is None:
            anchors = texts
        else:
            raise ConceptError(f"Got two lines '{NEUTRAL}: ...', of which only one would count. Make them one.")
    return ConceptSet("typed", tuple(categories), anchors or shipped_concepts().anchors)


def _lines(text: str) -> list[str]:
    """The lines that say something, with the colons and commas of Chinese and Japanese keyboards as ASCII ones."""
    lines = (line.strip() for line in text.translate(_PUNCTUATION).splitlines())
    return [line for line in lines if line]


def _split(text: str) -> list[str]:
    return [part for part in map(str.strip, text.translate(_PUNCTUATION).split(",")) if part]


def _number(text: str, line: str) -> float:
    """Read a number as people write it: `1_0` is none, although Python reads it as 10."""
    plain = unicodedata.normalize("NFKC", text).strip()
    if not _NUMBER.fullmatch(plain):
        raise ConceptError(f"Got the threshold {short(line)}, expected a number, or lines such as 'violence: 1.5'.")
    return _finite(float(plain), "a threshold")
