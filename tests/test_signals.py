"""Signals reach the main thread, whatever it does and whoever they were delivered to."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from mirror.signals import Signals


@pytest.fixture
def undivided() -> Iterator[None]:
    """A thread goes on until it waits for something."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("undivided")
def test_a_signal_that_another_thread_gets_wakes_the_main_thread() -> None:
    """The main thread's wait is not interrupted then, as it is not by a signal that comes just before it begins."""
    begin = threading.Event()

    def signalled() -> None:
        begin.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    with Signals() as signals:
        other = threading.Thread(target=signalled, name="other")
        other.start()
        begin.set()  # the other goes on when this thread waits for the signal
        woken = signals.wait(10)
        other.join()
        assert (True, signal.SIGTERM, "SIGTERM") == (woken, signals.number, signals.name)


def test_what_was_before_is_there_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert not signals.wait(0)
        signals.wake()
        assert signals.wait(0)
    assert before is signal.getsignal(signal.SIGTERM)
    assert -1 == signal.set_wakeup_fd(-1)
