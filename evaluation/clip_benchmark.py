"""CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark) with a Latent-CLIP as one of its models, so that its own command evaluates it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from . import EvaluationError
from .zero_shot import TASK, ZeroShotEncoder, prepare

if TYPE_CHECKING:
    from PIL.Image import Image


class _Model(nn.Module):
    """A Latent-CLIP with the two methods that CLIP_benchmark calls; pictures come from `prepare`."""

    def __init__(self, encoder: ZeroShotEncoder):
        super().__init__()
        self.encoder, self.texts = encoder, {0: ""}

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return a number for each text, since CLIP_benchmark passes tensors and the encoder reads texts."""
        known = {text: number for number, text in self.texts.items()}
        numbers = [known.setdefault(text, len(known)) for text in texts]
        self.texts = {number: text for text, number in known.items()}
        return torch.tensor(numbers)

    def encode_text(self, numbers: Tensor) -> Tensor:
        return self.encoder.encode_text([self.texts[number] for number in numbers.tolist()]).to(numbers.device)

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self.encoder.encode(pictures).to(pictures.device)


def loader(encoder: ZeroShotEncoder) -> Callable[..., tuple[nn.Module, Callable[[Image], Tensor], Callable[[list[str]], Tensor]]]:
    """Make a loader for CLIP_benchmark's `load_clip`: it returns (model, transform, tokenizer)."""
    model = _Model(encoder)

    def load(**options: object) -> tuple[nn.Module, Callable[[Image], Tensor], Callable[[list[str]], Tensor]]:
        return model, partial(prepare, side=encoder.side), model.tokenize

    return load


def register(encoder: ZeroShotEncoder, kind: str = "latent_clip") -> None:
    """Register `--model_type latent_clip` in this process's CLIP_benchmark.

    Raises:
        EvaluationError: CLIP_benchmark is not installed.
    """
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise EvaluationError(f"CLIP_benchmark cannot be imported ({error}). Install its package: clip-benchmark.") from error
    models.TYPE2FUNC[kind] = loader(encoder)
    if kind not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(kind)


def run_clip_benchmark(encoder: ZeroShotEncoder, data: str, split: str, batch: int, target: Path) -> None:
    """Run CLIP_benchmark's own `eval` on a WebDataset, at a path or address that it can read; it writes `target`.

    Raises:
        EvaluationError: CLIP_benchmark is not installed, or does not run with the installed NumPy.
    """
    register(encoder)
    from clip_benchmark import cli

    part = target.with_name(f".{target.name}.{os.getpid()}")  # it refuses an existing target
    before = sys.argv
    sys.argv = [
        "clip_benchmark", "eval", "--model_type", "latent_clip", "--model", encoder.name, "--pretrained", encoder.name,
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
