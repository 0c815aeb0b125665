"""Out of memory, in all the ways in which a device says it."""

from collections.abc import Callable
from typing import TypeVar, cast

import comfy.model_management as mm
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..methods.features import Look

WORDS = ("out of memory", "not enough gpu video memory", "not enough memory")


def is_oom(error: BaseException) -> bool:
    """The host's own test where it has one; besides, Apple's and DirectML's RuntimeError, and older hosts with a newer torch."""
    if isinstance(error, mm.OOM_EXCEPTION) or getattr(mm, "is_oom", lambda _: False)(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)


Features = TypeVar("Features", Tensor, Look)


def one_by_one_when_out(encode: Callable[[Tensor], Features], batch: Tensor, fits: bool = True) -> Features:
    """encode(batch); where memory runs out, item by item, each computed again on the way back.

    Args:
        encode: (B, ...) → (B, ...) or a tuple of such, every item for itself.
        fits: False where it is known that the whole batch has no room.
    """
    if fits or len(batch) == 1:
        try:
            return encode(batch)
        except (mm.OOM_EXCEPTION, RuntimeError) as error:
            if len(batch) == 1 or not is_oom(error):
                raise
        mm.soft_empty_cache()  # outside the handler, whose traceback keeps the activations alive
    if torch.is_grad_enabled() and batch.requires_grad:
        parts = [checkpoint(encode, item, use_reentrant=False) for item in batch.split(1)]
    else:
        parts = [encode(item) for item in batch.split(1)]
    joined = Look(*map(torch.cat, zip(*parts))) if isinstance(parts[0], Look) else torch.cat(parts)
    return cast(Features, joined)
