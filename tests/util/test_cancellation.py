"""A stop reaches its children and callbacks; contexts of calls."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mirror.errors import Cancelled
from mirror.util.cancellation import Stop, Work


def test_a_stop_cannot_be_withdrawn_and_keeps_its_first_reason() -> None:
    stop = Stop()
    stop.raise_if_requested()
    assert not stop.is_requested
    stop.request("SIGTERM")
    stop.request("later")
    assert stop.is_requested
    with pytest.raises(Cancelled, match="SIGTERM") as caught:
        stop.raise_if_requested()
    assert ("interrupted", False) == (caught.value.code, caught.value.retryable)


def test_a_sleep_ends_after_its_time_or_at_once_on_a_stop() -> None:
    stop = Stop()
    stop.sleep(0)
    stop.sleep(-1)
    with ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(stop.sleep, 60.0)
        stop.request("enough")
        with pytest.raises(Cancelled, match="enough"):
            sleeping.result(10)
    with pytest.raises(Cancelled):
        stop.sleep(0)


def test_a_stop_calls_a_callback_once_inside_its_block() -> None:
    stop, calls = Stop(), list[str]()
    with stop.callback_on_stop(lambda: calls.append("before")):
        pass
    with stop.callback_on_stop(lambda: calls.append("inside")), stop.callback_on_stop(lambda: calls.append("nested")):
        stop.request("now")
        stop.request("again")
        assert ["inside", "nested"] == calls


def test_a_callback_registered_after_the_stop_is_called_at_once() -> None:
    stop, calls = Stop(), list[str]()
    stop.request("now")
    with stop.callback_on_stop(lambda: calls.append("late")):
        assert ["late"] == calls
    assert ["late"] == calls


def test_a_callback_may_use_the_stop() -> None:
    stop, calls = Stop(), list[object]()
    other = Stop(stop)

    def callback() -> None:
        stop.request("again")
        with stop.callback_on_stop(lambda: calls.append("inner")):
            calls.append(stop.is_requested)
        other.close()

    with stop.callback_on_stop(callback):
        stop.request("now")
    assert ["inner", True] == calls


def test_leaving_the_block_during_a_stop_waits_for_the_callback() -> None:
    """A stop must not shut a socket that its former user has returned to the pool."""
    stop, inside, leaving, left = Stop(), threading.Event(), threading.Event(), threading.Event()
    seen = list[bool]()

    def shut() -> None:
        leaving.wait(10)
        seen.append(left.wait(0.1))

    def use() -> None:
        with stop.callback_on_stop(shut):
            inside.set()
            with suppress(Cancelled):
                stop.sleep(10)
            leaving.set()
        left.set()

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        inside.wait(10)
        stop.request("now")
        using.result(10)
    assert ([False], True) == (seen, left.is_set())


def test_a_stop_of_the_parent_stops_its_children_but_not_vice_versa() -> None:
    parent = Stop()
    child, other, closed = Stop(parent), Stop(parent), Stop(parent)
    grandchild = Stop(child)
    closed.close()
    closed.close()
    child.request("only me")
    assert [False, True, True, False] == [stop.is_requested for stop in (parent, child, grandchild, other)]
    parent.request("all")
    assert ["only me", "only me", "all", ""] == [stop.reason for stop in (child, grandchild, other, closed)]
    assert "all" == Stop(parent).reason


def test_a_parent_does_not_keep_closed_children() -> None:
    parent = Stop()
    for _ in range(100):
        Stop(parent).close()
    assert {} == parent._callbacks


def test_work_without_retries_has_the_same_stop_and_progress() -> None:
    moved = list[int]()
    work = Work(Stop(), moved.append)
    work.without_retries().progress(3)
    assert ([3], True, False, work.stop) == (
        moved,
        work.retries,
        work.without_retries().retries,
        work.without_retries().stop,
    )
    Work(Stop()).progress(1)


def test_work_with_a_grace_period_is_stopped_after_it() -> None:
    stop = Stop()
    with Work(stop).with_grace_period(0.01) as late:
        assert not late.stop.is_requested
        stop.request("a signal")
        with pytest.raises(Cancelled, match="a signal"):
            late.stop.sleep(30)


def test_work_with_a_grace_period_is_not_stopped_without_a_request_and_leaves_no_thread() -> None:
    stop = Stop()
    with Work(stop).with_grace_period(0.0) as late:
        pass
    stop.request("later")
    assert not late.stop.is_requested
    with pytest.raises(Cancelled), Work(stop).with_grace_period(1.0):
        raise AssertionError
