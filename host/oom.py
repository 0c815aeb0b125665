"""Out of memory, in all the ways in which a device says it."""

import comfy.model_management as mm

WORDS = ("out of memory", "not enough gpu video memory", "not enough memory")


def is_oom(error: BaseException) -> bool:
    """The host's own test where it has one; besides, Apple's and DirectML's RuntimeError, and older hosts with a newer torch."""
    if isinstance(error, mm.OOM_EXCEPTION) or getattr(mm, "is_oom", lambda _: False)(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)
