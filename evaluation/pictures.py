"""Labelled pictures as data sets keep them: a folder of class folders, or WebDataset tars in CLIP_benchmark's layout."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..models.pictures import LARGEST_FILE, SUFFIXES, Skipped, read_upright
from . import EvaluationError
from .benchmarks import lines_of

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_LEFT_OUT = 0.1  # share of the pictures that may be unreadable; more, and the figures are those of another data set
ONE_TEMPLATE = ["a photo of a {c}."]


@dataclass(frozen=True)
class Pictures:
    """A data set.

    Attributes:
        classes: names by label. templates: with {c} where a name goes.
        path, shards: where they are; without shards, in class folders. Iterating gives (picture, label) in their order.
        left_out: how many pictures the last pass left out, by reason.
    """

    name: str
    classes: list[str]
    templates: list[str]
    path: Path
    shards: tuple[Path, ...] = ()

    left_out: Counter[str] = field(default_factory=Counter, compare=False)

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        """Every picture and its label.

        Raises:
            EvaluationError: a label without a class, a broken tar, or too many pictures that cannot be read.
        """
        self.left_out.clear()
        seen, first = 0, ""
        for item in _from_tars(self.shards) if self.shards else _from_folders(self.path):
            seen += 1
            try:
                picture = _read(item)
            except Skipped as reason:
                self.left_out[str(reason)] += 1
                first = first or f"{item.name}: {reason}"
                self._check(seen, first, at_least=20)
                continue
            if not 0 <= item.label < len(self.classes):
                raise EvaluationError(
                    f"{item.name}: label {item.label}, expected 0 to {len(self.classes) - 1}, as classnames.txt has them."
                )
            yield picture, item.label
        self._check(seen, first, at_least=2)

    def _check(self, seen: int, first: str, at_least: int) -> None:
        bad = self.left_out.total()
        if bad >= at_least and bad > MOST_LEFT_OUT * seen:
            raise EvaluationError(
                f"{self.path}: {bad} of {seen} pictures cannot be read, such as {first}. Up to one in ten is passed over. "
                "Repair or remove them, or download them again."
            )


@dataclass(frozen=True)
class _Item:
    """One labelled picture before it is decoded; `fault`: the reason why it cannot be."""

    name: str
    content: bytes = b""
    label: int = 0
    fault: str = ""


def _read(item: _Item) -> Image:
    if item.fault:
        raise Skipped(item.fault)
    return read_upright(item.content, shortest=1)


def imagenet() -> tuple[list[str], list[str]]:
    """The 1,000 names and 80 templates of ImageNet, as open_clip has them."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    return list(IMAGENET_CLASSNAMES), [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def read_pictures(path: Path, split: str = "test") -> Pictures:
    """A data set at `path`, whichever of the two layouts it has.

    Names and templates come from classnames.txt and zeroshot_classification_templates.txt beside the pictures; without them folders
    called n01440764 and so on are ImageNet's, and others are called as their folder.

    Raises:
        EvaluationError: there is no such data set, a shard is missing, or the names are not as many as the classes.
    """
    if (path / split / "nshards.txt").is_file():
        return _web_dataset(path, split)
    folders = _folders(path)
    if not folders:
        raise EvaluationError(
            f"{path}: no class folders with pictures, and no {split}/nshards.txt. Expected CLASS/picture.png, or CLIP_benchmark's layout."
        )
    classes, templates = texts_of(path, [folder.name for folder in folders])
    return Pictures(path.name, classes, templates, path)


def texts_of(path: Path, folders: list[str]) -> tuple[list[str], list[str]]:
    """Names and templates for class folders: as files in `path` say, else ImageNet's, else the folders' own names.

    Raises:
        EvaluationError: there are not as many names as folders.
    """
    classes, templates = [name.replace("_", " ") for name in folders], ONE_TEMPLATE
    if all(re.fullmatch(r"n\d{8}", name) for name in folders):
        classes, templates = imagenet()
    classes, templates = _texts(path, classes, templates)
    if len(classes) != len(folders):
        raise EvaluationError(f"{path}: {len(folders)} class folders and {len(classes)} names, expected as many. Complete classnames.txt.")
    return classes, templates


