"""Pictures for a training that encodes them itself: a batch for every step, the same whenever and by whomever it is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .pictures import cut, views_of
from .sources import ImageRecord, SourceError, picture_of

TRIES = 50  # unreadable pictures in a row before giving up


@dataclass
class Shown:
    """A batch.

    Attributes:
        pixels: (B, side, side, 3) in 0..1. captions: of each, any number. skipped: id → reason, of what was left out for it.
    """

    pixels: Tensor
    captions: list[list[str]]
    skipped: dict[str, str] = field(default_factory=dict)


class PictureBatches(Dataset):
    """Every picture once before any comes again; a random one of the `views` of each (see `pictures.views_of`).

    Args:
        side: pixels of a view. batch: pictures of a step. steps: how many there will be. workers: processes that read ahead.
    """

    def __init__(
        self, records: Sequence[ImageRecord], side: int, batch: int, steps: int, seed: int = 0, views: Sequence[str] = ("centre",),
        workers: int = 0,
    ) -> None:  # fmt: skip
        if len(records) < batch:
            raise SourceError(f"Got {len(records)} pictures for batches of {batch}. Add pictures, or lower --batch-size.")
        self.records, self.side, self.size, self.steps, self.seed = records, side, batch, steps, seed
        self.views, self.workers, self.skipped = tuple(views), workers, dict[str, str]()
        self._order: tuple[int, list[int]] = (-1, [])
        self._ahead: tuple[int, Iterator[Shown]] = (-1, iter(()))

    def batch(self, step: int) -> Shown:
        """The pictures of a step; quickest when steps are asked for in their order.

        Raises:
            SourceError: hardly any picture can be read.
        """
        if not self.workers:
            shown = self[step]
        else:
            expected, ahead = self._ahead
            if step != expected:
                ahead = iter(DataLoader(self, batch_size=None, sampler=range(step, self.steps), num_workers=self.workers))
            try:
                shown = next(ahead)
            except SourceError as error:  # of a worker process: it comes with its traceback as text
                raise SourceError(str(error).rpartition(f"{SourceError.__name__}: ")[2].strip()) from error
            self._ahead = step + 1, ahead
        self.skipped |= shown.skipped
        return shown

    def __getitem__(self, step: int) -> Shown:
        numbers = [self._number(step * self.size + item) for item in range(self.size)]
        return self._show([self.records[number] for number in numbers], f"{self.seed}/{step}", self.views)

    def some(self, count: int, chunk: int = 8) -> Iterator[Shown]:
        """The centre of the same `count` pictures, for figures; no more at once than a step has."""
        chunk = min(chunk, self.size)
        records = random.Random("some").sample(list(self.records), min(count, len(self.records)))
        for start in range(0, len(records), chunk):
            yield self._show(records[start : start + chunk], "some", ("centre",))

    def _number(self, place: int) -> int:
        epoch, at = divmod(place, len(self.records))
        if self._order[0] != epoch:
            order = list(range(len(self.records)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._order = epoch, order
        return self._order[1][at]

    def _show(self, records: list[ImageRecord], identity: str, views: Sequence[str]) -> Shown:
        shown = Shown(torch.empty(len(records), self.side, self.side, 3), [])
        for place, record in enumerate(records):
            rng = random.Random(f"{identity}/{place}/{record.id}")
            for _ in range(TRIES):
                picture = self._read(record, rng, views)
                if isinstance(picture, Tensor):
                    break
                shown.skipped[record.id] = picture
                record = rng.choice(self.records)
            else:
                raise SourceError(
                    f"{TRIES} pictures in a row cannot be read, such as {next(iter(shown.skipped))}: {picture}. Expected pictures "
                    "as latent-clip embed reads them."
                )
            shown.pixels[place] = picture
            shown.captions.append(record.captions)
        return shown

    def _read(self, record: ImageRecord, rng: random.Random, views: Sequence[str]) -> Tensor | str:
        """A view of a picture, or why there is none."""
        try:
            picture = picture_of(record)
            if isinstance(picture, str):
                return picture
            (view,) = views_of(picture.size, [rng.choice(views)], str(rng.random()))
            return cut(picture, view, self.side)
        except MemoryError:
            raise
        except Exception as error:  # one odd picture must not end a run, whatever is odd about it
            return f"{type(error).__name__}: {error}"
