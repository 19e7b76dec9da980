"""Host code compiled by nvcc, whose launches run in the machine."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.ops.ptx.fault import Fault
from tests.ops.ptx.global_memory import Buffer
from tests.ops.ptx.machine import Machine
from tests.ops.ptx.program import Module
from tests.ops.ptx.threads import Dim3, Observer

OnLaunch = Callable[[str, int, int, int], tuple[Iterable[int], Observer | None]]

_LAUNCH = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.POINTER(ctypes.c_uint * 3),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
    ctypes.c_int,
)
_SHARED_BYTES = 48 * 1024  # what a kernel may have without cudaFuncSetAttribute


class Launches:
    """A library of toolchain.compile_operators, and where its launches go.

    Attributes:
        library: Its functions. What went wrong in a launch is raised by `check`, not by them.
        kernels: The mangled names of all kernels.
        machine: What runs the kernels.
        on_launch: Given a launch's kernel, number of blocks, threads of a block and bytes of shared
            memory it says which blocks run, and who is told what they execute. All run if None.
    """

    def __init__(self, library: Path, ptx: str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.on_launch: OnLaunch | None = None
        module = Module(ptx)
        self.kernels = list(module.entries)
        self.machine = Machine(module)
        self._buffers: Sequence[Buffer] = ()
        self._error: BaseException | None = None
        self._callback = _LAUNCH(self._launch)  # lives as long as the library may call it

    def begin(self, buffers: Sequence[Buffer]) -> None:
        """Take the launches to come, which may read or write these buffers.

        A library is loaded once, however many use it; its launches go to the one that began last.
        """
        self._buffers = buffers
        self.library.set_launch(self._callback)

    def check(self) -> None:
        """Raise what went wrong since they began.

        Raises:
            Fault: A kernel did what it may not do.
            NotImplementedError: It has an instruction that is not known.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _launch(
        self,
        name: bytes,
        grid: Any,
        block: Any,
        arguments: Sequence[int],
        dynamic_shared: int,
        allowed: int,
    ) -> None:
        if self._error is not None:
            return
        try:
            self._check_shared(name.decode(), dynamic_shared, allowed)
            self._run(name.decode(), tuple(grid[0]), tuple(block[0]), arguments, dynamic_shared)
        except BaseException as error:  # none may pass through the C++ code
            self._error = error

    def _check_shared(self, name: str, dynamic: int, allowed: int) -> None:
        if allowed < 0:
            allowed = _SHARED_BYTES - self.machine.shared_bytes(name)
        if dynamic > allowed:
            raise Fault(f"{name}: {dynamic} bytes of dynamic shared memory, {allowed} are allowed")

    def _run(
        self, name: str, grid: Dim3, block: Dim3, arguments: Sequence[int], dynamic_shared: int
    ) -> None:
        memory = bytearray()
        # The array of arguments does not tell its end.
        for (offset, size), address in zip(self.machine.parameters(name), arguments, strict=False):
            memory = memory.ljust(offset, b"\0") + ctypes.string_at(address, size)
        only, observer = None, None
        if self.on_launch is not None:
            shared = self.machine.shared_bytes(name) + dynamic_shared
            only, observer = self.on_launch(name, math.prod(grid), math.prod(block), shared)
        self.machine.launch(
            name,
            grid,
            block,
            bytes(memory),
            self._buffers,
            dynamic_shared=dynamic_shared,
            only=only,
            observer=observer,
        )
