"""Processes that this one starts end with it, however it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psutil

_SET_DEATH_SIGNAL = 1  # Linux's PR_SET_PDEATHSIG
_POLL_SECONDS = 1.0


def end_with(parent: int) -> None:
    """Have this process end when the one of that number does; the first thing that it does.

    On Linux the system kills it, elsewhere it looks every second.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    else:
        try:  # Windows goes on telling the number of a parent that has ended.
            watched = psutil.Process(parent)
        except psutil.NoSuchProcess:
            os._exit(1)
        threading.Thread(target=_watch, args=(watched,), daemon=True).start()
    if os.getppid() != parent:  # It has ended meanwhile.
        os._exit(1)


def _watch(parent: psutil.Process) -> None:
    while parent.is_running():
        time.sleep(_POLL_SECONDS)
    os._exit(1)