def _web_dataset(path: Path, split: str) -> Pictures:
    try:
        count = int((path / split / "nshards.txt").read_text())
    except ValueError as error:
        raise EvaluationError(f"{path / split / 'nshards.txt'}: {error}, expected the number of shards.") from error
    shards = tuple(path / split / f"{number}.tar" for number in range(count))
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise EvaluationError(f"{path}: {len(missing)} of {count} shards are missing, such as {missing[0].name}. Download them again.")
    kind = path / "dataset_type.txt"
    if kind.is_file() and kind.read_text().strip() not in ("", "classification"):
        raise EvaluationError(f"{path}: a data set for {kind.read_text().strip()}, expected one for classification.")
    classes, templates = _texts(path, [], [])
    if not classes or not templates:
        raise EvaluationError(f"{path}: needs classnames.txt and zeroshot_classification_templates.txt. Take them from where the tars are from.")
    return Pictures(path.name, classes, templates, path, shards)


def _texts(path: Path, classes: list[str], templates: list[str]) -> tuple[list[str], list[str]]:
    names, patterns = path / "classnames.txt", path / "zeroshot_classification_templates.txt"
    classes = [line.strip() for line in lines_of(names)] if names.is_file() else classes
    templates = [line.strip() for line in lines_of(patterns)] if patterns.is_file() else templates
    if odd := [template for template in templates if "{c}" not in template]:
        raise EvaluationError(f"{patterns}: {odd[0]!r}, expected {{c}} where the class goes.")
    return classes, templates


def _folders(path: Path) -> list[Path]:
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []  # glob("*/") gives files too before 3.11
    return sorted(folder for folder in folders if any(_is_picture(file) for file in folder.iterdir()))


def labelled_files(path: Path) -> Iterator[tuple[Path, int]]:
    """The pictures of class folders with their labels, in order."""
    for label, folder in enumerate(_folders(path)):
        for file in sorted(folder.iterdir()):
            if _is_picture(file):
                yield file, label


def _is_picture(file: Path) -> bool:
    """By its name; hidden ones, such as the ._ files that macOS writes beside others, are none."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _from_folders(path: Path) -> Iterator[_Item]:
    for file, label in labelled_files(path):
        try:
            large = file.stat().st_size > LARGEST_FILE
            yield _Item(str(file), fault="too large a file") if large else _Item(str(file), file.read_bytes(), label)
        except OSError:
            yield _Item(str(file), fault="cannot be opened")


def _from_tars(shards: Iterable[Path]) -> Iterator[_Item]:
    for shard in shards:
        yield from _from_tar(shard)


def _from_tar(shard: Path) -> Iterator[_Item]:
    """Members that share a name up to its first dot follow each other, as WebDataset has them."""
    key, parts = "", dict[PurePosixPath, bytes | str]()
    for path, content in _members(shard):
        own = str(path.with_name(path.name.partition(".")[0] or "."))
        if own != key and parts:
            yield from _samples(shard, key, parts)
            parts = {}
        key = own
        parts[path] = content
    if parts:
        yield from _samples(shard, key, parts)


def _members(shard: Path) -> Iterator[tuple[PurePosixPath, bytes | str]]:
    """Names and contents; of a member that is not read, the reason in place of its content."""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                if path.suffix.lower() not in SUFFIXES | {".cls"}:
                    yield path, b""
                elif member.issparse() or member.size > (LARGEST_FILE if path.suffix.lower() != ".cls" else 100):
                    yield path, "sparse in its tar" if member.issparse() else "too large a file"
                else:
                    yield path, tar.extractfile(member).read()
    except Exception as error:  # also zlib.error, struct.error, EOFError of compressed and damaged ones
        raise EvaluationError(f"{shard}: broken off or no tar ({error}). Download it again.") from error


def _samples(shard: Path, key: str, parts: dict[PurePosixPath, bytes | str]) -> Iterator[_Item]:
    """Pictures with the label of the same name up to the last dot; where there is none, the first picture with the first label."""
    pictures = {path: content for path, content in parts.items() if path.suffix.lower() in SUFFIXES}
    labels = {path.with_suffix(""): content for path, content in parts.items() if path.suffix.lower() == ".cls"}
    pairs = [(content, labels[path.with_suffix("")]) for path, content in pictures.items() if path.with_suffix("") in labels]
    if len(pairs) > 1 and len(labels) == 1:
        pairs = pairs[:1]  # one picture in two formats
    for content, label in pairs or [(next(iter(pictures.values()), ""), next(iter(labels.values()), ""))]:
        yield _sample(f"{shard}:{key}", content, label, ", ".join("".join(path.suffixes) for path in parts))


def _sample(name: str, picture: bytes | str, label: bytes | str, kinds: str) -> _Item:
    try:
        number = int(label if isinstance(label, str) else label.decode())
    except ValueError:
        return _Item(name, fault=f"has {kinds}, expected a picture and a number in .cls")
    if isinstance(picture, str):
        return _Item(name, fault=picture or f"has {kinds}, expected a picture and a number in .cls")
    return _Item(name, picture, number)
