"""The CUDA operators, their kernels run by the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.ops.cuda_operators import CudaOperators, Guarded
from tests.ops.ptx.global_memory import Buffer
from tests.ops.ptx.launches import Launches


class PtxOperators(CudaOperators):
    """Kernels may read and write the tensors of a call alone, and write its results alone."""

    def __init__(self, library: Path, ptx: str) -> None:
        """Take what toolchain.compile_operators made."""
        self.launches = Launches(library, ptx)
        super().__init__(self.launches.library)

    def run(
        self, function: str, *arguments: object, read: Sequence[Guarded], written: Sequence[Guarded]
    ) -> Any:
        """Call a function.

        Raises:
            Fault: A kernel did what it may not do.
        """
        self.launches.begin(buffers_of(read, written))
        answer = super().run(function, *arguments, read=read, written=written)
        self.launches.check()
        return answer


def buffers_of(read: Sequence[Guarded], written: Sequence[Guarded]) -> list[Buffer]:
    """Return what a launch may read, and what it may write, without the guards."""
    tensors = [*((each, False) for each in read), *((each, True) for each in written)]
    return [
        Buffer(f"tensor {n}", each.pointer, each.tensor.nbytes, writable)
        for n, (each, writable) in enumerate(tensors)
        if each.tensor.nbytes
    ]
