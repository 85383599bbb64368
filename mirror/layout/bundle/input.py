"""Bytes of a bundle for the reader of tars: from a file that can be sought in, or from a pipe that cannot."""

from __future__ import annotations

import os
import select

from mirror.errors import Refused
from mirror.layout.bundle.tar_reader import incomplete
from mirror.util.cancellation import Stop

CHUNK = 1 << 20  # bytes read at a time
_AHEAD = 2 << 10  # bytes read with a header: the padding, and the headers of small members
_LOOK_EVERY = 0.5  # seconds between two looks at a stop while a pipe is silent


class FileInput:
    """A file, read where it is needed. position: of the next byte."""

    def __init__(self, descriptor: int, what: str) -> None:
        self.what = what
        self.position = 0
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._buffer = b""
        self._at = 0  # where the buffer begins

    def take(self, count: int) -> bytes:
        start = self.position - self._at
        if not 0 <= start <= len(self._buffer) - count:
            self._buffer, self._at, start = self._read(self.position, max(count, _AHEAD)), self.position, 0
        data = self._buffer[start : start + count]
        self.position += len(data)
        return data

    def _read(self, place: int, count: int) -> bytes:
        data = b""
        while len(data) < count and (
            more := _read_at(self._descriptor, count - len(data), place + len(data), self.what)
        ):
            data += more
        return data

    def skip(self, count: int) -> None:
        if self.position + count > self._size:
            raise incomplete(self.what, f"it ends at byte {self._size}, within a member")
        self.position += count


def _read_at(descriptor: int, count: int, place: int, what: str) -> bytes:
    try:
        return os.pread(descriptor, count, place)
    except OSError as error:
        raise unreadable(what, error) from error


def unreadable(what: str, error: OSError) -> Refused:
    """The medium does not give back what it holds."""
    return Refused(f"cannot read {what}: {error.strerror}", hint="the medium may be damaged", code="bundle_invalid")


class StreamInput:
    """A pipe, or a file that is read through once. A stop ends the wait for more."""

    def __init__(self, descriptor: int, what: str, stop: Stop) -> None:
        self.what = what
        self.position = 0
        self._descriptor = descriptor
        self._stop = stop
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP)

    def take(self, count: int) -> bytes:
        data = bytearray(count)
        got = self.fill(memoryview(data))
        return bytes(data[:got])

    def fill(self, buffer: memoryview) -> int:
        """Read into `buffer` until it is full, or the end. -> how many bytes."""
        got = 0
        while got < len(buffer) and (count := self._some(buffer[got:])):
            got += count
        self.position += got
        return got

    def _some(self, buffer: memoryview) -> int:
        while not self._poll.poll(_LOOK_EVERY * 1000):
            self._stop.check()
        self._stop.check()
        try:
            return os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise unreadable(self.what, error) from error

    def skip(self, count: int) -> None:
        buffer = memoryview(bytearray(min(count, CHUNK)))
        while count:
            got = self.fill(buffer[: min(count, len(buffer))])
            if not got:
                raise incomplete(self.what, f"it ends at byte {self.position}, within a member")
            count -= got


class CopyingInput(StreamInput):
    """A pipe of which everything that is read is written to a file as well."""

    def __init__(self, descriptor: int, what: str, stop: Stop, copy: int) -> None:
        super().__init__(descriptor, what, stop)
        self._copy = copy

    def fill(self, buffer: memoryview) -> int:
        """As StreamInput. Raises OSError where the copy cannot be written."""
        got = super().fill(buffer)
        left = buffer[:got]
        while left:
            left = left[os.write(self._copy, left) :]
        return got
