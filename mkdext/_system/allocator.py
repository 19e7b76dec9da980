"""What the C library does with memory that PyTorch frees on a CPU."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees and use it again.

    Otherwise glibc gives large blocks back, and every step of a training asks for the same pages
    anew, which costs about as much time as a convolution that fills them.

    Returns:
        Whether the C library takes such a wish: glibc does, others need none or cannot.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, _MOST))
