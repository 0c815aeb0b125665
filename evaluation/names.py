"""Checks of file and folder names from lists and the command line, before any picture is made."""

from __future__ import annotations

import os
import re

LONGEST = 240  # bytes of a picture's name before its number; file systems take 255 in all
WINDOWS = os.name == "nt"
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE | re.DOTALL)


def unfit(name: str, windows: bool = WINDOWS) -> str:
    """Return the reason why no file can have this name; "" if it can.

    Args:
        windows: apply the rules of Windows too.
    """
    if name in ("", ".", ".."):
        return "is no name"
    if len(name.encode(errors="surrogatepass")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    if "/" in name:
        return "holds a /"
    if odd := next((c for c in name if ord(c) < 32 or ord(c) == 127 or "\ud800" <= c <= "\udfff"), ""):
        return f"holds the character {odd!r}"
    if windows and (odd := next((c for c in name if c in '\\:*?"<>|'), "")):
        return f"holds a {odd}, which Windows does not take"
    if windows and (name.endswith((".", " ")) or is_device(name)):
        return "is a name that Windows does not take"
    return ""


def is_device(name: str) -> bool:
    """Return True if Windows takes the name for a device, such as CON or nul.txt."""
    return _DEVICES.fullmatch(name) is not None
