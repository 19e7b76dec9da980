"""`python -m mkdext.comparison.child`: one training of a comparison, which ends with it.

The flags are those of `python -m mkdext.train`.
"""

from __future__ import annotations

import os
import sys
import threading


def main() -> int:
    """Train, until done or the comparison is no more, however it ended."""
    # The comparison holds the other end of this pipe and never writes to it.
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    from mkdext import train

    return train.main(sys.argv[1:])


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
