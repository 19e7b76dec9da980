"""What a warp does together: matrix products, loads of matrices, exchange of registers.

Where the elements of a matrix lie in the registers of a warp is from NVIDIA's "Parallel Thread
Execution ISA", "Matrix Fragments for mma.m16n8k8" and "... for mma.m16n8k16 with floating point
type", and "ldmatrix"; not from the kernels, which are tested with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.ops.ptx.arithmetic import from_bfloat16

LANES = 32
_LANE = np.arange(LANES)
_GROUP = _LANE // 4  # "groupID"
_MEMBER = _LANE % 4  # "threadID_in_group"


def _places(
    rows: list[np.ndarray], columns: list[np.ndarray], height: int, width: int
) -> np.ndarray:
    """Where each element of a matrix lies: the index of its register's element times 32 + lane."""
    places = np.full((height, width), -1)
    for element, (row, column) in enumerate(zip(rows, columns, strict=True)):
        places[row, column] = element * LANES + _LANE
    assert (places >= 0).all()
    return places


# The elements are counted through the registers, in 16 bits the lower half of each first.
_TF32_A = _places(
    [_GROUP + i % 2 * 8 for i in range(4)], [_MEMBER + i // 2 * 4 for i in range(4)], 16, 8
)
_TF32_B = _places([_MEMBER + i * 4 for i in range(2)], [_GROUP] * 2, 8, 8)
_HALF_A = _places(
    [_GROUP + (0 if i < 2 or 4 <= i < 6 else 8) for i in range(8)],
    [_MEMBER * 2 + i % 2 + (8 if i >= 4 else 0) for i in range(8)],
    16,
    16,
)
_HALF_B = _places(
    [_MEMBER * 2 + i % 2 + (8 if i >= 2 else 0) for i in range(4)], [_GROUP] * 4, 16, 8
)
_SUM = _places(
    [_GROUP + (8 if i >= 2 else 0) for i in range(4)],
    [_MEMBER * 2 + i % 2 for i in range(4)],
    16,
    8,
)
_FROM_SUM = np.argsort(_SUM.ravel())


def _tf32(registers: Sequence[np.ndarray]) -> np.ndarray:
    """The hardware does not look at the lowest 13 bits."""
    return (np.stack(registers) & np.uint32(0xFFFFE000)).view(np.float32)


def _halves(registers: Sequence[np.ndarray]) -> np.ndarray:
    words = np.stack(registers)
    pairs = words.view(np.uint16).reshape(*words.shape, 2)
    return np.moveaxis(pairs, 2, 1).reshape(2 * len(words), -1)


def _float16(registers: Sequence[np.ndarray]) -> np.ndarray:
    return _halves(registers).view(np.float16)


def _bfloat16(registers: Sequence[np.ndarray]) -> np.ndarray:
    return from_bfloat16(_halves(registers))


_OPERANDS: dict[str, tuple[Callable[..., np.ndarray], np.ndarray, np.ndarray]] = {
    "m16n8k8.row.col.f32.tf32.tf32.f32": (_tf32, _TF32_A, _TF32_B),
    "m16n8k16.row.col.f32.f16.f16.f32": (_float16, _HALF_A, _HALF_B),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (_bfloat16, _HALF_A, _HALF_B),
}


def is_known_product(shape: str) -> bool:
    """Tell whether `multiply_add` knows what follows ``mma.sync.aligned.``."""
    return shape in _OPERANDS


def _matrices(elements: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[elements of a lane, threads] to [warps, rows, columns] of float64."""
    count, threads = elements.shape
    warps = elements.reshape(count, threads // LANES, LANES).swapaxes(0, 1)
    return warps.reshape(threads // LANES, -1)[:, places].astype(np.float64)


def multiply_add(
    shape: str,
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    c: Sequence[np.ndarray],
) -> np.ndarray:
    """``mma``: a b + c in float64, rounded to float32 once.

    Args:
        shape: What follows ``mma.sync.aligned.``.
        a: Registers of all threads, as words.
        b: Likewise.
        c: Registers of float32.

    Returns:
        The four registers of the result, [4, threads].
    """
    elements, a_places, b_places = _OPERANDS[shape]
    result = _matrices(elements(a), a_places) @ _matrices(elements(b), b_places)
    result += _matrices(np.stack(c), _SUM)
    warps = result.reshape(len(result), -1)[:, _FROM_SUM].astype(np.float32)
    return warps.reshape(-1, 4, LANES).swapaxes(0, 1).reshape(4, -1)


def distribute_rows(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """``ldmatrix``: from the rows that lanes address to the registers of all lanes.

    Args:
        rows: [warps, matrices, 8, 8] of 16 bits.
        transposed: ``.trans``.

    Returns:
        Words [matrices, threads].
    """
    matrices = rows.swapaxes(2, 3) if transposed else rows
    # Lane l gets elements 2 (l % 4) and the next one of row l / 4.
    words = np.ascontiguousarray(matrices).view(np.uint32).reshape(*rows.shape[:2], LANES)
    return words.swapaxes(0, 1).reshape(rows.shape[1], -1)


def shuffle(
    values: np.ndarray, how: str, b: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``shfl.sync``: the value of another lane, and whether there was one.

    Args:
        values: Words of all threads.
        how: ``idx``, ``up``, ``down`` or ``bfly``.
        b: The lane or distance.
        c: The clamp in bits 0 to 4 and the mask of segments in bits 8 to 12.
    """
    lane = np.arange(values.size) % LANES
    distance, clamp, segment = (
        b & np.uint32(31),
        c & np.uint32(31),
        c >> np.uint32(8) & np.uint32(31),
    )
    distance, clamp, segment = (v.astype(np.int64) for v in (distance, clamp, segment))
    last = (lane & segment) | (clamp & ~segment & 31)
    first = lane & segment
    if how == "up":
        source = lane - distance
        inside = source >= last
    elif how == "down":
        source = lane + distance
        inside = source <= last
    elif how == "bfly":
        source = lane ^ distance
        inside = source <= last
    else:
        source = first | (distance & ~segment & 31)
        inside = source <= last
    source = np.where(inside, source, lane)
    return values[np.arange(values.size) - lane + source], inside
