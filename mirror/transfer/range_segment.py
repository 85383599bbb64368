"""A segment of a large blob that another thread reads into memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from mirror.errors import MirrorError, NetworkError
from mirror.store import BlobReader
from mirror.util.cancellation import Stop, Work

_STOP_CHECK_INTERVAL = 1.0  # seconds between two checks for a stop while a reader waits for a segment


class _State(Enum):
    """The state of a segment. A segment that is taken is read by the reader itself."""

    WAITING = "waiting"
    READING = "reading"
    ENDED = "ended"
    TAKEN = "taken"


class Segment:
    """A part of a blob, from offset `start` to before offset `end`, that another thread reads. Thread-safe.

    error: the error that ended the read early, or None."""

    def __init__(self, start: int, end: int, open_range: Callable[[int, int, Work], BlobReader]) -> None:
        self.start, self.end = start, end
        self._open_range = open_range
        self._stop = Stop()
        self._changed = threading.Condition()
        self._state = _State.WAITING
        self._data = bytearray()
        self._filled = 0
        self.error: MirrorError | None = None
        self._on_end: Callable[[], None] | None = None

    def take(self) -> bool:
        """Return whether no thread has started to read the segment. If so, no thread will."""
        with self._changed:
            if self._state is _State.WAITING:
                self._state = _State.TAKEN
            return self._state is _State.TAKEN

    def fill(self, work: Work) -> None:
        """Read the segment into memory, unless it is taken. An error ends the segment early, and is not raised."""
        with self._changed:
            if self._state is not _State.WAITING:
                return
            self._state, self._data = _State.READING, bytearray(self.end - self.start)
        try:
            with work.stop.callback_on_stop(lambda: self._stop.request(work.stop.reason, code=work.stop.code)):
                self._read()
        except MirrorError as error:
            self.error = error  # not raised: the reader reads the rest itself, and gets the same error if it persists
        finally:
            with self._changed:
                self._state, on_end = _State.ENDED, self._on_end
                self._changed.notify_all()
            if on_end is not None:
                on_end()

    def _read(self) -> None:
        """Read all bytes of the segment."""
        free = memoryview(self._data)
        with self._open_range(self.start, self.end, Work(self._stop, retries=False)) as reader:
            while free:
                count = reader.readinto(free)
                if not count:
                    raise NetworkError("the range ended too early", code="truncated")
                free = free[count:]
                with self._changed:
                    self._filled += count
                    self._changed.notify_all()
            read_end(reader)

    def read(self, buffer: memoryview, position: int, stop: Stop) -> int:
        """Read bytes at offset `position` into the beginning of `buffer`. Return their number, or 0 if reading failed.

        Waits for the thread that reads the segment. Raises Cancelled after a stop."""
        offset = position - self.start
        with self._changed:
            while self._filled == offset and self._state is _State.READING:
                stop.raise_if_requested()
                self._changed.wait(_STOP_CHECK_INTERVAL)
            available = self._filled - offset
        count = min(len(buffer), available)
        buffer[:count] = memoryview(self._data)[offset : offset + count]
        return count

    def cancel(self, give_back: Callable[[], None]) -> None:
        """Stop reading the segment, and call `give_back` as soon as no thread uses its memory any more."""
        self._stop.request("the segment is not needed")
        with self._changed:
            is_reading = self._state is _State.READING
            if is_reading:
                self._on_end = give_back
            else:
                self._state = _State.TAKEN
        if not is_reading:
            give_back()


def read_end(reader: BlobReader) -> None:
    """Read the end of a response after its last byte, so that the connection can be used for other requests."""
    reader.readinto(memoryview(bytearray(1)))
