"""A command in a process of its own, which ends with the process that wants its result.

`python -m mkdext._system.child PARENT MODULE ARGUMENTS` runs MODULE as `python -m` does.
"""

from __future__ import annotations

import runpy
import sys

from mkdext._system.lifetime import end_with


def main() -> None:
    """Run the module, until it is done or process number PARENT is no more."""
    _, parent, module, *arguments = sys.argv
    end_with(int(parent))
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
