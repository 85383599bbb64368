"""The input of the tar reader: reads the bytes of a bundle from a seekable file or from a pipe."""

from __future__ import annotations

import os
import select

from mirror.errors import Refused
from mirror.layout.bundle.tar_reader import bundle_incomplete
from mirror.util.cancellation import Stop

CHUNK = 1 << 20  # bytes read at a time
_READ_AHEAD = 2 << 10  # bytes read together with a header: usually the padding and the headers of small members
_LOOK_EVERY = 0.5  # seconds between two checks for a stop while a pipe is silent


class FileInput:
    """An Input for the tar reader that reads a seekable file. Skipped bytes are not read.

    position: the offset of the next byte."""

    def __init__(self, descriptor: int, what: str) -> None:
        self.what = what
        self.position = 0
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._buffer = b""
        self._buffer_offset = 0  # offset of the buffer in the file

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end of the file. Raises Refused on a read error."""
        start = self.position - self._buffer_offset
        if not 0 <= start <= len(self._buffer) - count:
            self._buffer, self._buffer_offset, start = (
                self._read(self.position, max(count, _READ_AHEAD)),
                self.position,
                0,
            )
        data = self._buffer[start : start + count]
        self.position += len(data)
        return data

    def _read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes at `offset`, or fewer at the end of the file. Raises Refused on a read error."""
        data = b""
        while len(data) < count and (
            more := _read_at(self._descriptor, count - len(data), offset + len(data), self.what)
        ):
            data += more
        return data

    def skip(self, count: int) -> None:
        """Skip `count` bytes without reading them. Raises Refused (bundle_incomplete) if fewer are left."""
        if self.position + count > self._size:
            raise bundle_incomplete(self.what, f"truncated at byte {self._size}, within a member")
        self.position += count


def _read_at(descriptor: int, count: int, offset: int, what: str) -> bytes:
    """Read up to `count` bytes of an open file at `offset`. Raises Refused if the file cannot be read."""
    try:
        return os.pread(descriptor, count, offset)
    except OSError as error:
        raise read_error(what, error) from error


def read_error(what: str, error: OSError) -> Refused:
    """Return the error for a file that cannot be read."""
    hint = "the medium may be damaged; copy the bundle again"
    return Refused(f"cannot read {what}: {error.strerror}", hint=hint, code="bundle_invalid")


class StreamInput:
    """An Input for the tar reader that reads a pipe, or reads a file from start to end.

    A requested stop interrupts the wait for more bytes from a pipe. position: number of bytes read."""

    def __init__(self, descriptor: int, what: str, stop: Stop) -> None:
        self.what = what
        self.position = 0
        self._descriptor = descriptor
        self._stop = stop
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP)

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end of the input. Raises Refused, Cancelled."""
        data = bytearray(count)
        filled = self.fill(memoryview(data))
        return bytes(data[:filled])

    def fill(self, buffer: memoryview) -> int:
        """Fill `buffer`, and return the number of bytes read.

        The number is smaller than the size of the buffer only at the end of the input. Raises Refused, Cancelled."""
        filled = 0
        while filled < len(buffer) and (count := self._read_available(buffer[filled:])):
            filled += count
        self.position += filled
        return filled

    def _read_available(self, buffer: memoryview) -> int:
        """Wait for bytes, and read them. Return the number of bytes read, or 0 at the end of the input."""
        while not self._poll.poll(_LOOK_EVERY * 1000):
            self._stop.raise_if_requested()
        self._stop.raise_if_requested()
        try:
            return os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise read_error(self.what, error) from error

    def skip(self, count: int) -> None:
        """Read and discard `count` bytes. Raises Refused (bundle_incomplete) if fewer are left."""
        buffer = memoryview(bytearray(min(count, CHUNK)))
        while count:
            filled = self.fill(buffer[: min(count, len(buffer))])
            if not filled:
                raise bundle_incomplete(self.what, f"truncated at byte {self.position}, within a member")
            count -= filled


class CopyingInput(StreamInput):
    """A StreamInput that also writes the bytes it reads to a file. copy: the descriptor of that file."""

    def __init__(self, descriptor: int, what: str, stop: Stop, copy: int) -> None:
        super().__init__(descriptor, what, stop)
        self._copy = copy

    def fill(self, buffer: memoryview) -> int:
        """Fill `buffer` as StreamInput does, and write the bytes to the copy. Raises OSError if writing fails."""
        filled = super().fill(buffer)
        left = buffer[:filled]
        while left:
            left = left[os.write(self._copy, left) :]
        return filled
