"""The body of an upload: read from the source, counted, and its end held back until it is proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from mirror.errors import MirrorError, Refused
from mirror.store import BlobReader
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

BUFFER = 256 << 10  # bytes read at a time


class Counted(Struct):
    """How many bytes of a body have been handed to the socket."""

    work: Work
    bytes: int = 0

    def add(self, count: int) -> None:
        self.bytes += count
        self.work.progress(count)


class Watched:
    """A body that keeps the error of reading it: such an error says nothing about the target."""

    def __init__(self, open_at: Callable[[int], BlobReader]) -> None:
        self._open_at = open_at
        self.error: MirrorError | None = None

    def __call__(self, offset: int) -> WatchedReader:
        try:
            return WatchedReader(self, self._open_at(offset))
        except MirrorError as error:
            self.error = error
            raise


class WatchedReader:
    """A BlobReader of a watched body."""

    def __init__(self, body: Watched, reader: BlobReader) -> None:
        self._body = body
        self._reader = reader
        self.size = reader.size

    def readinto(self, buffer: memoryview) -> int:
        try:
            return self._reader.readinto(buffer)
        except MirrorError as error:
            self._body.error = error
            raise

    def __enter__(self) -> WatchedReader:
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)


def held_back(reader: BlobReader, sent: Counted, limit: int | None, *, to_the_end: bool) -> Iterator[memoryview]:
    """The reader's bytes, at most `limit`, one buffer behind: the last one goes out only when the end is proven.

    to_the_end: the reader must end just here, which is when it has checked the digest."""
    room = BUFFER if limit is None else max(1, min(BUFFER, limit))
    buffers = [memoryview(bytearray(room)) for _ in range(2)]
    turn, left = 0, limit
    held: memoryview | None = None
    while left is None or left > 0:
        buffer = buffers[turn]
        count = reader.readinto(buffer if left is None else buffer[: min(room, left)])
        if not count:
            break
        if held is not None:
            sent.add(len(held))
            yield held
        held, turn = buffer[:count], 1 - turn
        left = None if left is None else left - count
    if to_the_end and reader.readinto(buffers[turn][:1]):
        raise Refused("the blob is longer than its descriptor says", code="size_mismatch")
    if held is not None:
        sent.add(len(held))
        yield held
