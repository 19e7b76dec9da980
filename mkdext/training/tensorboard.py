"""Metrics for TensorBoard, where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdext._system.streams import printable

Write = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def tensorboard(folder: Path, first: int) -> Iterator[Write]:
    """A function that adds one record of metrics to event files in `folder`.

    Events after step `first`, from a run that was interrupted, count no more. Where the package
    `tensorboard` is missing the function does nothing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=first + 1) as writer:

        def write(record: Mapping[str, Any]) -> None:
            for name, value in _flat(record):
                writer.add_scalar(printable(name), value, record["step"])

        yield write


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif name != "step" and isinstance(value, int | float):
            yield prefix + name, value
