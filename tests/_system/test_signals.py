"""Which signals stop, and which do not."""

from __future__ import annotations

import os
import signal

import pytest

from mkdext._system.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_becomes_a_request_and_is_given_back(number):
    outer = signal.signal(number, signal.SIG_DFL)  # It may be ignored where tests are run.
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), number)
            assert stop.received == number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outer)


def test_a_terminal_whose_end_is_ignored_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
