"""A blob that is read from a plain file."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from mirror.errors import LocalError, Refused
from mirror.util.files import local_error

_PIECE = 1 << 20  # bytes


class FileReader:
    """A BlobReader over a plain file from an offset on. size: of the whole file, bytes.

    It may be sent by the kernel instead of being read: `fileno`, `position`. Used by one thread."""

    def __init__(self, descriptor: int, path: Path, offset: int = 0, *, written: int | None = None) -> None:
        """Takes over `descriptor`. written: bytes that this run wrote to the file; None: somebody else wrote it."""
        self._descriptor = descriptor
        self._path = path
        self.position = offset
        self._written = written
        self.size: int | None = os.fstat(descriptor).st_size if written is None else written

    def fileno(self) -> int:
        return self._descriptor

    def readinto(self, buffer: memoryview) -> int:
        """Raises LocalError; Refused (size_mismatch) where the file of somebody else got shorter."""
        left = (self.size or 0) - self.position
        if left <= 0 or not len(buffer):
            return 0
        try:
            count = os.preadv(self._descriptor, [buffer[: min(left, len(buffer), _PIECE)]], self.position)
        except OSError as error:
            raise local_error("read", self._path, error) from error
        if not count and self._written is not None:
            raise LocalError(f"{self._path} is shorter than what was written to it")
        if not count:
            raise Refused(f"{self._path} got shorter while it was read", code="size_mismatch")
        self.position += count
        return count

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
