"""Names in a table of captions and the pictures that they mean: other slashes, folders in front, absolute paths, keys without a suffix."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..models.pictures import SUFFIXES
from .captions import CaptionFault, SourceError

LEAST_SHARE = 0.2  # of the entries, or of the pictures, that must match


@dataclass(frozen=True)
class Matched:
    """The captions of a table by picture, and what became of its entries.

    Attributes:
        names: how many entries name a picture. unmatched: the names of those that mean no picture, or nobody knows which.
        faults: entries that cannot be read, by reason. folders: folders in front of names that had to be left out, with counts.
    """

    captions: dict[str, list[str]]
    names: int = 0
    unmatched: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)


class PictureNames:
    """Pictures by all the names that they may have.

    Args:
        names: ids of pictures, relative to `root`. root: the folder, or the table's folder within it.
    """

    def __init__(self, names: Sequence[str], root: str) -> None:
        self.names, self.root = names, _parts(root)
        self._indexes: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {}

    def find(self, name: str) -> tuple[str, str] | None:
        """The picture that a name means, and the foreign folder in front of it that was left out."""
        parts = _parts(name)
        kinds = ["exact", "folded"] if PurePosixPath(parts[-1] if parts else "").suffix.lower() in SUFFIXES else ["exact", "key", "first dot"]
        for kind in kinds:
            if parts and (found := self._find(parts, kind, "://" in name)):
                return found
        return None

    def _find(self, parts: list[str], kind: str, is_url: bool) -> tuple[str, str] | None:
        full, tails = self._index(kind)
        parts = [part.casefold() for part in parts] if kind == "folded" else parts
        for dropped in range(len(parts)):
            if picture := full.get("/".join(parts[dropped:])):
                front = parts[:dropped]
                if self._is_own(front):
                    return picture, ""
                return None if is_url else (picture, "/".join(front))
        tail = tails.get("/".join(parts))
        return (tail, "") if tail else None

    def _is_own(self, front: list[str]) -> bool:
        """Return true where the folders in front of a name lead to the root."""
        root = [part.casefold() for part in self.root]
        return not front or front[-1].casefold() == (root[-1] if root else "")

    def _index(self, kind: str) -> tuple[dict[str, str], dict[str, str | None]]:
        if kind not in self._indexes:
            full: dict[str, str | None] = {}
            tails: dict[str, str | None] = {}
            for picture in self.names:
                parts = _named(_parts(picture), kind)
                whole = "/".join(parts)
                full[whole] = None if whole in full else picture
                for start in range(1, len(parts)):
                    tail = "/".join(parts[start:])
                    tails[tail] = None if tail in tails else picture
            self._indexes[kind] = ({name: picture for name, picture in full.items() if picture}, tails)
        return self._indexes[kind]


def match(path: str, entries: Iterable[tuple[str, list[str]] | CaptionFault], pictures: PictureNames) -> Matched:
    """Find the picture of every entry.

    Raises:
        SourceError: most entries cannot be read, or hardly any means a picture that is there.
    """
    found, faults, names = dict[str, dict[str, list[tuple[str, list[str]]]]](), Counter[str](), 0
    unmatched: list[str] = []
    for entry in entries:
        if isinstance(entry, CaptionFault):
            faults[str(entry)] += 1
            continue
        names += 1
        if hit := pictures.find(entry[0]):
            found.setdefault(hit[0], {}).setdefault(hit[1], []).append(entry)
        else:
            unmatched.append(entry[0])
    captions, folders = {}, Counter[str]()
    for picture, by_front in found.items():
        front = "" if "" in by_front else next(iter(by_front))
        clear = front == "" or len(by_front) == 1
        for other, claims in by_front.items():
            if clear and other == front:
                captions[picture] = list(dict.fromkeys(text for _, texts in claims for text in texts))
                folders.update({front: len(claims)} if front else {})
                faults.update({"no text": empty} if (empty := sum(not texts for _, texts in claims)) else {})
            else:
                unmatched += [name for name, _ in claims]
    matched = Matched(captions, names, unmatched, faults, folders)
    _check(path, matched, len(pictures.names))
    return matched


def _check(path: str, found: Matched, pictures: int) -> None:
    unreadable = sum(found.faults.values()) - found.faults["no text"]
    if unreadable > found.names:
        worst = found.faults.most_common(1)[0][0]
        raise SourceError(
            f"{path}: {unreadable} of {unreadable + found.names} entries cannot be read as captions, most of them: {worst}. Expected entries with a "
            "picture's name (file_name, path, key …) and its caption (caption, text …). Repair the table or take it away."
        )
    hits = found.names - len(found.unmatched)
    if hits < LEAST_SHARE * found.names and len(found.captions) < LEAST_SHARE * pictures:
        raise SourceError(
            f"{path}: only {hits} of {found.names} entries match a picture (unmatched: {examples(found.unmatched)}); they are for "
            f"{len(found.captions)} of {pictures} pictures. Expected that at least one in {round(1 / LEAST_SHARE)} entries matches, or that one in "
            f"{round(1 / LEAST_SHARE)} pictures gets a caption. Correct the names, which are relative to the folder, or take the table away."
        )


def examples(names: Sequence[str]) -> str:
    """Up to three names, for a message."""
    return ", ".join(ascii(name) if not name.isprintable() else repr(name) for name in (str(name)[:200] for name in names[:3]))


def _parts(name: str) -> list[str]:
    parts: list[str] = []
    for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return parts


def _named(parts: list[str], kind: str) -> list[str]:
    change: dict[str, Callable[[str], str]] = {
        "exact": str, "folded": str.casefold, "key": lambda last: last.rpartition(".")[0] or last,
        "first dot": lambda last: last.partition(".")[0] or last,
    }  # fmt: skip
    return [part.casefold() for part in parts] if kind == "folded" else [*parts[:-1], change[kind](parts[-1])]
