"""What a command says where memory is exhausted before it has begun."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_NO_MEMORY = ("failed to map segment", "annot allocate memory")


def explain_exhausted_memory() -> None:
    """Let a process whose imports run out of memory end with one sentence."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MemoryError) or any(part in str(error) for part in _NO_MEMORY):
            reason = str(error) or kind.__name__
            print(
                f"mkdext: memory ran out before the command began ({reason}); PyTorch "
                "alone takes about a gigabyte: raise the limit (ulimit -v) or close other programs",
                file=sys.stderr,
            )
        else:
            usual(kind, error, trace)

    sys.excepthook = hook


def is_command() -> bool:
    """Whether this process is `mkdext`, `python -m mkdext` or one of its commands."""
    given = sys.orig_argv
    if len(given) > 1 and Path(given[1]).stem == "mkdext":  # the installed command
        return True
    module = given[given.index("-m") + 1 :][:1] if "-m" in given else []
    return bool(module) and module[0].split(".")[0] == "mkdext"
