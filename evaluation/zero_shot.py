"""Zero-shot classification with a Latent-CLIP, of pictures through a VAE or of stored latents.

Figures and result file are those of CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark): top-1, top-5, mean recall of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..methods.features import average_unit
from ..models.strict_json import read_json
from ..models.vae_signature import difference, is_another
from . import EvaluationError
from .pictures import LabelledPictures, texts_of
from .records import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

TASK = "zeroshot_classification"


@dataclass(frozen=True)
class Metrics:
    """Top-1 and top-5 accuracy, and the mean over classes of their top-1 recall."""

    acc1: float
    acc5: float
    mean_per_class_recall: float


class ZeroShotEncoder(Protocol):
    """A Latent-CLIP with the VAE that makes its latents.

    Attributes:
        name: for results. side: pixels of the square that a picture is resized to.
        space: name of its latent space. vae: name, sha256 and encoder signature of its VAE, as far as its file has them.
        encode: pictures (B, 3, side, side) in [0, 1] → features (B, D), through the VAE.
        encode_latents: raw latents (B, C, H, W) → (B, D). encode_text: texts → (N, D). All features have unit length.
    """

    @property
    def name(self) -> str: ...

    @property
    def side(self) -> int: ...

    @property
    def space(self) -> str: ...

    @property
    def vae(self) -> dict: ...

    @property
    def encode_latents(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def encode(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def encode_text(self) -> Callable[[list[str]], Tensor]: ...


def prepare(image: Image, side: int) -> Tensor:
    """Resize (bicubic, as open_clip) and centre-crop a picture to (3, side, side) in [0, 1]."""
    from PIL.Image import Resampling

    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.convert("RGB")
    image = image.resize((width, height), Resampling.BICUBIC) if image.size != (width, height) else image
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).movedim(-1, 0)


def class_directions(encode_text: Callable[[list[str]], Tensor], classes: list[str], templates: list[str], at_once: int = 32) -> Tensor:
    """Class features (C, D) of unit length: the mean over the templates. Two classes may share a name, as two of ImageNet's do."""
    found = []
    for start in range(0, len(classes), at_once):
        part = classes[start : start + at_once]
        texts = [template.replace("{c}", name) for name in part for template in templates]
        found.append(average_unit(encode_text(texts).view(len(part), len(templates), -1)))
    return torch.cat(found)


def classify(encoder: ZeroShotEncoder, pictures: LabelledPictures, batch: int = 32, log: Callable[[str], None] = lambda line: None) -> Metrics:
    """Classify every picture of a data set.

    Raises:
        EvaluationError: the data set has no pictures.
    """
    items = ((prepare(image, encoder.side), label) for image, label in pictures)
    return _classify(encoder.encode, encoder.encode_text, items, (pictures.classes, pictures.templates), batch, log)


class LatentSample(Protocol):
    """A stored latent: `latent`, or `mean` and `std`, each (V, C, h, w), and the id of its picture, such as CLASS/NAME.png."""

    @property
    def id(self) -> str: ...

    @property
    def latent(self) -> Mapping[str, Tensor]: ...


class LatentDataset(Protocol):
    """Latent space and VAE of stored latents, as in their dataset.json."""

    @property
    def space(self) -> Mapping[str, Any]: ...

    @property
    def vae(self) -> dict: ...


