"""The usable samples of tars: what cannot be used is counted by reason and passed over, up to a bound."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from torch import Tensor

from .shards import Sample, ShardError, decode_sample, raw_tar_samples

LOGGER = logging.getLogger(__name__)
MOST_FAULTS = 100  # faults in a row before the data set is given up
MOST_REASONS = 20  # that are counted by themselves


class NoCaptionError(ShardError):
    """A sample without captions where they are trained on: no fault, and a folder may have thousands of them in a row."""


@dataclass
class Faults:
    """Counts by reason of the tars and samples that were passed over."""

    counts: Counter[str] = field(default_factory=Counter)
    in_a_row: int = 0

    def add(self, error: Exception) -> None:
        """Count one.

        Raises:
            ShardError: it is one too many in a row.
        """
        reason = _reason(error)
        if reason not in self.counts and len(self.counts) >= MOST_REASONS:
            reason = "other reasons"
        self.counts[reason] += 1
        self.in_a_row += not isinstance(error, NoCaptionError)
        if self.counts[reason] == 1:
            LOGGER.warning(
                "Passing over what cannot be read, the first of its kind: %s: %s", type(error).__name__, error
            )
        if self.in_a_row > MOST_FAULTS:
            raise ShardError(
                f"Got {self.in_a_row} faults in a row ({self}), expected readable shards. Check the path, the disk and the options; shards "
                "are made with: latent-clip embed"
            ) from error

    def __str__(self) -> str:
        return ", ".join(f"{count} × {reason}" for reason, count in self.counts.most_common()) or "no sample in them"


def _reason(error: Exception) -> str:
    """A few words that are the same for all faults of a kind."""
    if isinstance(error, ShardError):
        return error.reason or str(error).partition(". ")[0][:120].removeprefix("Got ")
    return type(error).__name__


def samples_of(tar: Path, faults: Faults, check: Callable[[Sample], None]) -> Iterator[Sample]:
    """The usable samples of a tar in their order; what else is in it is counted and passed over.

    Args:
        check: raises an error over a sample that is of no use.
    """
    for members in _members(tar, faults):
        try:
            sample = decode_sample(members)
            check(sample)
        except MemoryError:
            raise
        except Exception as error:  # one odd sample must not end a run, whatever is odd about it
            faults.add(error)
        else:
            faults.in_a_row = 0
            yield sample


def _members(tar: Path, faults: Faults) -> Iterator[dict[str, bytes]]:
    try:
        yield from raw_tar_samples(tar)
    except MemoryError:
        raise
    except Exception as error:  # nor one odd tar
        faults.add(error)


def point_of(sample: Sample) -> Tensor:
    """The latent of every view, (V, C, h, w); a posterior's mean."""
    return sample.latent["mean"] if "mean" in sample.latent else sample.latent["latent"]


def check_latent(sample: Sample, channels: int = 0, grid: int = 0) -> None:
    """Refuse latents of another size; 0: any.

    Raises:
        ShardError: says what it is.
    """
    shape = point_of(sample).shape
    if channels and shape[1] != channels:
        raise ShardError(
            f"Got latents of {shape[1]} channels, expected {channels}. Embed again with the VAE of the others."
        )
    if grid and tuple(shape[-2:]) != (grid, grid):
        raise ShardError(
            f"Got latents of {shape[-1]}×{shape[-2]} cells, expected {grid}×{grid}. Embed again with the --side of the new tower."
        )


def nothing_usable(count: int, faults: Faults) -> ShardError:
    """The error of a pass over all tars that gave no sample."""
    return ShardError(f"Got no usable sample from {count} shards: {faults}. Make new ones with: latent-clip embed")


def spread_samples(tars: Sequence[Path], count: int, check: Callable[[Sample], None]) -> list[Sample]:
    """About `count` usable samples from all over the tars, to see what is usual."""
    some, faults = tars[:: max(1, len(tars) // count)][:count], Faults()
    return [sample for tar in some for sample in islice(samples_of(tar, faults, check), -(-count // len(some)))]


def usual_width(samples: Sequence[Sample]) -> int:
    """Numbers of the features that most samples have; 0 where none has any."""
    return usual(sample.teacher["features"].shape[-1] for sample in samples if "features" in sample.teacher) or 0


def usual(values: Iterable):
    """The most frequent value, the first of several; None where there is none."""
    return next((value for value, _ in Counter(values).most_common(1)), None)
