"""Batches of latents from shards: webdataset's reader over tars drawn with replacement, as open_clip trains with --dataset-resampled.

Webdataset cannot go on in the middle of a stream. Here the stream starts anew, from a seed of its own, at every checkpoint, so
that a run that was killed reads after its last checkpoint what it would have read.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
import webdataset as wds
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .objectives import Batch
from .shards import Sample, ShardError, decode_sample

LOGGER = logging.getLogger(__name__)
MOST_FAULTS = 100  # in a row, and it is not a shard that is broken but the data set


@dataclass(frozen=True)
class Reading:
    """How shards become batches.

    Attributes:
        batch: samples of one process. grid: latent cells along a side. interval: steps between restarts of the stream.
        context: tokens of a caption; 0: captions are not read. teacher: whether its features are.
        noised: share of the samples that are read as a diffusion model predicted them at some noise level.
        workers: processes that read and decode; another number is another stream.
        shuffle: samples of the buffer that mixes neighbouring shards.
    """

    batch: int
    grid: int
    seed: int = 0
    interval: int = 1000
    context: int = 0
    teacher: bool = False
    noised: float = 0.0
    workers: int = 0
    shuffle: int = 1000


@dataclass
class Faults:
    """What could not be read, by kind; webdataset's handler: one broken tar or sample is passed over."""

    counts: Counter[str] = field(default_factory=Counter)
    in_a_row: int = 0

    def __call__(self, error: Exception) -> bool:
        kind = type(error).__name__
        self.counts[kind] += 1
        self.in_a_row += 1
        if self.counts[kind] == 1:
            LOGGER.warning("Passing over what cannot be read; the first %s: %s", kind, error)
        if self.in_a_row > MOST_FAULTS:
            raise ShardError(
                f"Got {self.in_a_row} faults in a row, the last: {error}. Expected readable shards: is the data there?"
            ) from error
        return True


class Stream(IterableDataset):
    """One process's samples of one interval, without end.

    Attributes:
        faults: what could not be read so far, where this process reads itself.
    """

    def __init__(self, tars: Sequence[Path | str], reading: Reading, interval: int, rank: int = 0) -> None:
        self.tars, self.reading, self.interval, self.rank = [str(tar) for tar in tars], reading, interval, rank
        self.faults = Faults()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info, faults = get_worker_info(), self.faults
        name = f"{self.reading.seed}/{self.interval}/{self.rank}/{info.id if info else 0}"
        order, mixing, choice = (random.Random(f"{name}/{part}") for part in ("order", "mixing", "choice"))
        urls = ({"url": order.choice(self.tars)} for _ in iter(int, 1))
        raw = wds.tarfile_to_samples(handler=faults)(urls)
        for members in wds.shuffle(self.reading.shuffle, initial=self.reading.shuffle, rng=mixing)(raw):
            if row := self._row(members, choice, faults):
                faults.in_a_row = 0
                yield row

    def _row(self, members: dict, choice: random.Random, faults: Faults) -> dict[str, Tensor] | None:
        try:
            return row_of(decode_sample(_plain(members)), self.reading, choice)
        except ShardError as error:
            faults(error)
            return None


def _plain(members: dict) -> dict[str, bytes]:
    return {key: value for key, value in members.items() if isinstance(value, bytes)}


def row_of(sample: Sample, reading: Reading, rng: random.Random) -> dict[str, Tensor]:
    """What a step reads of one sample: a view or a prediction, a caption's tokens, the teacher's features of the view.

    Raises:
        ShardError: it lacks what is asked for, or its latents have another size.
    """
    row: dict[str, Tensor] = {}
    view = rng.randrange(len(next(iter(sample.latent.values()))))
    level = 0.0
    if reading.noised and sample.predictions and rng.random() < reading.noised:
        view, number = 0, rng.randrange(len(sample.predictions["levels"]))
        latent, level = sample.predictions["x0"][number].float(), float(sample.predictions["levels"][number])
    elif "mean" in sample.latent:
        noise = torch.randn(
            sample.latent["mean"][view].shape, generator=torch.Generator().manual_seed(rng.getrandbits(62))
        )
        latent = sample.latent["mean"][view].float() + sample.latent["std"][view].float() * noise
    else:
        latent = sample.latent["latent"][view].float()
    if latent.shape[-2:] != (reading.grid, reading.grid):
        raise ShardError(
            f"Got latents of {latent.shape[-1]}×{latent.shape[-2]} cells, expected {reading.grid}×{reading.grid}. "
            "Embed again with the --side of the new tower."
        )
    row["latents"] = latent
    if reading.noised:
        row["noise_level"] = torch.tensor(level)
    if reading.teacher:
        if "features" not in sample.teacher:
            raise ShardError("Got a sample without a teacher's features, expected some. Embed again with --teacher.")
        row["teacher"] = sample.teacher["features"][view].float()
    if reading.context:
        if not sample.captions:
            raise ShardError(
                "Got a sample without captions, expected one. Leave it out, or train without --contrastive."
            )
        row["tokens"] = _tokenizer(reading.context)([rng.choice(sample.captions)])[0]
    return row


_TOKENIZERS: dict[int, SimpleTokenizer] = {}


def _tokenizer(context: int) -> SimpleTokenizer:
    if context not in _TOKENIZERS:
        _TOKENIZERS[context] = SimpleTokenizer(context_length=context)
    return _TOKENIZERS[context]


class Reader:
    """Batches by step, in any process; steps are asked for in their order, beginning at the start of an interval."""

    def __init__(self, tars: Sequence[Path | str], reading: Reading, rank: int = 0) -> None:
        if not tars:
            raise ShardError("Got no shards, expected some. Make them with: latent-clip embed")
        self.tars, self.reading, self.rank = list(tars), reading, rank
        self._interval = -1
        self._batches: Iterator[dict[str, Tensor]] = iter(())

    def batch(self, step: int) -> Batch:
        """The batch of one step.

        Raises:
            ShardError: nothing can be read, or the step is not the next.
        """
        if (interval := step // self.reading.interval) != self._interval:
            if step % self.reading.interval:
                raise ShardError(
                    f"Got step {step} first, expected the start of an interval of {self.reading.interval}."
                )
            stream = Stream(self.tars, self.reading, interval, self.rank)
            self._batches = iter(
                DataLoader(stream, self.reading.batch, num_workers=self.reading.workers, drop_last=True)
            )
            self._interval = interval
        return Batch(**next(self._batches))


def first_rows(tars: Sequence[Path | str], count: int) -> list[Sample]:
    """The first samples of the tars, for statistics and starts."""
    urls = ({"url": str(tar)} for tar in tars)
    raw = wds.tarfile_to_samples(handler=Faults())(urls)
    return [decode_sample(_plain(members)) for members in islice(raw, count)]
