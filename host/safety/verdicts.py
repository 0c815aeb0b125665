"""Safety verdict per image, keyed by a hash of its latent, from Safety Guidance for Safety Gate."""

import hashlib
from collections import OrderedDict
from dataclasses import asdict, dataclass

import comfy.model_management as mm
import torch
from torch import Tensor

REMEMBERED = 4096  # images; older ones are forgotten


@dataclass(frozen=True)
class Verdict:
    """Verdict of one image: that of its draft, and that of the monitor during sampling.

    Attributes:
        draft: reason for which its draft was flagged, so that it was made from the fallback prompt; "" if it was not.
        scores: log-odds of its draft, by category; None where there are none.
        late: reason it was flagged during sampling after its draft had passed; "" if it was not.
        redirected: whether the fallback prompt took over, from the first step or later.
    """

    draft: str
    scores: list[float | None]
    late: str
    redirected: bool

    def as_dict(self) -> dict:
        return asdict(self)


class Verdicts:
    """Verdicts of one Safety Guidance, filled while its model is sampled.

    An image is known by its numbers: it may be selected, moved within its batch or put into another one. An image that was
    changed since, or made by another model, is not known.
    """

    def __init__(self) -> None:
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    def remember(self, samples: Tensor, verdicts: list[Verdict | None]) -> None:
        """Keep the verdicts of raw latents (B, C, H, W), as the host hands them on."""
        for item, verdict in zip(samples, verdicts, strict=True):
            for key in digests(item):
                self._verdicts.pop(key, None)
                if verdict is not None:
                    self._verdicts[key] = verdict
        while len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)

    def of(self, samples: Tensor) -> list[Verdict | None]:
        """Find the verdict of each latent of (B, C, H, W); None for one that is not known."""
        return [self._verdicts.get(_digest(item)) for item in samples]


def digests(item: Tensor) -> set[bytes]:
    """Hashes of a latent, in each dtype in which the host may hand it on."""
    dtypes = {torch.float32, getattr(mm, "intermediate_dtype", lambda: torch.float32)()}
    return {_digest(item.to(dtype)) for dtype in dtypes}


def _digest(item: Tensor) -> bytes:
    numbers = item.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(repr(numbers.shape).encode() + numbers.tobytes()).digest()
