"""How much memory a computation needs, found without doing it."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mkdext.training.options import ResolvedShared

_INNER_STEPS = 5


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made inside of it that are alive.

    With meta tensors, which have shapes but no memory, it tells what a computation would need.

    Attributes:
        live: Bytes at present.
        peak: Most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


_Options = TypeVar("_Options", bound=ResolvedShared)
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
        steps = options.meta.steps
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


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this machine or container can still give, none where Linux does not tell.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    except OSError:
        return None
    kilobytes, _ = fields["MemAvailable"].split()
    return min([int(kilobytes) * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the control group of this process leaves it, and each group above that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    name = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    mounted = root / "sys/fs/cgroup"
    for group in (mounted / name, *(mounted / name).parents):
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or "max"
            continue
        # What files keep in memory without need is given back when it is wanted.
        yield max(limit - used + int(kept.get("inactive_file", 0)), 0)
