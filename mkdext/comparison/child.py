"""One training of a comparison, which ends with it.

`python -m mkdext.comparison.child PARENT FLAGS`, the flags being those of `python -m mkdext.train`.
"""

from __future__ import annotations

import sys

from mkdext._system.lifetime import end_with


def main() -> int:
    """Train, until done or the comparison, process number PARENT, is no more."""
    parent, *flags = sys.argv[1:]
    end_with(int(parent))
    from mkdext import train

    return train.main(flags)


if __name__ == "__main__":
    sys.exit(main())
