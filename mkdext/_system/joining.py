"""How the processes that `torchrun` or another launcher has started find each other."""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from mkdext._system.errors import mark_as_told
from mkdext._system.processes import LostProcess, Processes, at_work, processes

LIMIT = "MKDEXT_PROCESS_TIMEOUT"
"""Environment variable: seconds that one process waits for another."""
_USUAL_LIMIT = 600.0
_GRACE = 5.0  # seconds more than PyTorch's own limit, whose message tells more
_NEEDED = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank of this process and number of processes, as a launcher has set them; else 0 and 1.

    Raises:
        ValueError: It has set them in part.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} of the "
            "environment is not set: start by torchrun, or unset WORLD_SIZE to train in one process"
        )
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not environment[name].isdecimal():
            raise ValueError(f"{name} must be a number, got {environment[name]!r}")
        numbers[name] = int(environment[name])
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise ValueError(
            f"RANK must be below WORLD_SIZE {numbers['WORLD_SIZE']}, got {numbers['RANK']}"
        )
    return numbers["RANK"], numbers["WORLD_SIZE"]


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Compute together with the processes that were launched with this one, if there are such.

    An error that the first process raises too is marked as told by it.

    Raises:
        ValueError: The launcher's environment is not usable.
        LostProcess: Not all processes came.
    """
    rank, size = launched()
    if processes().size > 1 or size == 1:
        yield processes()
        return
    if not dist.is_available():
        raise ValueError(
            f"this PyTorch cannot train in {size} processes, it was built without torch.distributed"
        )
    # Not every PyTorch has it.
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    limit = _limit()
    was_there = dist.is_initialized()
    store = _get_default_store() if was_there else _meet(rank, size, limit)
    together = Processes(rank, size, store=PrefixStore("mkdext", store), limit=limit)
    try:
        with at_work(together):
            yield together
    except BaseException as error:
        if together.is_told_by_first(f"{type(error).__name__}: {error}"):
            mark_as_told(error)
        raise
    else:
        if not was_there:
            dist.destroy_process_group()


def device_of(name: str) -> str:
    """Where this process computes: of `cuda`, on the GPU of its own.

    Raises:
        ValueError: There are fewer GPUs than processes, or one for all was named.
    """
    if processes().size == 1 or not name.startswith("cuda"):
        return name
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if name != "cuda":
        raise ValueError(
            f"`device` must be cuda with several processes, each of which takes a GPU, got {name}"
        )
    if local >= count:
        raise ValueError(
            f"`device` cuda: {socket.gethostname()} has {count} CUDA devices, but process {local} "
            "of it (counted from 0) needs one of its own; start fewer by --nproc-per-node"
        )
    torch.cuda.set_device(local)
    return name


def _limit() -> float:
    given = os.environ.get(LIMIT, str(_USUAL_LIMIT))
    with contextlib.suppress(ValueError):
        if 1 <= float(given) <= 1e6:
            return float(given)
    raise ValueError(f"{LIMIT} must be a number of seconds from 1 to 1000000, got {given!r}")


def _meet(rank: int, size: int, limit: float) -> Any:
    """Join the others, and return where messages are left."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore

    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    patience = datetime.timedelta(seconds=limit)

    def met() -> Any:
        # An agent of torchrun keeps the messages of its processes itself.
        keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        settings = {"is_master": keeps, "wait_for_workers": False, "multi_tenant": True}
        return TCPStore(address, int(port), timeout=patience, **settings)

    try:
        store = _within(limit + _GRACE, met)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in str(error):
            raise ValueError(
                f"port {port} of {address} is in use by another program; give another one, as "
                "MASTER_PORT or --master-port of torchrun, or let torchrun find one by --standalone"
            ) from None
        raise LostProcess(
            f"process {rank} cannot reach {address} at port {port}, where process 0 should wait "
            f"({reason})"
        ) from None
    came = PrefixStore("came", store)
    came.set(str(rank), socket.gethostname())
    _require_all(came, size, limit)
    # Of a GPU's tensors NCCL takes care, of the others gloo.
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except RuntimeError as error:
        raise LostProcess(
            f"process {rank} of {size} does not reach the others: {str(error).splitlines()[0]}; on "
            "machines with several networks GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the one "
            "to use"
        ) from None
    return store


def _within(limit: float, function: Callable[[], Any]) -> Any:
    """What a function returns, which may wait forever, such as for an answer of another program.

    Raises:
        RuntimeError: It takes too long, or it raises it.
    """
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((function(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=limit)
    except queue.Empty:
        raise RuntimeError(f"there is no answer within {limit:.0f} seconds") from None
    if error is not None:
        raise error
    return answer


def _require_all(came: Any, size: int, limit: float) -> None:
    missing, until = list(range(size)), time.monotonic() + limit
    try:
        while missing and time.monotonic() < until:
            missing = [rank for rank in missing if not came.check([str(rank)])]
            if missing:
                time.sleep(0.05)
    except RuntimeError as error:
        raise LostProcess(f"process 0 is gone ({str(error).splitlines()[0]})") from None
    if missing:
        raise LostProcess(
            f"{len(missing)} of {size} processes did not come within {limit:.0f} seconds: "
            f"{', '.join(map(str, missing))} (counted from 0); start all of them, with the same "
            "--nnodes and --nproc-per-node"
        )
