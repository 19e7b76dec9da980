"""How much memory a training of many inner steps needs, told from one of few."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

from mkdext.training.options import SharedOptions

_INNER_STEPS = 5

_Options = TypeVar("_Options", bound=SharedOptions)
_Networks = TypeVar("_Networks")
_Estimate = Callable[[_Options, _Networks], int | None]
"""Bytes that a step of a training takes; none: not known."""


def reckons_inner_steps(
    estimate: _Estimate[_Options, _Networks],
) -> _Estimate[_Options, _Networks]:
    """Make an estimate, a decorator's argument, compute five inner steps at most.

    From the fourth on, each step adds as much as the one before: what more steps add is reckoned.
    """

    @functools.wraps(estimate)
    def of_any_number(options: _Options, networks: _Networks) -> int | None:
        steps = options.meta.steps or 1
        if steps <= _INNER_STEPS:
            return estimate(options, networks)
        fewer, more = (
            estimate(
                dataclasses.replace(options, meta=dataclasses.replace(options.meta, steps=count)),
                networks,
            )
            for count in (_INNER_STEPS - 1, _INNER_STEPS)
        )
        if fewer is None or more is None:
            return None
        return more + (steps - _INNER_STEPS) * (more - fewer)

    return of_any_number
