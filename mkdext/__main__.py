"""``mkdext <command>`` and ``python -m mkdext <command>``, for ``python -m mkdext.<command>``."""

from __future__ import annotations

import difflib
import runpy
import sys

import mkdext

COMMANDS = {
    "train": "distil a super-resolution network",
    "doctor": "show what is installed, compiled and missing, and the fix",
}
"""Every command, by the name of its module, with one line of help."""


def main() -> int:
    """Run the command named by the first argument with the rest of the arguments.

    Returns:
        The exit status: 2 if there is no such command.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in {"-h", "--help"}:
        print(_usage())
    elif name == "--version":
        print(f"mkdext {mkdext.__version__}")
    elif name in COMMANDS:
        sys.argv = [f"mkdext {name}", *arguments]
        runpy.run_module(f"mkdext.{name}", run_name="__main__")
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f"; it is one of {', '.join(COMMANDS)}"
        print(f"mkdext: there is no command {name!r}{hint}", file=sys.stderr)
        return 2
    return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        ["usage: mkdext <command> [options]", "", *lines, "", "mkdext <command> --help tells more"]
    )


if __name__ == "__main__":
    sys.exit(main())