def classify_latents(
    encoder: ZeroShotEncoder, folder: Path, dataset: LatentDataset, read_samples: Callable[[Path], Iterable[LatentSample]],
    batch: int = 32, log: Callable[[str], None] = lambda line: None,
) -> tuple[Metrics, tuple[list[str], list[str]]]:  # fmt: skip
    """Classify the stored latents of a folder; the class of a latent is the folder in its id.

    Args:
        read_samples: reads the samples of a folder; called twice.

    Returns:
        The metrics, and the class names and templates that were used.

    Raises:
        EvaluationError: the latents are of another space or VAE than the encoder's, or have no classes.
    """
    space = dataset.space["name"]
    if space != encoder.space:
        raise EvaluationError(f"{folder}: latents of the {space} space, and {encoder.name} reads {encoder.space}. Embed with the VAE that it reads.")
    if is_another(difference(encoder.vae, dataset.vae)):
        raise EvaluationError(
            f"{folder}: latents of the VAE {dataset.vae.get('name')}, and {encoder.name} reads those of {encoder.vae.get('name')}, another of the same "
            "shape. Embed with the VAE that it reads."
        )
    names = sorted({_class_of(sample) for sample in read_samples(folder)})
    if names == [""]:
        raise EvaluationError(f"{folder}: its pictures lay in no class folders, so that nobody knows their classes.")
    texts = texts_of(folder, names)
    label_of = {name: label for label, name in enumerate(names)}
    items = (
        (sample.latent["mean" if "mean" in sample.latent else "latent"][0].float(), label_of[_class_of(sample)])
        for sample in read_samples(folder)
    )
    return _classify(encoder.encode_latents, encoder.encode_text, items, texts, batch, log), texts


def _class_of(sample: LatentSample) -> str:
    return Path(sample.id).parent.name


def _classify(
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], Tensor],
    items: Iterable[tuple[Tensor, int]],
    texts: tuple[list[str], list[str]],
    batch: int,
    log: Callable[[str], None],
) -> Metrics:
    """Classify pictures or latents.

    Args:
        encode: batch → (B, D) of unit length. items: pictures or latents with their labels. texts: class names and templates.

    Raises:
        EvaluationError: there are no items.
    """
    directions = class_directions(encode_text, *texts)
    cosines, labels = [], []
    with torch.inference_mode():
        for part in _batches(items, batch):
            features = encode(torch.stack([item for item, _ in part])).float()
            cosines.append((features @ directions.to(features).T).cpu())
            labels += [label for _, label in part]
            log(f"{len(labels)} pictures")
    if not labels:
        raise EvaluationError("Got a data set without pictures, expected at least one.")
    return metrics_of(torch.cat(cosines), torch.tensor(labels))


def metrics_of(scores: Tensor, labels: Tensor) -> Metrics:
    """Compute metrics of scores (N, C) and labels (N,). Classes without a picture do not count towards the mean over classes."""
    top = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    first = top[:, 0].float()
    recalls = [first[labels == label].mean() for label in labels.unique()]
    return Metrics(float(first.mean()), float(top.any(1).float().mean()), float(torch.stack(recalls).mean()))


def check_target(path: Path, model: str) -> None:
    """Raise EvaluationError if `path` exists and is no zero-shot result of this model."""
    if not path.exists():
        return
    try:
        content = read_json(path)
    except (OSError, ValueError):
        content = None
    if not (isinstance(content, dict) and content.get("task") == TASK and content.get("model") == model):
        raise EvaluationError(f"{path}: is there already and is no zero-shot result of {model}. Name another file.")


def write_result(
    path: Path, metrics: Metrics, dataset: str, model: str, pretrained: str, left_out: Mapping[str, int] | None = None
) -> None:
    """Write the result in CLIP_benchmark's JSON form, which its `build` reads, with the counts of unreadable pictures by reason."""
    content = {
        "dataset": dataset, "model": model, "pretrained": pretrained, "task": TASK,
        "metrics": asdict(metrics), "language": "en", **({"left_out": dict(left_out)} if left_out else {}),
    }  # fmt: skip
    write_file(path, json.dumps(content))


def metrics_text(name: str, metrics: Metrics, classes: Sequence[str], templates: Sequence[str]) -> str:
    """Format the metrics of a data set as one line."""
    return (
        f"{name}, {len(classes)} classes, {len(templates)} templates: top-1 {100 * metrics.acc1:.2f} %, "
        f"top-5 {100 * metrics.acc5:.2f} %, mean of classes {100 * metrics.mean_per_class_recall:.2f} %"
    )


def _batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
