"""The bytes of all transfers of a host together stay within its bandwidth."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.errors import Cancelled
from mirror.util.bandwidth import Bandwidth, BandwidthWindow, HostThrottles, Throttle, limit_reads, throttle_body
from mirror.util.cancellation import Stop
from mirror.util.retry_policy import SystemClock

MIB = 1 << 20
NIGHT = BandwidthWindow(22 * 60, 6 * 60, read=float("inf"))


class SimulatedTime:
    """A clock on which any number of threads sleep: the thread that is due first continues. It is also a Sleeper."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        with self._lock:
            return self._now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


def test_thirty_seconds_of_transfers_take_thirty_seconds() -> None:
    time = SimulatedTime()
    throttle = Throttle(lambda: 10.0 * MIB, time)
    size = throttle.slice_size()
    assert size == MIB
    for _ in range(300):
        throttle.wait(size, time)
    assert 29.0 <= time.now() <= 30.1


def test_transfers_on_several_threads_share_the_bandwidth() -> None:
    clock, waits, lock = SimulatedTime(), [0.0], threading.Lock()

    class Recorder:
        def sleep(self, seconds: float) -> None:
            with lock:
                waits[0] = max(waits[0], seconds)

    throttle = Throttle(lambda: 1000.0, clock)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(throttle.wait, 100, Recorder()) for _ in range(300)]:
            future.result()
    assert 29.8 == pytest.approx(waits[0], abs=0.2)  # the clock stands still, so the last slice is due after all others


def test_unused_bandwidth_is_not_saved_up() -> None:
    time = SimulatedTime()
    throttle = Throttle(lambda: 1000.0, time)
    throttle.wait(100, time)
    time.sleep(3600.0)
    before = time.now()
    for _ in range(10):
        throttle.wait(100, time)
    assert 0.9 == pytest.approx(time.now() - before)


def test_a_stop_ends_the_wait_at_once() -> None:
    throttle, stop = Throttle(lambda: 1.0, SystemClock()), Stop()
    stop.request("the run was interrupted")
    with pytest.raises(Cancelled):
        throttle.wait(1 << 30, stop)


@pytest.mark.parametrize(
    ("minute", "read"),
    [(0, float("inf")), (359, float("inf")), (360, 5.0), (720, 1.0), (1319, 5.0), (1320, float("inf"))],
)
def test_the_first_window_that_contains_the_time_sets_the_limit_also_past_midnight(minute: int, read: float) -> None:
    noon = BandwidthWindow(12 * 60, 13 * 60, read=1.0)
    shadowed = BandwidthWindow(12 * 60, 14 * 60, read=5.0)
    bandwidth = Bandwidth(read=5.0, write=7.0, schedule=(NIGHT, noon, shadowed))
    assert read == bandwidth.read_limit(minute)
    assert 7.0 == bandwidth.write_limit(minute)  # no window changes it


def test_a_window_that_begins_during_a_blob_changes_its_limit() -> None:
    time, minute = SimulatedTime(), [21 * 60 + 59]
    throttle = HostThrottles(Bandwidth(read=1000.0, schedule=(NIGHT,)), time, lambda: minute[0]).read
    throttle.wait(100, time)
    assert 100 == throttle.slice_size()
    minute[0] += 1
    assert throttle.slice_size() is None
    before = time.now()
    throttle.wait(1 << 40, time)
    assert before == time.now()
    minute[0] = 6 * 60
    assert 100 == throttle.slice_size()


def test_a_body_keeps_its_bytes_and_is_counted_before_it_is_sent() -> None:
    time = SimulatedTime()
    throttle = Throttle(lambda: 1000.0, time)
    body: list[bytes | memoryview] = [bytes(range(250)), b"", memoryview(b"x" * 333)]
    sent = []
    for part in throttle_body(body, throttle, time):
        sent.append(bytes(part))
        assert len(part) <= 100
        assert sum(map(len, sent)) <= 1000 * (time.now() + 0.1) + 1e-6
    assert b"".join(map(bytes, body)) == b"".join(sent)


def test_reads_are_limited_to_a_slice() -> None:
    buffer = memoryview(bytearray(1000))
    assert 100 == limit_reads(buffer, Throttle(lambda: 1000.0, SystemClock())).nbytes
    assert 1000 == limit_reads(buffer, Throttle(lambda: float("inf"), SystemClock())).nbytes
    assert 1 == limit_reads(buffer, Throttle(lambda: 1.0, SystemClock())).nbytes
