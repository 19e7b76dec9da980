"""What a terminal can show; it needs nothing beyond Python."""

from __future__ import annotations

import io
import re
import sys

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""A text in which what `encoding` cannot show, and control characters, are replaced by `?`.

    Example:
        >>> printable("a\x1b[31m" + b"\x89\xc4".decode(errors="surrogateescape"))
        'a?[31m??'
    """
    shown = _CONTROL.sub("?", text).encode(encoding, "replace")
    return shown.decode(encoding, "replace")


def replace_unencodable() -> None:
    """Let standard output show `?` for what it cannot show; standard error never fails."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
