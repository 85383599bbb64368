"""Reads a large blob over several connections, if a single connection limits the speed.

Many storage hosts limit the speed of each connection, and over a long distance TCP does. A blob is therefore first read
over one connection. If the reader mostly waits for this connection, other threads read the next segments of the blob
into memory, each with a range request. The bytes are still returned in order, so that they can be hashed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, runtime_checkable

from mirror.errors import NetworkError, RateLimited, Refused, RemoteError
from mirror.store import BlobReader
from mirror.transfer.range_segment import Segment, read_end
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Clock
from mirror.util.structs import Struct


@runtime_checkable
class RangeOpener(Protocol):
    """A reader of a blob that can also open other ranges of the same blob."""

    def open_range(self, start: int, end: int, work: Work) -> BlobReader:
        """Open the bytes from offset `start` to before offset `end`. Raises MirrorError if the range is not sent."""
        ...


class RangeRules(Struct, frozen=True):
    """When and how a blob is read over several connections. All sizes are in bytes.

    smallest: the rest of a blob that is shorter is read over one connection.
    segment: the size of the segments. One connection is measured over this size.
    ahead: the maximum number of segments that are read ahead for one blob.
    total: the maximum number of segments in memory, for all blobs together.
    fast: a connection that delivers more bytes per second than this does not limit the speed.
    waiting: the least share of the time that must be spent waiting for a connection that limits the speed.
    gain: if several connections are not faster than one by this factor, no more segments are read ahead."""

    smallest: int = 256 << 20
    segment: int = 16 << 20
    ahead: int = 5
    total: int = 8
    fast: float = 64 << 20
    waiting: float = 0.6
    gain: float = 1.2


class SegmentThreads(Protocol):
    """Runs the reads of segments on other threads, and limits how many segments are in memory. Thread-safe."""

    def take(self) -> bool:
        """Reserve memory for one segment. Return False if there is none left."""
        ...

    def give_back(self) -> None:
        """Give back the memory of one segment."""
        ...

    def start(self, host: str, run: Callable[[Work], None]) -> None:
        """Run `run` on another thread as soon as the limits of `host` allow it, or never."""
        ...

    def reject_ranges(self, host: str) -> None:
        """Record that reading a range from `host` failed, so that its blobs are read over one connection."""
        ...


class RangeReader:
    """A BlobReader for the rest of a large blob. It reads segments ahead if one connection limits the speed."""

    def __init__(
        self,
        first: BlobReader,
        open_range: Callable[[int, int, Work], BlobReader],
        threads: SegmentThreads,
        work: Work,
        *,
        host: str,
        position: int,
        end: int,
        rules: RangeRules,
        clock: Clock,
    ) -> None:
        """first: the open connection, which delivers the bytes of the blob from offset `position`.

        open_range: opens further ranges of the blob. host: the host of the blob. end: the size of the blob."""
        self.size = first.size
        self._open_range = open_range
        self._threads = threads
        self._work = work
        self._host = host
        self._position = position
        self._end = end
        self._rules = rules
        self._clock = clock
        self._first = first
        self._direct: BlobReader | None = first  # reads the bytes at the current position, if no segment has them
        self._direct_end: int | None = None  # where it ends; None: at the end of the blob
        self._segments: deque[Segment] = deque()  # after the part of `_direct`, without gaps
        self._reads_ahead = False
        self._may_read_ahead = True
        self._single_rate = 0.0  # bytes per second of the first connection
        self._start_measuring()

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the blob."""
        at_end = self._position == self._direct_end
        if self._direct is not None and not at_end:
            return self._read_direct(buffer)
        if self._direct is not None and self._direct is not self._first:
            self._close_direct()
        if self._direct is None and self._position == self._end:
            return 0
        if self._segments and not self._segments[0].take():
            count = self._read_segment(buffer)
            if count:
                return count
        self._continue_directly()
        return self._read_direct(buffer)

    def _read_direct(self, buffer: memoryview) -> int:
        """Read from the reader's own connection. After one segment, decide whether to read segments ahead."""
        if self._direct is None:
            raise RuntimeError("no connection is open")
        room = buffer if self._direct_end is None else buffer[: self._direct_end - self._position]
        started = self._clock.now()
        count = self._direct.readinto(room)
        self._waited += self._clock.now() - started
        if not count and self._direct_end is not None:
            raise NetworkError("the range ended too early", code="truncated")
        self._advance(count)
        if self._direct is not self._first and self._position == self._direct_end:
            read_end(self._direct)  # of a range
        return count

    def _read_segment(self, buffer: memoryview) -> int:
        """Read from the first segment. If its thread failed, drop all segments and return 0."""
        segment = self._segments[0]
        count = segment.read(buffer, self._position, self._work.stop)
        if not count:
            self._end_reading_ahead(is_permanent=segment.error is not None and not segment.error.retryable)
            return 0
        self._close_direct()  # the first connection is kept until another one has delivered bytes
        if self._position + count == segment.end:
            self._segments.popleft()
            self._threads.give_back()
        self._advance(count)
        return count

    def _advance(self, count: int) -> None:
        """Advance the position. At the end of each measurement, decide whether to read segments ahead."""
        self._position += count
        self._measured += count
        if self._reads_ahead:
            if self._measured >= self._rules.segment * (self._rules.ahead + 1):
                self._check_gain()
            if self._may_read_ahead:
                self._read_ahead()
        elif self._measured >= self._rules.segment and self._may_read_ahead:
            self._check_connection()

    def _start_measuring(self) -> None:
        """Start to measure the number of bytes, the time, and the time spent waiting for the connection."""
        self._measured, self._waited, self._since = 0, 0.0, self._clock.now()

    def _check_connection(self) -> None:
        """Read segments ahead if the measured connection limits the speed, and enough of the blob is left."""
        rules, elapsed = self._rules, self._clock.now() - self._since
        is_limiting = self._waited >= rules.waiting * elapsed and self._measured < rules.fast * self._waited
        if is_limiting and self._end - self._position > 2 * rules.segment:
            self._reads_ahead, self._single_rate = True, self._measured / elapsed
            self._direct_end = self._position + rules.segment
            self._read_ahead()
        self._start_measuring()

    def _check_gain(self) -> None:
        """Read no more segments ahead if they do not increase the speed."""
        elapsed = self._clock.now() - self._since
        if self._measured < self._rules.gain * self._single_rate * elapsed:
            self._may_read_ahead = False
        self._start_measuring()

    def _read_ahead(self) -> None:
        """Let other threads read the next segments, as far as the limits allow."""
        start = self._segments[-1].end if self._segments else self._direct_end
        if self._direct is None and not self._segments:
            start = self._position
        while start is not None and start < self._end and len(self._segments) < self._rules.ahead:
            if not self._threads.take():
                return
            segment = Segment(start, min(start + self._rules.segment, self._end), self._open_range)
            self._segments.append(segment)
            self._threads.start(self._host, segment.fill)
            start = segment.end

    def _continue_directly(self) -> None:
        """Continue with the first connection, or with a new one if that is closed.

        It reads the next segment if no thread has started to read it, and otherwise the rest of the blob."""
        end = self._end
        if self._segments:
            end = self._segments.popleft().end
            self._threads.give_back()
        elif self._may_read_ahead:
            end = min(self._position + self._rules.segment, self._end)
        if self._direct is None:
            self._direct = self._open_rest(end)
        self._direct_end = None if self._direct is self._first and end == self._end else end

    def _open_rest(self, end: int) -> BlobReader:
        """Open the bytes from the current position to before offset `end`.

        If the host does not send the range, raise a NetworkError, so that the download is resumed in another way."""
        try:
            return self._open_range(self._position, end, self._work)
        except (RemoteError, Refused) as error:
            if error.retryable or isinstance(error, RateLimited):
                raise
            self._end_reading_ahead(is_permanent=True)
            raise NetworkError(error.what, code=error.code) from error

    def _end_reading_ahead(self, *, is_permanent: bool) -> None:
        """Read no more segments of this blob ahead. is_permanent: nor of other blobs on the same host."""
        if is_permanent:
            self._threads.reject_ranges(self._host)
        self._may_read_ahead = False
        self._drop_segments()

    def _close_direct(self) -> None:
        """Close the reader's own connection."""
        direct, self._direct, self._direct_end = self._direct, None, None
        if direct is not None:
            direct.__exit__(None, None, None)

    def _drop_segments(self) -> None:
        """Cancel all segments."""
        while self._segments:
            self._segments.popleft().cancel(self._threads.give_back)

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._drop_segments)
            stack.callback(self._close_direct)
