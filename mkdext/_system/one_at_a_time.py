"""Computations that keep out of each other's way."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_TRAINING = threading.Lock()


def one_at_a_time(training: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a training, a decorator's argument, refuse to begin while another is at work.

    All threads of a process share PyTorch's random numbers: two trainings at once would draw from
    each other's, and neither could be repeated.
    """

    @functools.wraps(training)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not _TRAINING.acquire(blocking=False):
            raise ValueError(
                "another training is at work in this process, with whose random numbers this one "
                "would be mixed: begin it when that has ended, or in a process of its own"
            )
        try:
            return training(*args, **kwargs)
        finally:
            _TRAINING.release()

    return alone
