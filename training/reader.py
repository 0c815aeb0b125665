"""Batches of latents from shards: tars drawn with replacement, as open_clip trains with --dataset-resampled, and webdataset's shuffle.

The tars are opened as plain files: webdataset would take `pipe:…` for a command, and `C:\\…` or `run:1/…` for a URL. Its shuffle cannot
go on in the middle of a stream. Here the stream starts anew, from a seed of its own, at every checkpoint, so
that a run that was killed reads after its last checkpoint what it would have read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..models.tokenizer import CLIPTokenizer
from .objectives import Batch
from .samples import (
    Faults,
    NoCaptionError,
    check_latent,
    nothing_usable,
    point_of,
    samples_of,
    spread_samples,
    usual,
    usual_width,
)
from .shards import Sample, ShardError

PEEKED = 25  # samples that show what is usual in a data set


@dataclass(frozen=True)
class Reading:
    """Settings of a `Reader`.

    Attributes:
        batch: samples of one process. grid: latent cells along a side. interval: steps between restarts of the stream.
        context: tokens of a caption; 0: captions are not read. teacher: whether its features are.
        noised: share of the samples that are read as a diffusion model predicted them at some noise level.
        workers: processes that read and decode; another number is another stream.
        shuffle: samples of the buffer that mixes neighbouring shards.
        channels: of a latent. width: numbers of a teacher's features. 0: what most of the first samples have.
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
    channels: int = 0
    width: int = 0


class Stream(IterableDataset):
    """One process's samples of one interval, without end.

    Attributes:
        faults: what could not be read so far, where this process reads itself.
    """

    def __init__(self, tars: Sequence[Path | str], reading: Reading, interval: int, rank: int = 0) -> None:
        self.tars, self.reading, self.interval, self.rank = [Path(tar) for tar in tars], reading, interval, rank
        self.faults = Faults()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        name = f"{self.reading.seed}/{self.interval}/{self.rank}/{info.id if info else 0}"
        order, mixing, choice = (random.Random(f"{name}/{part}") for part in ("order", "mixing", "choice"))
        samples = self._samples(order)
        for sample in wds.shuffle(self.reading.shuffle, initial=self.reading.shuffle, rng=mixing)(samples):
            try:
                inputs = inputs_of(sample, self.reading, choice)
            except MemoryError:
                raise
            except Exception as error:  # such as a tokenizer's over an odd caption
                self.faults.add(error)
            else:
                yield inputs

    def _samples(self, order: random.Random) -> Iterator[Sample]:
        """Usable samples of tars drawn at random.

        Raises:
            ShardError: too many faults in a row, or no tar has a usable sample.
        """
        every, barren = set(self.tars), set[Path]()
        wanted = partial(check_wanted, reading=self.reading)
        while True:
            tar, count = order.choice(self.tars), 0
            for sample in samples_of(tar, self.faults, wanted):
                count += 1
                yield sample
            (barren.discard if count else barren.add)(tar)
            if len(barren) == len(every):
                raise nothing_usable(len(every), self.faults)


def check_wanted(sample: Sample, reading: Reading) -> None:
    """Refuse a sample that lacks what is read of it.

    Raises:
        ShardError: its latents have another size, or it has no captions, or no features of the right width.
    """
    check_latent(sample, reading.channels, reading.grid)
    if reading.teacher:
        if "features" not in sample.teacher:
            raise ShardError("Got a sample without a teacher's features, expected some. Embed again with --teacher.")
        width = sample.teacher["features"].shape[-1]
        if reading.width and width != reading.width:
            raise ShardError(
                f"Got features of a teacher with {width} numbers, expected {reading.width}. Embed again with one teacher for all."
            )
    if reading.context and not sample.captions:
        raise NoCaptionError(
            "Got a sample without captions, expected one. Embed with --captions or --require-captions, or train without --contrastive."
        )


def inputs_of(sample: Sample, reading: Reading, rng: random.Random) -> dict[str, Tensor]:
    """The inputs of a step from one sample that passed `check_wanted`.

    Returns:
        latents (C, grid, grid) of a random view, or as a diffusion model predicted it; where they are read: noise_level (), teacher (D,)
        of that view, tokens (context,) of a random caption.
    """
    inputs: dict[str, Tensor] = {}
    view = rng.randrange(len(point_of(sample)))
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
    inputs["latents"] = latent
    if reading.noised:
        inputs["noise_level"] = torch.tensor(level)
    if reading.teacher:
        inputs["teacher"] = sample.teacher["features"][view].float()
    if reading.context:
        inputs["tokens"] = _tokenizer(reading.context)([rng.choice(sample.captions)])[0]
    return inputs


_TOKENIZERS: dict[int, CLIPTokenizer] = {}


def _tokenizer(context: int) -> CLIPTokenizer:
    if context not in _TOKENIZERS:
        _TOKENIZERS[context] = CLIPTokenizer(context_length=context)
    return _TOKENIZERS[context]


class Reader:
    """Batches by step, in any process; steps are asked for in their order, beginning at the start of an interval."""

    def __init__(self, tars: Sequence[Path | str], reading: Reading, rank: int = 0) -> None:
        if not tars:
            raise ShardError("Got no shards, expected some. Make them with: latent-clip embed")
        self.tars, self.rank = [Path(tar) for tar in tars], rank
        self.reading = with_usual_shapes(reading, self.tars)
        self._interval = -1
        self._batches: Iterator[dict[str, Tensor]] = iter(())

    def batch(self, step: int) -> Batch:
        """The batch of one step.

        Raises:
            ShardError: hardly anything can be read, or the step is not the next.
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
        try:
            return Batch(**next(self._batches))
        except ShardError as error:  # that of a worker process comes with its traceback as text
            raise ShardError(str(error).rpartition(f"{ShardError.__name__}: ")[2].strip()) from error


def with_usual_shapes(reading: Reading, tars: Sequence[Path]) -> Reading:
    """The same with what most samples have, in place of 0, as `channels` and `width`."""
    if reading.channels and (reading.width or not reading.teacher):
        return reading
    samples = spread_samples(tars, PEEKED, partial(check_latent, channels=reading.channels, grid=reading.grid))
    channels = reading.channels or usual(point_of(sample).shape[1] for sample in samples) or 0
    return replace(reading, channels=channels, width=reading.width or usual_width(samples))


def first_samples(tars: Sequence[Path | str], count: int, channels: int = 0, grid: int = 0) -> list[Sample]:
    """The first usable samples of the tars, for statistics and starts; [] without tars.

    Args:
        channels, grid: of the latents; 0: any.

    Raises:
        ShardError: there are tars, but no usable sample in them.
    """
    faults, check = Faults(), partial(check_latent, channels=channels, grid=grid)
    samples = list(islice((sample for tar in tars for sample in samples_of(Path(tar), faults, check)), count))
    if tars and not samples:
        raise nothing_usable(len(tars), faults)
    return samples
