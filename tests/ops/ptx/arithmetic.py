"""What instructions compute, on numpy arrays of one value for each thread."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a b + c: the product of two float32 is exact, that of two float64 is rounded."""
    if a.dtype == np.float64:
        return a * b + c
    wide = np.multiply(a, b, dtype=np.float64)
    return (wide + c).astype(np.float32)


def multiply_wide(a: Array, b: Array, dtype: type[np.generic]) -> Array:
    """Multiply to twice the length."""
    return np.multiply(a, b, dtype=dtype)


def multiply_high(a: Array, b: Array) -> Array:
    """Return the upper half of the product of integers."""
    kind, size = a.dtype.kind, a.dtype.itemsize
    if size < 8:
        wide = np.multiply(a, b, dtype=np.dtype(f"{kind}{2 * size}"))
        return (wide >> (8 * size)).astype(a.dtype)
    # By halves; a signed one is the unsigned one less what the signs add.
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    x, y = (np.atleast_1d(v).view(np.uint64) for v in (a, b))
    middle = (x & low) * (y >> shift) + ((x & low) * (y & low) >> shift)
    other = (x >> shift) * (y & low) + (middle & low)
    high = (x >> shift) * (y >> shift) + (middle >> shift) + (other >> shift)
    if kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Divide; integers towards zero."""
    if a.dtype.kind == "f":
        return a / b
    return (a - np.fmod(a, b)) // b


def shift_left(a: Array, amount: Array) -> Array:
    """Shift left; by the length or more gives 0."""
    return a << _amount(a, amount)


def shift_right(a: Array, amount: Array) -> Array:
    """Shift right, with copies of the sign if there is one."""
    return a >> _amount(a, amount)


def _amount(a: Array, amount: Array) -> Array:
    return np.minimum(amount, 8 * a.dtype.itemsize).astype(a.dtype)


def funnel_shift(a: Array, b: Array, amount: Array, left: bool, wrap: bool) -> Array:
    """Shift b:a of 64 bits, and return its upper half (left) or its lower one."""
    n = (amount & np.uint32(31)) if wrap else np.minimum(amount, np.uint32(32))
    pair = np.left_shift(b, np.uint64(32), dtype=np.uint64) | a
    wide = n.astype(np.uint64)
    return ((pair << wide) >> np.uint64(32) if left else pair >> wide).astype(np.uint32)


def permute(a: Array, b: Array, selector: Array) -> Array:
    """``prmt``: four bytes of b:a; four bits choose each, the highest to spread its sign."""
    pair = np.left_shift(b, np.uint64(32), dtype=np.uint64) | a
    result = np.zeros_like(pair)
    for n in range(4):
        choice = (selector >> np.uint32(4 * n)).astype(np.uint64)
        byte = pair >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = np.where(byte >> np.uint64(7), np.uint64(0xFF), np.uint64(0))
        result |= np.where(choice & np.uint64(8), sign, byte) << np.uint64(8 * n)
    return result.astype(np.uint32)


def logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """``lop3``: a function of three bits, given by its values."""
    result = np.zeros_like(a | b | c)
    for n in range(8):
        if table >> n & 1:
            result |= (a if n & 4 else ~a) & (b if n & 2 else ~b) & (c if n & 1 else ~c)
    return result


def extract_bits(a: Array, begin: Array, length: Array) -> Array:
    """``bfe``: bits of a number, with its sign or with zeros above them."""
    size = 8 * a.dtype.itemsize
    begin, length = (np.asarray(v & np.uint32(255)).astype(np.int64) for v in (begin, length))
    # Up to the highest bit first, then down; beyond the number there is its sign.
    wide = a.astype(np.int64) if a.dtype.kind == "i" else a
    value = shift_right(wide, begin)
    if size == 64 or a.dtype.kind == "i":
        up = np.clip(64 - length, 0, 64)
        value = shift_right(shift_left(value, up), up)
    else:
        value = value & (shift_left(np.uint64(1), np.minimum(length, size)) - np.uint64(1))
    return np.where(length == 0, 0, value).astype(a.dtype)


def insert_bits(a: Array, b: Array, begin: Array, length: Array) -> Array:
    """``bfi``: b with its bits replaced by the lowest ones of a."""
    begin, length = (np.asarray(v & np.uint32(255)).astype(np.uint64) for v in (begin, length))
    size = 8 * b.dtype.itemsize
    ones = ~np.uint64(0)
    field = np.where(length >= 64, ones, (np.uint64(1) << np.minimum(length, 63)) - np.uint64(1))
    mask = shift_left(field, np.minimum(begin, size)).astype(b.dtype)
    moved = shift_left(a.astype(np.uint64), np.minimum(begin, size)).astype(b.dtype)
    return (b & ~mask) | (moved & mask)


def to_bfloat16(values: Array) -> Array:
    """Round float32 to the bits of bfloat16, to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 of the bits of bfloat16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(values: Array) -> Array:
    """``cvt.rna.tf32``: the bits of float32 rounded to 10 of the mantissa, ties away from zero."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    special = np.where(np.isnan(values), np.uint32(0x7FFFFFFF), bits)
    return np.where(np.isfinite(values), rounded, special)


def to_integer(values: Array, dtype: type[np.generic], rounding: str) -> Array:
    """Round a float to an integer; one beyond the range becomes the nearest, NaN becomes 0."""
    limits = np.iinfo(dtype)
    rounded = _ROUNDINGS[rounding](values.astype(np.float64))
    inside = (rounded >= limits.min) & (rounded < float(limits.max) + 1)
    result = np.where(inside, rounded, 0).astype(dtype)
    result = np.where(rounded > limits.max, limits.max, result)
    return np.where(rounded < limits.min, limits.min, result).astype(dtype)


def round_to_whole(values: Array, rounding: str) -> Array:
    """Round a float to a whole number that stays a float."""
    return _ROUNDINGS[rounding](values)


_ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def clamp(values: Array, low: int, high: int) -> Array:
    """Clamp an integer to the range of another type."""
    limits = np.iinfo(values.dtype)
    return np.clip(values, max(low, limits.min), min(high, limits.max))


def saturate(values: Array) -> Array:
    """Clamp a float to [0, 1]; NaN becomes 0."""
    return np.where(np.isnan(values), values.dtype.type(0), np.clip(values, 0, 1))


def compare(a: Array, b: Array, how: str) -> Array:
    """``setp``: compare; those of floats that end in u are true of NaN."""
    if how in _SIMPLE:
        return _SIMPLE[how](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if how in ("num", "nan"):
        return unordered if how == "nan" else ~unordered
    return unordered | _SIMPLE[how[:-1]](a, b)


def differ(a: Array, b: Array) -> Array:
    """``setp.ne``: false of NaN, unlike in numpy."""
    if a.dtype.kind != "f":
        return a != b
    return (a < b) | (a > b)


_SIMPLE = {
    "eq": np.equal,
    "ne": differ,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
