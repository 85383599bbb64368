"""`RangeReader`: a large blob is read over several connections if one connection limits the speed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType

import pytest

from mirror.errors import Cancelled, NetworkError, RemoteError
from mirror.transfer.range_reader import RangeReader, RangeRules
from mirror.util.cancellation import Stop, Work
from tests.transfer.harness import FakeClock, wait_until

RULES = RangeRules(smallest=1, segment=1000, ahead=3, total=4, fast=500.0, waiting=0.6, gain=1.2)
SLOW, FAST = 100.0, 1000.0  # bytes per second
DATA = random.Random(7).randbytes(20_300)


class Connection:
    """A connection that delivers a part of DATA. Reading advances the clock according to its rate."""

    def __init__(self, world: World, start: int, end: int, *, rate: float | None, stop: Stop | None = None) -> None:
        self.size: int | None = len(DATA)
        self.position, self.end = start, end
        self._world, self._rate, self._stop = world, rate, stop
        self.closed = False

    def readinto(self, buffer: memoryview) -> int:
        if self._stop is not None:
            self._stop.raise_if_requested()
        count = min(len(buffer), self.end - self.position, 300)
        buffer[:count] = DATA[self.position : self.position + count]
        self.position += count
        if self._rate is not None:
            self._world.clock.advance(count / self._rate)
        return count

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


class World:
    """A blob, the connections that were opened, and the threads that read segments.

    runs: what to do with the read of a segment. reads: the reads that were not started. used: segments in memory."""

    def __init__(self, runs: Callable[[Callable[[Work], None]], None] | None = None) -> None:
        self.clock = FakeClock()
        self.opened: list[tuple[int, int]] = []  # ranges
        self.connections: list[Connection] = []
        self.rejected: list[str] = []
        self.reads: list[Callable[[Work], None]] = []
        self.used = self.most_used = 0
        self.total = RULES.total
        self.range_rate: float | None = SLOW
        self.fault: Callable[[int, int], None] = lambda start, end: None
        self._runs = runs or self.reads.append
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self.used == self.total:
                return False
            self.used += 1
            self.most_used = max(self.most_used, self.used)
            return True

    def give_back(self) -> None:
        with self._lock:
            self.used -= 1
        assert self.used >= 0

    def start(self, host: str, run: Callable[[Work], None]) -> None:
        assert host == "source"
        self._runs(run)

    def reject_ranges(self, host: str) -> None:
        self.rejected.append(host)

    def open_range(self, start: int, end: int, work: Work) -> Connection:
        self.fault(start, end)
        with self._lock:
            self.opened.append((start, end))
        # Only the connections of the reader itself take its time.
        is_own = work is self.work
        connection = Connection(self, start, end, rate=self.range_rate if is_own else None, stop=work.stop)
        self.connections.append(connection)
        return connection

    def reader(self, rate: float, position: int = 0, stop: Stop | None = None) -> RangeReader:
        self.work = Work(stop or Stop())
        self.first = Connection(self, position, len(DATA), rate=rate)
        return RangeReader(
            self.first,
            self.open_range,
            self,
            self.work,
            host="source",
            position=position,
            end=len(DATA),
            rules=RULES,
            clock=self.clock,
        )


def read_all(reader: RangeReader, pause: Callable[[], None] = lambda: None, size: int = 170) -> bytes:
    """Read to the end. pause: called after each read."""
    found, buffer = bytearray(), memoryview(bytearray(size))
    with reader:
        while count := reader.readinto(buffer):
            found += buffer[:count]
            pause()
    return bytes(found)


def run_now(run: Callable[[Work], None]) -> None:
    """Read a segment at once, as a thread does that is faster than the reader."""
    run(Work(Stop()))


def test_a_slow_connection_makes_other_threads_read_the_next_segments() -> None:
    world = World(run_now)
    assert DATA == read_all(world.reader(SLOW))
    measured = 1020  # the first read after 1000 bytes that ends there
    assert world.opened[0] == (measured + 1000, measured + 2000)
    assert sorted(world.opened) == world.opened
    ends = [end for _, end in world.opened]
    assert [start for start, _ in world.opened[1:]] == ends[:-1]
    assert len(DATA) == ends[-1]
    assert world.first.closed
    assert measured + 1000 == world.first.position
    assert (0, True) == (world.used, world.most_used <= RULES.total)
    assert [] == world.rejected


def test_reading_may_begin_within_the_blob() -> None:
    assert DATA[5000:] == read_all(World(run_now).reader(SLOW, position=5000))


def test_a_connection_that_is_fast_enough_is_used_alone() -> None:
    world = World(run_now)
    assert DATA == read_all(world.reader(FAST))
    assert [] == world.opened


def test_a_slow_connection_is_used_alone_if_the_reader_seldom_waits_for_it() -> None:
    world = World(run_now)
    assert DATA == read_all(world.reader(SLOW), pause=lambda: world.clock.advance(170 / SLOW))
    assert [] == world.opened


def test_a_connection_that_becomes_slow_later_is_noticed() -> None:
    world = World(run_now)
    reader = world.reader(FAST)
    buffer = memoryview(bytearray(100))
    for _ in range(30):
        reader.readinto(buffer)
    assert [] == world.opened
    world.first._rate = SLOW
    assert DATA[3000:] == read_all(reader)
    assert world.opened


def test_if_no_thread_reads_the_segments_the_first_connection_is_used_alone() -> None:
    world = World()
    assert DATA == read_all(world.reader(SLOW))
    assert ([], 0, True) == (world.opened, world.used, len(world.reads) > 0)
    for run in world.reads:  # they start too late, and open nothing
        opened = list(world.opened)
        run(Work(Stop()))
        assert opened == world.opened


def test_if_several_connections_are_not_faster_no_more_segments_are_read_ahead() -> None:
    world = World()
    read_all(world.reader(SLOW))
    assert RULES.ahead <= len(world.reads) < 10, "of about 20 segments"


def run_first(count: int, world: World) -> None:
    """Read only the first segments on other threads, so that the reader opens ranges for the others."""

    def run(read: Callable[[Work], None]) -> None:
        world.reads.append(read)
        if len(world.reads) <= count:
            read(Work(Stop()))

    world._runs = run


def test_once_the_first_connection_is_closed_the_reader_opens_ranges_itself() -> None:
    world = World()
    run_first(3, world)
    assert DATA == read_all(world.reader(SLOW))
    assert world.first.closed
    assert len(DATA) == world.opened[-1][1]
    assert 0 == world.used


def test_if_a_segment_cannot_be_read_the_rest_is_read_over_one_connection() -> None:
    world = World(run_now)

    def fail(start: int, end: int) -> None:
        if start > 5000 and end - start == RULES.segment:
            raise RemoteError("no ranges")

    world.fault = fail
    assert DATA == read_all(world.reader(SLOW))
    assert (["source"], 0) == (world.rejected, world.used)
    assert len(DATA) == world.opened[-1][1]


def test_a_segment_that_ends_too_early_is_continued_where_it_ended() -> None:
    world = World()

    def cut(run: Callable[[Work], None]) -> None:
        run(Work(Stop()))

    world._runs = cut
    opened = world.open_range

    def open_short(start: int, end: int, work: Work) -> Connection:
        connection = opened(start, end, work)
        if work is not world.work and start > 4000:
            connection.end = start + 450
        return connection

    world.open_range = open_short  # type: ignore[method-assign]
    assert DATA == read_all(world.reader(SLOW))
    assert 450 == (world.opened[-1][0] - 1020) % 1000


def test_a_host_that_sends_no_ranges_is_read_over_the_first_connection() -> None:
    world = World(run_now)

    def fail(start: int, end: int) -> None:
        raise RemoteError("200 instead of 206")

    world.fault = fail
    assert DATA == read_all(world.reader(SLOW))
    assert ([], ["source"], 0) == (world.opened, world.rejected, world.used)


@pytest.mark.parametrize("error", [NetworkError("down"), RemoteError("down"), RemoteError("down", retryable=True)])
def test_an_error_of_the_only_connection_is_raised_so_that_the_download_can_be_resumed(error: RemoteError) -> None:
    world = World(run_now)

    def fail(start: int, end: int) -> None:
        if start > 5000:
            raise error

    world.fault = fail
    with pytest.raises(RemoteError, match="down") as caught:
        read_all(world.reader(SLOW))
    assert caught.value.retryable
    assert 0 == world.used


def test_a_range_that_ends_too_early_is_an_error() -> None:
    world = World()
    run_first(3, world)
    opened = world.open_range

    def open_short(start: int, end: int, work: Work) -> Connection:
        connection = opened(start, end, work)
        connection.end -= work is world.work
        return connection

    world.open_range = open_short  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="ended too early"):
        read_all(world.reader(SLOW))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


class Blocked:
    """Reads of segments that hang until they are stopped."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.started = threading.Semaphore(0)

    def run(self, run: Callable[[Work], None]) -> None:
        self.pool.submit(run, Work(Stop()))

    def open_range(self, start: int, end: int, work: Work) -> Connection:
        self.started.release()
        stopped = threading.Event()
        with work.stop.callback_on_stop(stopped.set):
            assert stopped.wait(60)
        raise work.stop.error()


