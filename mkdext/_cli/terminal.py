"""The terminal of a command."""

from __future__ import annotations

from mkdext._cli.wording import in_flags
from mkdext._system.terminal import Terminal


class CommandTerminal(Terminal):
    """A terminal on which arguments of the library are called by their flags."""

    def say(self, text: str) -> None:
        """Print a text; long lines are not broken."""
        super().say(in_flags(text))
