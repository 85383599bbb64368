"""The body of an upload, whose last bytes are sent only after the digest of the blob has been verified.

The bytes of the blob are read from the source and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from mirror.errors import MirrorError, Refused
from mirror.store import BlobReader
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

BUFFER = 256 << 10  # bytes read at a time


class ByteCounter(Struct):
    """A counter for the bytes that an upload has sent. It also reports them as progress."""

    work: Work
    bytes: int = 0

    def add(self, count: int) -> None:
        """Add `count` to the number of sent bytes, and report them as progress."""
        self.bytes += count
        self.work.progress(count)


class TrackedBody:
    """The body of an upload. It records errors from the source, to distinguish them from errors from the target.

    A TrackedBody is called with an offset to open the body there."""

    def __init__(self, open_at: Callable[[int], BlobReader]) -> None:
        self._open_at = open_at
        self.error: MirrorError | None = None

    def __call__(self, offset: int) -> TrackedReader:
        """Open the body for reading, starting at byte `offset`."""
        try:
            return TrackedReader(self, self._open_at(offset))
        except MirrorError as error:
            self.error = error
            raise


class TrackedReader:
    """A reader for a blob from the source. It records read errors in its TrackedBody."""

    def __init__(self, body: TrackedBody, reader: BlobReader) -> None:
        self._body = body
        self._reader = reader
        self.size = reader.size

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the blob.

        Errors are recorded and raised again."""
        try:
            return self._reader.readinto(buffer)
        except MirrorError as error:
            self._body.error = error
            raise

    def __enter__(self) -> TrackedReader:
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)


def hold_back_end(
    reader: BlobReader, counter: ByteCounter, limit: int | None, *, must_end: bool
) -> Iterator[memoryview]:
    """Yield at most `limit` bytes from `reader`, in buffers, each only after the next buffer has been read.

    The reader verifies the digest at the end of the blob, so the last buffer is yielded only after the digest has been
    verified. If `must_end` is true, raises Refused (size_mismatch) if the blob is longer than `limit`. If `limit` is
    None, the whole blob is read."""
    room = BUFFER if limit is None else max(1, min(BUFFER, limit))
    buffers = [memoryview(bytearray(room)) for _ in range(2)]
    current, remaining = 0, limit
    held: memoryview | None = None
    while remaining is None or remaining > 0:
        buffer = buffers[current]
        count = reader.readinto(buffer if remaining is None else buffer[: min(room, remaining)])
        if not count:
            break
        if held is not None:
            counter.add(len(held))
            yield held
        held, current = buffer[:count], 1 - current
        remaining = None if remaining is None else remaining - count
    if must_end and reader.readinto(buffers[current][:1]):
        raise Refused("the blob is longer than the size in its descriptor", code="size_mismatch")
    if held is not None:
        counter.add(len(held))
        yield held
