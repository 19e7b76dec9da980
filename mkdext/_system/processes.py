"""Several processes that compute one thing: what each takes of a batch, what they bring together.

N processes compute what one computes. Each makes its rows of a batch; what follows from all rows is
brought together by one operation, `averaged`: the mean over the rows of all processes, of which
each has the mean over its own. It is its own derivative, so a loss may be made of averages to any
order: where every process differentiates a value of its own, the average of the gradients is the
gradient of the average of the values. With one process it does nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from mkdext._system.errors import WorkFailed

_T = TypeVar("_T")
_GRACE = 3.0  # seconds in which those that live say so
_POLL = 0.1


class LostProcess(WorkFailed):
    """One of the processes ended or does not answer."""


class Processes:
    """The processes of a training, seen from one of them; by default there is one.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        share: This process's share of the rows of a batch.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: Any = None, store: Any = None, limit: float = 0
    ) -> None:
        """Take the place of this process.

        Args:
            rank: Its number.
            size: How many there are.
            group: As `torch.distributed` takes it; none: all.
            store: Where they leave messages; none: nowhere.
            limit: Seconds that one waits for another.
        """
        self.rank = rank
        self.size = size
        self.limit = limit
        self.share = 1.0
        self._batch = 0
        self._group = group
        self._store = store
        self._turns = itertools.count()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def divide(self, batch_size: int) -> None:
        """From here on, divide batches of that size.

        Raises:
            ValueError: There are more processes than rows.
        """
        if batch_size < self.size:
            raise ValueError(
                f"`batch_size` must be at least the number of processes, {self.size}, which share "
                f"a batch, got {batch_size}"
            )
        self._batch = batch_size
        rows = self.rows(batch_size)
        self.share = (rows.stop - rows.start) / batch_size

    def rows(self, count: int) -> slice:
        """Which of `count` rows are this process's: as many as another's, or one more.

        Example:
            >>> Processes(rank=1, size=3).rows(7)
            slice(3, 5, None)
        """
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def part(self, first: int, count: int) -> slice:
        """This process's rows of a part of the batch, counted within the part.

        Args:
            first: Rows of the batch before the part.
            count: Rows of the part.
        """
        own = self.rows(self._batch or first + count)
        start, stop = (min(max(end - first, 0), count) for end in (own.start, own.stop))
        return slice(start, stop)

    def averaged(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Means over the rows of all processes, given those over the rows of each.

        One message, whatever the number of tensors. Differentiable any number of times. What is the
        same everywhere stays as it is.
        """
        if self.size == 1 or not tensors or tensors[0].is_meta:
            return tensors
        result: tuple[Tensor, ...] = _Averaged.apply(self, *tensors)  # type: ignore[no-untyped-call]
        return result

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes in their order, `[B, ...]`, given this one's.

        Differentiable any number of times.
        """
        if self.size == 1 or rows.is_meta:
            return rows
        own = self.rows(self._batch)
        others = own.start, self._batch - own.stop
        before, after = (rows.new_zeros(count, *rows.shape[1:]) for count in others)
        (whole,) = self.averaged(torch.cat([before, rows / self.share, after]))
        return whole

    def averaged_numbers(self, values: Mapping[str, float]) -> dict[str, float]:
        """The same of numbers by name."""
        if self.size == 1 or not values:
            return dict(values)
        (numbers,) = self.averaged(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, numbers.tolist(), strict=True))

    def agreed(self, number: int) -> int:
        """The largest of the numbers of all processes; nobody goes on before all are here."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        self._reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def all_of(self, value: _T) -> list[_T]:
        """What every process has, in the order of their ranks; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._answering():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def require_same(self, values: Mapping[str, object]) -> None:
        """Check that all processes have the same.

        Raises:
            ValueError: One has not, which is named with what differs.
        """
        everyone = self.all_of((socket.gethostname(), dict(values)))
        first = everyone[0][1]
        for rank, (host, own) in enumerate(everyone):
            names = [n for n in {**first, **own} if first.get(n) != own.get(n)]
            if names:
                what = ", ".join(
                    f"{n} is {own.get(n)!r} there, {first.get(n)!r} here" for n in names
                )
                raise ValueError(
                    f"process {rank} on {host} does not do the same as process 0: {what}; start "
                    "all by the same command, with the same versions"
                )

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors everywhere the values that they have in the first process."""
        if self.size == 1:
            return
        for tensor in tensors:
            if tensor.is_meta or not tensor.numel():
                continue
            sent = tensor.detach().contiguous()
            with self._answering():
                dist.broadcast(sent, group=self._group, group_src=0)
            with torch.no_grad():
                tensor.copy_(sent)

    @contextlib.contextmanager
    def in_turn(self, what: str) -> Iterator[None]:
        """Let one process after the other do something, however long it takes.

        Args:
            what: It makes, for the message if one falls silent.
        """
        if self.size == 1:
            yield
            return
        turn = next(self._turns)
        if not self.is_first:
            self._wait_for(f"turn/{turn}/{self.rank - 1}", what)
        own = f"turn/{turn}/{self.rank}"
        with self._beating():
            yield
        self._store.set(own, "1")

    def _wait_for(self, key: str, what: str) -> None:
        """Wait for a message as long as some process works on it."""
        last, since = 0, time.monotonic()
        while not self._store.check([key]):
            time.sleep(_POLL)
            beats = self._store.add("beats", 0)
            if beats != last:
                last, since = beats, time.monotonic()
            if time.monotonic() - since > self.limit:
                raise LostProcess(
                    f"no process has answered for {self.limit:.0f} seconds while one made {what}"
                )

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Show the others that wait that this process works."""
        ended = threading.Event()

        def beat() -> None:
            with contextlib.suppress(RuntimeError):  # The others are gone.
                while not ended.wait(min(1.0, self.limit / 4)):
                    self._store.add("beats", 1)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(self.limit)

    def reduced(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As `averaged`, without a gradient."""
        results: list[Tensor | None] = [None] * len(tensors)
        kinds: dict[torch.dtype, list[int]] = {}
        for index, tensor in enumerate(tensors):
            kinds.setdefault(tensor.dtype, []).append(index)
        for indices in kinds.values():
            flat = torch.cat([tensors[i].reshape(-1) for i in indices]).mul_(self.share)
            self._reduce(flat, dist.ReduceOp.SUM)
            sizes = [tensors[i].numel() for i in indices]
            for i, part in zip(indices, torch.split(flat, sizes), strict=True):
                results[i] = part.view(tensors[i].shape)
        return tuple(r for r in results if r is not None)

    def _reduce(self, tensor: Tensor, how: Any) -> None:
        with self._answering():
            dist.all_reduce(tensor, how, self._group)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Tell which process does not answer, where a message does not get through."""
        try:
            yield
        except RuntimeError as error:
            self._name_the_lost(error)

    def _name_the_lost(self, error: RuntimeError) -> NoReturn:
        missing: list[int] = []
        try:
            self._store.set(f"lives/{self.rank}", "1")
            self._come([f"lives/{rank}" for rank in range(self.size)])
            missing = [r for r in range(self.size) if not self._store.check([f"lives/{r}"])]
        except (AttributeError, RuntimeError):
            # Without a store, or with the process that has it.
            missing = [0] if self._store is not None and not self.is_first else []
        reason = str(error).splitlines()[0]
        if not missing:
            raise LostProcess(f"the processes have lost each other: {reason}") from error
        names = " and ".join(map(str, missing))
        several = len(missing) > 1
        raise LostProcess(
            f"process{'es' * several} {names} of {self.size} (counted from 0) ended or did not "
            f"answer within {self.limit:.0f} seconds; if no other message tells why, "
            f"{'they were' if several else 'it was'} killed or the connection broke. The same "
            "command continues from the last checkpoint"
        ) from error

    def is_told_by_first(self, text: str) -> bool:
        """Whether the first process ends with the same message as this one.

        The first, which may keep the messages, waits a little for the others.
        """
        if self.size == 1 or self._store is None:
            return False
        with contextlib.suppress(RuntimeError):
            self._store.set(f"ended/{self.rank}", text)
            if not self.is_first and self._come(["ended/0"]):
                first = self._store.get("ended/0").decode()
                self._store.set(f"heard/{self.rank}", "1")
                return bool(first == text)
            if self.is_first:
                self._come([f"heard/{rank}" for rank in range(1, self.size)])
        return False

    def _come(self, keys: Sequence[str]) -> bool:
        """Whether messages come within a short time."""
        until = time.monotonic() + _GRACE
        while not all(self._store.check([key]) for key in keys):
            if time.monotonic() > until:
                return False
            time.sleep(_POLL)
        return True


class _Averaged(Function):
    """The average, which is its own derivative."""

    @staticmethod
    def forward(ctx: Any, together: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.together = together
        return together.reduced(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.together.averaged(*gradients)


_current = Processes()


def processes() -> Processes:
    """Those of the training at work."""
    return _current


def averaged(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As `Processes.averaged`, of the training at work."""
    return _current.averaged(*tensors)


def var_mean(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Variance, without a correction, and mean over some dimensions and all processes."""
    if _current.size == 1 or x.is_meta:
        return torch.var_mean(x, dims, correction=0)
    (mean,) = averaged(x.mean(dims, keepdim=True))
    (variance,) = averaged((x - mean).square().mean(dims, keepdim=True))
    kept = [size for axis, size in enumerate(x.shape) if axis not in dims]
    return variance.reshape(kept), mean.reshape(kept)


@contextlib.contextmanager
def at_work(together: Processes) -> Iterator[Processes]:
    """Let processes be those of the training at work."""
    global _current
    before, _current = _current, together
    try:
        yield together
    finally:
        _current = before
