"""Out-of-memory errors: recognise them on every device, and compute in smaller parts."""

from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as mm
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...methods.features import WindowFeatures

WORDS = ("out of memory", "not enough gpu video memory", "not enough memory")


def is_oom(error: BaseException) -> bool:
    """Return True for an out-of-memory error, also of MPS, DirectML and newer torch than the host expects."""
    if isinstance(error, mm.OOM_EXCEPTION) or getattr(mm, "is_oom", lambda _: False)(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


Features = TypeVar("Features", Tensor, WindowFeatures)


class BatchLimit:
    """Largest batch that fitted into memory, by the shape of an item and by whether a gradient flows.

    Without a gradient a batch that has no room is halved until it fits. With one, halves would save nothing, because
    autograd keeps the activations of all of them: every item is then computed by itself, and again in the backward pass.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[bool, torch.Size], int] = {}

    def forget(self) -> None:
        """Try whole batches again; to be called where memory was made free."""
        self._sizes.clear()

    def run(self, encode: Callable[[Tensor], Features], batch: Tensor, fits: bool = True) -> Features:
        """Return encode(batch), computed in as large parts as there is room for.

        Args:
            encode: (B, ...) → (B, ...) or a tuple of such; items must not depend on each other.
            fits: False where the caller knows that the whole batch has no room.

        Raises:
            The device's out-of-memory error, where even one item has no room.
        """
        gradient = torch.is_grad_enabled() and batch.requires_grad
        key = (gradient, batch.shape[1:])
        size = len(batch) if fits else 1
        size = max(1, min(size, self._sizes.get(key, size)))
        parts: list[Features] = []
        done = 0
        while done < len(batch):
            again = gradient and len(batch) > size
            part = self._try(encode, batch[done : done + size], again)
            if part is None:
                size = self._sizes[key] = 1 if gradient else size // 2
                mm.soft_empty_cache()
                continue
            parts.append(part)
            done += size
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], WindowFeatures):
            return WindowFeatures(*map(torch.cat, zip(*parts)))
        return torch.cat(parts)

    @staticmethod
    def _try(encode: Callable[[Tensor], Features], part: Tensor, again: bool) -> Features | None:
        """Return None where memory ran out for several items; outside the handler, whose traceback holds the activations."""
        try:
            return checkpoint(encode, part, use_reentrant=False) if again else encode(part)
        except (mm.OOM_EXCEPTION, RuntimeError) as error:
            if len(part) == 1 or not is_oom(error):
                raise
            return None
