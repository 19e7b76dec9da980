"""Suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The names of `known` nearest to `name`, to be put at the end of an error message.

    Example:
        >>> did_you_mean("rcan-q", ["rcan-a", "edsr-t"])
        '; did you mean rcan-a?'
        >>> did_you_mean("unlike", ["rcan-a", "edsr-t"])
        ''
    """
    near = difflib.get_close_matches(name, list(known), n=4)
    return f"; did you mean {' or '.join(near)}?" if near else ""
