"""Labelled pictures as data sets keep them: a folder of class folders, or WebDataset tars in CLIP_benchmark's layout."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import EvaluationError
from .benchmarks import lines_of

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = {".png", ".jpg", ".jpeg", ".webp"}
ONE_TEMPLATE = ["a photo of a {c}."]


@dataclass(frozen=True)
class Pictures:
    """A data set.

    Attributes:
        classes: names by label. templates: with {c} where a name goes.
        path, shards: where they are; without shards, in class folders. Iterating gives (picture, label) in their order.
    """

    name: str
    classes: list[str]
    templates: list[str]
    path: Path
    shards: tuple[Path, ...] = ()

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        folders = ((str(file), file.read_bytes(), label) for file, label in labelled_files(self.path))
        items = _from_tars(self.shards) if self.shards else folders
        for name, content, label in items:
            if not 0 <= label < len(self.classes):
                raise EvaluationError(f"{name}: label {label}, expected 0 to {len(self.classes) - 1}, as classnames.txt has them.")
            yield _open(name, content), label


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
    return sorted(folder for folder in path.glob("*/") if any(file.suffix.lower() in KINDS for file in folder.iterdir()))


def labelled_files(path: Path) -> Iterator[tuple[Path, int]]:
    """The pictures of class folders with their labels, in order."""
    for label, folder in enumerate(_folders(path)):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in KINDS:
                yield file, label


def _from_tars(shards: Iterable[Path]) -> Iterator[tuple[str, bytes, int]]:
    for shard in shards:
        yield from _from_tar(shard)


def _from_tar(shard: Path) -> Iterator[tuple[str, bytes, int]]:
    """Members that share a name up to its first dot follow each other, as WebDataset has them."""
    key = ""
    parts: dict[str, bytes] = {}
    for path, content in _members(shard):
        folder, _, name = path.rpartition("/")
        stem, _, extension = name.partition(".")
        if f"{folder}/{stem}" != key and parts:
            yield _sample(shard, key, parts)
            parts = {}
        key = f"{folder}/{stem}"
        parts[f".{extension.lower()}"] = content
    if parts:
        yield _sample(shard, key, parts)


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                if content := tar.extractfile(member):  # None for folders
                    yield member.name, content.read()
    except tarfile.TarError as error:
        raise EvaluationError(f"{shard}: broken off or no tar ({error}). Download it again.") from error


def _sample(shard: Path, key: str, parts: dict[str, bytes]) -> tuple[str, bytes, int]:
    picture = next((content for extension, content in parts.items() if extension in KINDS), None)
    try:
        label = int(parts.get(".cls", b"").decode())
    except ValueError:
        label = None
    if picture is None or label is None:
        raise EvaluationError(f"{shard}: {key} has {', '.join(parts)}, expected a picture and a number in .cls.")
    return f"{shard}:{key}", picture, label


def _open(name: str, content: bytes) -> Image:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"{name}: no picture ({error}). Repair or remove it.") from error
