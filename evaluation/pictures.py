"""Labelled picture data sets: a folder of class folders, or WebDataset tars in CLIP_benchmark's layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.pictures import LARGEST_FILE, SUFFIXES, Skipped, read_upright
from . import EvaluationError
from .lists import read_lines
from .web_dataset import Item, items_of_tars

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_LEFT_OUT = 0.1  # share of the pictures that may be unreadable; more would make it another data set
ONE_TEMPLATE = ["a photo of a {c}."]


@dataclass(frozen=True)
class LabelledPictures:
    """A data set of labelled pictures; iterating gives (picture, label) in order.

    Attributes:
        classes: class names by label. templates: prompt templates with {c} for the class name.
        path: folder of the data set. shards: its tars; empty for class folders.
        left_out: number of pictures that the last pass left out, by reason.
    """

    name: str
    classes: list[str]
    templates: list[str]
    path: Path
    shards: tuple[Path, ...] = ()

    left_out: Counter[str] = field(default_factory=Counter, compare=False)

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        """Yield every picture and its label.

        Raises:
            EvaluationError: a label without a class, a broken tar, or too many pictures that cannot be read.
        """
        self.left_out.clear()
        seen, first = 0, ""
        for item in items_of_tars(self.shards) if self.shards else _from_folders(self.path):
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


def _read(item: Item) -> Image:
    if item.fault:
        raise Skipped(item.fault)
    return read_upright(item.content, shortest=1)


def imagenet() -> tuple[list[str], list[str]]:
    """Return open_clip's 1,000 class names and 80 templates of ImageNet."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    return list(IMAGENET_CLASSNAMES), [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def with_imagenet(pictures: LabelledPictures) -> LabelledPictures:
    """Return the data set with ImageNet's names and templates.

    Raises:
        EvaluationError: another number of classes.
    """
    names, templates = imagenet()
    if len(names) != len(pictures.classes):
        raise EvaluationError(f"{pictures.path}: {len(pictures.classes)} classes, expected ImageNet's {len(names)}.")
    return replace(pictures, classes=names, templates=templates)


def read_pictures(path: Path, split: str = "test") -> LabelledPictures:
    """Open the data set at `path`, in either layout.

    Names and templates come from classnames.txt and zeroshot_classification_templates.txt beside the pictures. Without these files,
    folders such as n01440764 get ImageNet's names, and others the folder's own name.

    Raises:
        EvaluationError: no such data set, a missing shard, or another number of names than of classes.
    """
    if (path / split / "nshards.txt").is_file():
        return _web_dataset(path, split)
    folders = _folders(path)
    if not folders:
        raise EvaluationError(
            f"{path}: no class folders with pictures, and no {split}/nshards.txt. Expected CLASS/picture.png, or CLIP_benchmark's layout."
        )
    classes, templates = texts_of(path, [folder.name for folder in folders])
    return LabelledPictures(path.name, classes, templates, path)


def texts_of(path: Path, folders: list[str]) -> tuple[list[str], list[str]]:
    """Return names and templates for class folders: from files in `path`, else ImageNet's, else the folders' own names.

    Raises:
        EvaluationError: another number of names than of folders.
    """
    classes, templates = [name.replace("_", " ") for name in folders], ONE_TEMPLATE
    if all(re.fullmatch(r"n\d{8}", name) for name in folders):
        classes, templates = imagenet()
    classes, templates = _texts(path, classes, templates)
    if len(classes) != len(folders):
        raise EvaluationError(f"{path}: {len(folders)} class folders and {len(classes)} names, expected as many. Complete classnames.txt.")
    return classes, templates


def _web_dataset(path: Path, split: str) -> LabelledPictures:
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
    return LabelledPictures(path.name, classes, templates, path, shards)


def _texts(path: Path, classes: list[str], templates: list[str]) -> tuple[list[str], list[str]]:
    names, patterns = path / "classnames.txt", path / "zeroshot_classification_templates.txt"
    classes = [line.strip() for line in read_lines(names)] if names.is_file() else classes
    templates = [line.strip() for line in read_lines(patterns)] if patterns.is_file() else templates
    if odd := [template for template in templates if "{c}" not in template]:
        raise EvaluationError(f"{patterns}: {odd[0]!r}, expected {{c}} where the class goes.")
    return classes, templates


def _folders(path: Path) -> list[Path]:
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []  # glob("*/") gives files too before 3.11
    return sorted(folder for folder in folders if any(_is_picture(file) for file in folder.iterdir()))


def labelled_files(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the pictures of class folders with their labels, in order."""
    for label, folder in enumerate(_folders(path)):
        for file in sorted(folder.iterdir()):
            if _is_picture(file):
                yield file, label


def _is_picture(file: Path) -> bool:
    """Check by name; hidden files, such as macOS's ._ files, are no pictures."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _from_folders(path: Path) -> Iterator[Item]:
    for file, label in labelled_files(path):
        try:
            large = file.stat().st_size > LARGEST_FILE
            yield Item(str(file), fault="too large a file") if large else Item(str(file), file.read_bytes(), label)
        except OSError:
            yield Item(str(file), fault="cannot be opened")
