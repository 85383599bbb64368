"""Signals reach the main thread, whatever it does and whichever thread receives them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from mirror.commands.session import CLEANUP_SECONDS, MIN_CLEANUP_SECONDS, close_in_time, seconds_left
from mirror.errors import LocalError
from mirror.transfer.calls import CLOSE_TIMEOUT
from mirror.util.signals import Signals
from tests.registries.process import eventually


@pytest.fixture
def long_switch_interval() -> Iterator[None]:
    """A thread runs until it waits for something."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("long_switch_interval")
def test_a_signal_delivered_to_another_thread_wakes_the_main_thread() -> None:
    """Such a signal does not interrupt the wait of the main thread, nor does one that comes just before the wait."""
    begin = threading.Event()

    def signalled() -> None:
        begin.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    with Signals() as signals:
        other = threading.Thread(target=signalled, name="other")
        other.start()
        begin.set()  # the other thread continues when this thread waits for the signal
        woken = signals.wait(10)
        other.join()
        assert (True, signal.SIGTERM, "SIGTERM") == (woken, signals.number, signals.name)


@pytest.mark.usefixtures("long_switch_interval")
def test_a_signal_that_another_thread_gets_wakes_an_event_loop() -> None:
    begin = threading.Event()

    def signalled() -> None:
        begin.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    with Signals() as signals:
        signals.free_pipe()
        loop = asyncio.new_event_loop()
        signals.wake_loop(loop)
        signals.on_signal = loop.stop
        other = threading.Thread(target=signalled, name="other")
        other.start()
        loop.call_later(10, loop.stop)
        loop.call_soon(begin.set)
        loop.run_forever()
        other.join()
        loop.close()
        assert signal.SIGTERM == signals.number
        with pytest.raises(RuntimeError):
            signals.wait(0)
    assert -1 == signal.set_wakeup_fd(-1)


def test_all_waits_after_a_signal_share_one_limit() -> None:
    timeouts: list[float] = []
    with Signals() as signals:
        close_in_time(timeouts.append, signals)
        signal.raise_signal(signal.SIGTERM)
        close_in_time(timeouts.append, signals)
        before = time.monotonic()
        assert eventually(lambda: time.monotonic() > before, within=1)
        close_in_time(timeouts.append, signals)
    assert CLOSE_TIMEOUT == timeouts[0]
    assert CLEANUP_SECONDS >= timeouts[1] > timeouts[2] >= MIN_CLEANUP_SECONDS


def test_waits_at_the_end_of_a_run_fit_the_limit_of_a_later_signal() -> None:
    with Signals() as signals:
        assert CLEANUP_SECONDS == seconds_left(signals)
        signal.raise_signal(signal.SIGTERM)
        assert CLEANUP_SECONDS >= seconds_left(signals) >= MIN_CLEANUP_SECONDS


def test_threads_that_do_not_end_within_the_limit_are_left_behind() -> None:
    def hang(timeout: float) -> None:
        raise LocalError(f"1 thread did not end within {timeout} s")

    with Signals() as signals:
        with pytest.raises(LocalError):
            close_in_time(hang, signals)
        assert signals.has_hung_threads
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        close_in_time(hang, signals)
        assert signals.has_hung_threads


def test_sighup_wakes_a_wait_and_does_not_stop_anything() -> None:
    before = signal.getsignal(signal.SIGHUP)  # ignored in a process that nohup started
    with Signals(hangup=True) as signals:
        signal.raise_signal(signal.SIGHUP)
        assert (True, True, None) == (signals.wait(10), signals.hangup_received, signals.number)
        signals.hangup_received = False
        signals.free_pipe()
        with closing(asyncio.new_event_loop()) as loop:
            signals.wake_loop(loop)
            signals.on_signal = loop.stop
            signal.raise_signal(signal.SIGHUP)
            loop.run_until_complete(asyncio.sleep(0))  # the loop continues
        assert (True, None) == (signals.hangup_received, signals.number)
    assert before == signal.getsignal(signal.SIGHUP)


def test_signals_wake_a_wait_after_an_event_loop_has_been_closed() -> None:
    with Signals() as signals:
        for _ in range(3):
            signals.free_pipe()
            with closing(asyncio.new_event_loop()) as loop:
                signals.wake_loop(loop)
            signals.open_pipe()
            signals.open_pipe()
            assert not signals.wait(0)
        signal.raise_signal(signal.SIGTERM)
        assert (True, signal.SIGTERM) == (signals.wait(10), signals.number)


def test_a_hanging_thread_does_not_keep_the_process_alive() -> None:
    code = """
import threading
from mirror.util.signals import Signals
signals = Signals()
threading.Thread(target=threading.Event().wait).start()
signals.has_hung_threads = True
signals.exit_if_hung(143)
"""
    assert 143 == subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode


def test_a_process_without_hanging_threads_exits_normally() -> None:
    assert 143 == Signals().exit_if_hung(143)


def test_the_previous_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert not signals.wait(0)
        signals.wake()
        assert signals.wait(0)
    assert before is signal.getsignal(signal.SIGTERM)
    assert -1 == signal.set_wakeup_fd(-1)
