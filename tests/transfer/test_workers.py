"""Threads that come when there is work, and go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from mirror.errors import LocalError
from mirror.transfer.workers import Alarm, Workers
from mirror.util.retry_policy import SystemClock
from tests.transfer.harness import DEADLINE, FakeClock, until


def names(workers: Workers, count: int) -> set[str]:
    """The threads that did `count` things one after another."""
    seen: list[str] = []
    for number in range(1, count + 1):
        workers.put(lambda: seen.append(threading.current_thread().name))
        until(partial(lambda number: len(seen) == number and workers._idle == len(workers), number))
    return set(seen)


def test_an_idle_thread_is_used_again() -> None:
    workers = Workers()
    assert {"mirror-1"} == names(workers, 5)
    workers.close(DEADLINE)
    assert 0 == len(workers)


def test_a_thread_that_has_been_idle_for_long_ends() -> None:
    workers = Workers(idle=0.001)
    done = threading.Event()
    workers.put(done.set)
    assert done.wait(DEADLINE)
    until(lambda: not len(workers))
    again = threading.Event()
    workers.put(again.set)
    assert again.wait(DEADLINE)
    workers.close(DEADLINE)


def test_there_are_never_more_than_the_most() -> None:
    workers, go_on, done = Workers(most=2), threading.Event(), list[int]()

    def act(number: int) -> Callable[[], None]:
        def run() -> None:
            assert go_on.wait(DEADLINE)
            done.append(number)

        return run

    for number in range(5):
        workers.put(act(number))
    assert 2 == len(workers)
    go_on.set()
    workers.close(DEADLINE)
    assert [0, 1, 2, 3, 4] == sorted(done)


def test_the_same_thread_does_what_follows() -> None:
    workers, seen = Workers(), list[str]()

    def last() -> None:
        seen.append(threading.current_thread().name)

    def first() -> Callable[[], None]:
        last()
        return last

    workers.put(first)
    workers.close(DEADLINE)
    assert ["mirror-1", "mirror-1"] == seen


def test_a_thread_that_is_just_being_started_is_joined_too() -> None:
    """It is counted before it can be joined."""
    workers, done = Workers(), list[bool]()
    workers._alive += 1

    def start() -> None:
        thread = threading.Thread(target=workers._work, name="late")
        thread.start()
        workers.put(lambda: done.append(True))

    starter = threading.Timer(0.02, start)
    starter.start()
    workers.close(DEADLINE)
    starter.join()
    until(lambda: done)


def test_a_thread_that_hangs_is_an_error() -> None:
    workers, go_on = Workers(), threading.Event()
    workers.put(lambda: (go_on.wait(DEADLINE), None)[1])
    with pytest.raises(LocalError, match="1 threads did not end within 0 s"):
        workers.close(0.0)
    go_on.set()
    until(lambda: not len(workers))


class TestAlarm:
    def test_it_rings_at_the_earliest_time_that_was_set(self) -> None:
        workers, rung = Workers(), threading.Event()
        alarm = Alarm(rung.set, SystemClock(), workers)
        now = SystemClock().now()
        for at in (100.0, 0.01, 50.0):
            alarm.set(now + at)
        assert rung.wait(DEADLINE)
        alarm.close()
        workers.close(DEADLINE)
        assert now + 0.01 <= SystemClock().now()

    def test_it_holds_no_thread_while_there_is_nothing_to_wait_for(self) -> None:
        workers, clock, rung = Workers(idle=0.001), FakeClock(), list[float]()
        alarm = Alarm(lambda: rung.append(clock.now()), clock, workers, idle=0.001)
        for number in range(1, 4):
            alarm.set(clock.now())
            until(partial(lambda number: len(rung) == number and not len(workers), number))
        alarm.close()
        workers.close(DEADLINE)
        assert 3 == len(rung)

    def test_it_sees_that_the_clock_was_moved(self) -> None:
        workers, clock, rung = Workers(), FakeClock(), threading.Event()
        alarm = Alarm(rung.set, clock, workers, idle=0.001)
        alarm.set(clock.now() + 1000.0)
        assert not rung.is_set()
        clock.advance(1000.0)
        assert rung.wait(DEADLINE)
        alarm.close()
        workers.close(DEADLINE)

    def test_a_closed_one_never_rings(self) -> None:
        workers, rung = Workers(), list[bool]()
        alarm = Alarm(lambda: rung.append(True), FakeClock(), workers)
        alarm.close()
        alarm.set(0.0)
        workers.close(DEADLINE)
        assert [] == rung
