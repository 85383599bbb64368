"""Reads a blob from a regular file."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from mirror.errors import LocalError, Refused
from mirror.util.files import local_error

_PIECE = 1 << 20  # the maximum number of bytes in one read


class FileReader:
    """A BlobReader that reads a regular file from an offset to its end. Used by one thread.

    size: the size of the whole file in bytes. position: the offset of the next byte to read.
    A caller may also pass `fileno()` and `position` to sendfile."""

    def __init__(self, descriptor: int, path: Path, offset: int = 0, *, written: int | None = None) -> None:
        """Take ownership of the open file `descriptor`. path: the file's path, for messages.

        written: the number of bytes that this run wrote to the file; None if this run did not write it."""
        self._descriptor = descriptor
        self._path = path
        self.position = offset
        self._written = written
        self.size: int | None = os.fstat(descriptor).st_size if written is None else written

    def fileno(self) -> int:
        """Return the descriptor of the open file."""
        return self._descriptor

    def readinto(self, buffer: memoryview) -> int:
        """Read at most `len(buffer)` bytes into `buffer`. Return the number of bytes read, or 0 at the end of the file.

        Raises LocalError if reading fails or if a file that this run wrote is too short. Raises Refused (size_mismatch)
        if any other file has become shorter."""
        left = (self.size or 0) - self.position
        if left <= 0 or not len(buffer):
            return 0
        try:
            count = os.preadv(self._descriptor, [buffer[: min(left, len(buffer), _PIECE)]], self.position)
        except OSError as error:
            raise local_error("read", self._path, error) from error
        if not count and self._written is not None:
            raise LocalError(
                f"{self._path} is shorter than the data that was written to it", hint="check the disk for errors"
            )
        if not count:
            raise Refused(f"{self._path} became shorter while it was read", code="size_mismatch")
        self.position += count
        return count

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
