"""Who may write to a layout: a lock on its directory, so that no further file is needed."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

from mirror.errors import LockBusy
from mirror.util.files import local_error

# A directory cannot be opened for writing, which file systems of other machines want of what is locked.
_NOT_DIRECTORIES = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.EISDIR)


class Claim:
    """An exclusive lock on a directory; free as soon as its holder is gone, however it went. Thread-safe.

    instead: a file in it that is locked where a directory cannot be."""

    def __init__(self, directory: Path, instead: str) -> None:
        self._directory = directory
        self._instead = instead
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def take(self) -> None:
        """Does not wait. Once. Raises LockBusy, LocalError."""
        try:
            descriptor = self._locked()
        except BlockingIOError:
            raise LockBusy(f"another run is writing to {self._directory}", hint="wait for it to end") from None
        except OSError as error:
            raise local_error("lock", self._directory, error) from error
        with self._lock:
            self._descriptor = descriptor

    def _locked(self) -> int:
        try:
            return _lock(os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in _NOT_DIRECTORIES:
                raise
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return _lock(os.open(self._directory / self._instead, flags, 0o644))

    def release(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> int:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
