"""The CUDA operators as C functions on tensors of the processor.

Two libraries have such functions: cuda_arithmetic.cpp, the kernels' source compiled for the
processor, and ptx/operators.cpp, whose launches run the kernels that nvcc made.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PRECISIONS = list(DTYPES)
"""In the order of launch.h."""
GUARD = 64

Shape = tuple[int, int, int, int, int, int]
"""B, Ci, Co, H, W, k; of texture kernels B, C, H, W, grid, k."""
Request = tuple[bool, Sequence[tuple[Tensor, Tensor]]]
"""Whether the kernels are turned, and maps and kernels of the terms."""


class Guarded:
    """A tensor in the midst of memory that a kernel must neither use nor change."""

    def __init__(self, value: Tensor, shift: int = 0) -> None:
        """Copy the value to `shift` elements beyond a multiple of 16 bytes."""
        size = value.numel()
        self.memory = torch.full((size + 2 * GUARD + shift,), torch.nan, dtype=value.dtype)
        self.begin = GUARD + shift
        self.tensor = self.memory[self.begin :][:size].view(value.shape)
        self.tensor.copy_(value)

    @property
    def pointer(self) -> int:
        """The address of the tensor."""
        return self.tensor.data_ptr()

    def is_intact(self) -> bool:
        """Tell whether the memory around it is as it was."""
        after = self.begin + self.tensor.numel()
        return bool(torch.cat([self.memory[: self.begin], self.memory[after:]]).isnan().all())


class CudaOperators:
    """The functions of a library, called with guarded tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def run(
        self, function: str, *arguments: object, read: Sequence[Guarded], written: Sequence[Guarded]
    ) -> Any:
        """Call a function that reads and writes these tensors."""
        answer = getattr(self.library, function)(*arguments)
        assert all(tensor.is_intact() for tensor in (*read, *written))
        return answer

    def correlate(
        self, precision: str, shape: Shape, requests: Sequence[Request], shift: int = 0
    ) -> tuple[list[Tensor], int]:
        """Return the outputs of one or two correlations, and the number of launches."""
        batch, ins, outs, height, width, _ = shape
        terms = [[(Guarded(x, shift), Guarded(w, shift)) for x, w in each] for _, each in requests]
        results = [
            _empty((batch, ins if flipped else outs, height, width), DTYPES[precision], shift)
            for flipped, _ in requests
        ]
        pairs = list(itertools.chain.from_iterable(terms))
        launches = self.run(
            "correlate",
            PRECISIONS.index(precision),
            _array(ctypes.c_int64, shape),
            len(requests),
            _array(ctypes.c_bool, (flipped for flipped, _ in requests)),
            _array(ctypes.c_int, (len(each) for each in terms)),
            _array(ctypes.c_void_p, (x.pointer for x, _ in pairs)),
            _array(ctypes.c_void_p, (w.pointer for _, w in pairs)),
            _array(ctypes.c_void_p, (result.pointer for result in results)),
            read=list(itertools.chain.from_iterable(pairs)),
            written=results,
        )
        return [result.tensor for result in results], launches

    def weight_gradient(
        self, precision: str, shape: Shape, grad: Tensor, input: Tensor, shift: int = 0
    ) -> tuple[Tensor, int]:
        """Return the weight gradient, and the number of parts that its sum was cut into."""
        batch, ins, outs, _, _, size = shape
        sizes = _array(ctypes.c_int64, shape)
        splits = self.library.splits(PRECISIONS.index(precision), sizes)
        read = [Guarded(grad, shift), Guarded(input, shift)]
        dtype = DTYPES[precision]
        result = _empty((batch, outs, ins, size, size), dtype, shift)
        parts = torch.float64 if dtype == torch.float64 else torch.float32
        partial = _empty((splits, batch, outs, ins, size, size), parts)
        launches = self.run(
            "weight_gradient",
            PRECISIONS.index(precision),
            sizes,
            *(ctypes.c_void_p(each.pointer) for each in (*read, partial, result)),
            read=read,
            written=[partial, result],
        )
        assert launches == (1 if splits == 1 else 2)
        return result.tensor, splits

    def texture(
        self, precision: str, shape: Shape, transpose: bool, given: Tensor, *options: object
    ) -> Tensor:
        """Return the texture kernels of features, or their transpose.

        Args:
            precision: As above; those of float32 are the same.
            shape: B, C, H, W, grid, k.
            transpose: From kernels to features.
            given: Features [B, C, H, W] or kernels [B, grid^2, C, k, k].
            options: What the library's function takes between `transpose` and the pointers.
        """
        batch, channels, _, _, grid, size = shape
        result = shape[:4] if transpose else (batch, grid * grid, channels, size, size)
        source, target = Guarded(given), _empty(result, DTYPES[precision])
        self.run(
            "texture",
            PRECISIONS.index(precision),
            _array(ctypes.c_int64, shape),
            ctypes.c_bool(transpose),
            *options,
            ctypes.c_void_p(source.pointer),
            ctypes.c_void_p(target.pointer),
            read=[source],
            written=[target],
        )
        return target.tensor


def _empty(shape: tuple[int, ...], dtype: torch.dtype, shift: int = 0) -> Guarded:
    return Guarded(torch.full(shape, torch.nan, dtype=dtype), shift)


def _array(kind: Any, values: Iterable[object]) -> ctypes.Array[Any]:
    values = list(values)
    return (kind * len(values))(*values)
