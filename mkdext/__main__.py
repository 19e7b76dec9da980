"""``mkdext <command>`` and ``python -m mkdext <command>``, for ``python -m mkdext.<command>``."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

from mkdext import __version__
from mkdext._system.startup import explain_exhausted_memory

COMMANDS = {
    "train": "distil a super-resolution network",
    "datafree": "distil one without a photograph to train on",
    "compare": "train students by several methods under one protocol",
    "data": "prepare, check and list photographs to train and test on",
    "evaluate": "measure networks on photographs",
    "upscale": "enlarge pictures with a trained network",
    "attribution": "show which pixels networks make their details from",
    "export": "write a network for another runtime",
    "points": "show which sub-modules of a network can be distillation points",
    "complexity": "count parameters and operations of the networks",
    "doctor": "show what is installed, compiled and missing, and the fix",
}
"""Every command with one line of help. Its module has ``main(arguments) -> exit status``."""


def main() -> int:
    """Run the command named by the first argument with the rest of the arguments.

    Returns:
        The exit status: that of the command, 2 if there is no such command.
    """
    explain_exhausted_memory()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in {"-h", "--help"}:
        print(_usage())
    elif name == "--version":
        print(f"mkdext {__version__}")
    elif name in COMMANDS:
        status: int = _module_of(name).main(arguments)
        return status
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else f"; it is one of {', '.join(COMMANDS)}"
        print(f"mkdext: there is no command {name!r}{hint}", file=sys.stderr)
        return 2
    return 0


def _module_of(command: str) -> Any:
    module = importlib.import_module(f"mkdext.{command}")
    is_package = hasattr(module, "__path__")
    return importlib.import_module(f"mkdext.{command}.__main__") if is_package else module


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        ["usage: mkdext <command> [options]", "", *lines, "", "mkdext <command> --help tells more"]
    )


if __name__ == "__main__":
    sys.exit(main())
