"""Ending a long work cleanly when the system or the user asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

# A terminal that is closed sends SIGHUP, where there are terminals.
_OF_TERMINAL = getattr(signal, "SIGHUP", None)
_STOPPING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a request that is looked at between two steps.

    A second Ctrl-C interrupts at once. SIGHUP stays ignored where it is, as under nohup. Outside
    the main thread nothing is changed.
    """

    def __init__(self) -> None:
        """No request so far."""
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for name in _STOPPING:
                is_ignored = signal.getsignal(name) is signal.SIG_IGN
                if not (is_ignored and name == _OF_TERMINAL):
                    self._before[name] = signal.signal(name, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for name, handler in self._before.items():
            signal.signal(name, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
