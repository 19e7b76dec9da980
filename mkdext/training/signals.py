"""What a training raises when the system or the user ends it."""

from __future__ import annotations

from pathlib import Path

from mkdext._system.errors import WorkStopped


class TrainingStopped(WorkStopped):
    """The training was asked to stop; its checkpoint is written."""

    def __init__(self, signal_number: int, after: str, out: Path) -> None:
        """Tell what stopped it and where."""
        message = f"stopped after {after}; the same command goes on from {out}"
        super().__init__(signal_number, message)
