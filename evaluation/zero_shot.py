"""Zero-shot classification with a Latent-CLIP: pictures become latents of a given VAE at its size, names become text features.

Figures and result file are CLIP_benchmark's (github.com/LAION-AI/CLIP_benchmark): top-1, top-5, mean recall of the classes. `loader`
goes the other way: it gives a Latent-CLIP to CLIP_benchmark as one of its models, so that its own command runs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..methods.features import average_unit
from ..models.strict_json import read_json
from . import EvaluationError
from .pictures import Pictures
from .records import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

TASK = "zeroshot_classification"


@dataclass(frozen=True)
class Metrics:
    """Shares of pictures whose class is first, or among the first five; and the mean over classes of the former."""

    acc1: float
    acc5: float
    mean_per_class_recall: float


class LatentJudge(Protocol):
    """A Latent-CLIP with the VAE that its latents come from.

    Attributes:
        name: for results. side: pixels of the square that a picture becomes.
        encode: pictures (B, 3, side, side) in [0, 1] → features (B, D) of unit length, through the VAE.
        encode_text: texts → (N, D) of unit length.
    """

    @property
    def name(self) -> str: ...

    @property
    def side(self) -> int: ...

    @property
    def encode(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def encode_text(self) -> Callable[[list[str]], Tensor]: ...


def prepare(image: Image, side: int) -> Tensor:
    """The centre square of a picture, bicubic as open_clip has it: (3, side, side) in [0, 1]."""
    from PIL.Image import Resampling

    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    image = image.convert("RGB")
    image = image.resize((width, height), Resampling.BICUBIC) if image.size != (width, height) else image
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).movedim(-1, 0)


def class_directions(encode_text: Callable[[list[str]], Tensor], classes: list[str], templates: list[str], at_once: int = 32) -> Tensor:
    """(C, D) of unit length: the mean of the templates' features. Two classes may have one name, as two of ImageNet's do."""
    found = []
    for start in range(0, len(classes), at_once):
        part = classes[start : start + at_once]
        texts = [template.replace("{c}", name) for name in part for template in templates]
        found.append(average_unit(encode_text(texts).view(len(part), len(templates), -1)))
    return torch.cat(found)


def classify(judge: LatentJudge, pictures: Pictures, batch: int = 32, say: Callable[[str], None] = lambda line: None) -> Metrics:
    """Name every picture of a data set.

    Raises:
        EvaluationError: it has no pictures.
    """
    rows = ((prepare(image, judge.side), label) for image, label in pictures)
    return classify_rows(judge.encode, judge.encode_text, rows, (pictures.classes, pictures.templates), batch, say)


def classify_rows(
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], Tensor],
    rows: Iterable[tuple[Tensor, int]],
    texts: tuple[list[str], list[str]],
    batch: int = 32,
    say: Callable[[str], None] = lambda line: None,
) -> Metrics:
    """Name pictures, or latents that were made of them before.

    Args:
        encode: a batch of them → (B, D) of unit length. rows: one of them and its label each. texts: classes and templates.

    Raises:
        EvaluationError: there are none.
    """
    directions = class_directions(encode_text, *texts)
    cosines, labels = [], []
    with torch.inference_mode():
        for part in _batches(rows, batch):
            features = encode(torch.stack([item for item, _ in part])).float()
            cosines.append((features @ directions.to(features).T).cpu())
            labels += [label for _, label in part]
            say(f"{len(labels)} pictures")
    if not labels:
        raise EvaluationError("Got a data set without pictures, expected at least one.")
    return metrics_of(torch.cat(cosines), torch.tensor(labels))


def metrics_of(scores: Tensor, labels: Tensor) -> Metrics:
    """Of scores (N, C) and labels (N,); classes without a picture do not count towards the mean of classes."""
    top = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    first = top[:, 0].float()
    recalls = [first[labels == label].mean() for label in labels.unique()]
    return Metrics(float(first.mean()), float(top.any(1).float().mean()), float(torch.stack(recalls).mean()))


def check_target(path: Path, model: str) -> None:
    """Raise EvaluationError where a file that is no result of this model would be overwritten."""
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
    """One JSON object, as CLIP_benchmark writes it and as its `build` reads it; pictures that were left out are named by reason."""
    content = {
        "dataset": dataset, "model": model, "pretrained": pretrained, "task": TASK,
        "metrics": asdict(metrics), "language": "en", **({"left_out": dict(left_out)} if left_out else {}),
    }  # fmt: skip
    write_file(path, json.dumps(content))


class _AsCLIP(nn.Module):
    """The two methods of a model that CLIP_benchmark calls; its pictures are those of `prepare`."""

    def __init__(self, judge: LatentJudge):
        super().__init__()
        self.judge, self.texts = judge, {0: ""}

    def tokenize(self, texts: list[str]) -> Tensor:
        """Numbers that stand for texts: the judge reads texts."""
        known = {text: number for number, text in self.texts.items()}
        numbers = [known.setdefault(text, len(known)) for text in texts]
        self.texts = {number: text for text, number in known.items()}
        return torch.tensor(numbers)

    def encode_text(self, numbers: Tensor) -> Tensor:
        return self.judge.encode_text([self.texts[number] for number in numbers.tolist()]).to(numbers.device)

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self.judge.encode(pictures).to(pictures.device)


def loader(judge: LatentJudge) -> Callable[..., tuple[nn.Module, Callable[[Image], Tensor], Callable[[list[str]], Tensor]]]:
    """What CLIP_benchmark's `load_clip` calls for a type of model: gives (model, transform, tokenizer)."""
    model = _AsCLIP(judge)

    def load(**options: object) -> tuple[nn.Module, Callable[[Image], Tensor], Callable[[list[str]], Tensor]]:
        return model, partial(prepare, side=judge.side), model.tokenize

    return load


def register(judge: LatentJudge, kind: str = "latent_clip") -> None:
    """Make `--model_type latent_clip` known to the CLIP_benchmark of this process.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise EvaluationError(f"CLIP_benchmark cannot be imported ({error}). Install its package: clip-benchmark.") from error
    models.TYPE2FUNC[kind] = loader(judge)
    if kind not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(kind)


def run_clip_benchmark(judge: LatentJudge, data: str, split: str, batch: int, target: Path) -> None:
    """CLIP_benchmark's own `eval` on a WebDataset, at a path or an address that it can read; it writes `target`.

    Raises:
        EvaluationError: it is not installed, or does not run with the NumPy that is.
    """
    register(judge)
    from clip_benchmark import cli

    part = target.with_name(f".{target.name}.{os.getpid()}")  # it would say that it has what is there
    before = sys.argv
    sys.argv = [
        "clip_benchmark", "eval", "--model_type", "latent_clip", "--model", judge.name, "--pretrained", judge.name,
        "--dataset", "wds/" + Path(data).name, "--dataset_root", data, "--split", split, "--task", TASK,
        "--batch_size", str(batch), "--num_workers", "0", "--no_amp", "--output", str(part),
    ]  # fmt: skip
    try:
        cli.main()
        part.replace(target)
    except TypeError as error:
        if "0-dimensional" not in str(error):
            raise
        raise EvaluationError(
            f"This CLIP_benchmark does not run with NumPy {np.__version__} ({error}). Install numpy<2.4 beside it, or leave "
            "--clip-benchmark out: the figures are the same."
        ) from error
    finally:
        sys.argv = before
        part.unlink(missing_ok=True)


def _batches(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
