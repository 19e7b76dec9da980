"""What the library says of arguments, in words of the command line."""

from __future__ import annotations

import re

_ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)`")


def in_flags(text: str) -> str:
    """A message of the library, whose arguments stand in backticks, with flags in their place.

    Example:
        >>> in_flags("`lr_min` must be at most `lr` 0.1, got 0.2")
        '--lr-min must be at most --lr 0.1, got 0.2'
    """
    return _ARGUMENT.sub(lambda found: "--" + found.group(1).replace("_", "-"), text)