def blocked_reader(pool: ThreadPoolExecutor, stop: Stop) -> tuple[World, RangeReader]:
    """Return a reader that waits for segments whose threads hang, after everything before them was read."""
    blocked = Blocked(pool)
    world = World(blocked.run)
    world.open_range = blocked.open_range  # type: ignore[method-assign]
    reader = world.reader(SLOW, stop=stop)
    buffer = memoryview(bytearray(170))
    while world.first.position < 2020:
        reader.readinto(buffer)
    for _ in range(RULES.ahead):
        assert blocked.started.acquire(timeout=60)
    return world, reader


def test_closing_the_reader_stops_the_threads_and_their_memory_is_given_back_after_that(
    pool: ThreadPoolExecutor,
) -> None:
    world, reader = blocked_reader(pool, Stop())
    assert RULES.ahead == world.used
    with reader:
        pass
    wait_until(lambda: world.used == 0)


def test_a_stop_ends_the_wait_for_a_segment(pool: ThreadPoolExecutor) -> None:
    stop = Stop()
    world, reader = blocked_reader(pool, stop)
    with reader:
        waiting = pool.submit(reader.readinto, memoryview(bytearray(170)))
        stop.request("a signal")
        with pytest.raises(Cancelled):
            waiting.result(60)
    wait_until(lambda: world.used == 0)


@pytest.mark.parametrize("seed", range(40))
def test_the_bytes_are_in_order_for_every_schedule_of_the_threads(seed: int, pool: ThreadPoolExecutor) -> None:
    chance = random.Random(seed)

    def start(run: Callable[[Work], None]) -> None:
        """Run a read on another thread, at once, or never."""
        kind = chance.random()
        if kind < 0.5:
            pool.submit(run, Work(Stop()))
        elif kind < 0.8:
            run(Work(Stop()))

    world = World(start)
    world.total = chance.randint(1, 4)
    with ExitStack() as stack:
        assert DATA == read_all(stack.enter_context(world.reader(SLOW)), size=chance.choice((1, 7, 170, 1000, 5000)))
    wait_until(lambda: world.used == 0)
    assert world.most_used <= world.total
