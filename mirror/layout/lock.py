"""The lock that a process holds while it writes to a layout. Where possible, it is a lock on the directory itself."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

from mirror.errors import LockBusy
from mirror.util.files import local_error

# These errors mean that the file system cannot lock a directory. Network file systems require a descriptor that is open
# for writing, and a directory cannot be opened for writing.
_DIRECTORY_LOCK_UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.EISDIR)


class LayoutLock:
    """An exclusive lock on a directory, which the kernel releases when the process exits or is killed. Thread-safe.

    fallback_name: the name of a file in the directory. If the file system cannot lock directories, this file is created
    and locked instead."""

    def __init__(self, directory: Path, fallback_name: str) -> None:
        self._directory = directory
        self._fallback_name = fallback_name
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock without waiting. Call this at most once.

        Raises LockBusy if another process holds the lock, and LocalError."""
        try:
            descriptor = self._open_and_lock()
        except BlockingIOError:
            raise LockBusy(
                f"another run is writing to {self._directory}", hint="wait until that run has finished"
            ) from None
        except OSError as error:
            raise local_error("lock", self._directory, error) from error
        with self._lock:
            self._descriptor = descriptor

    def _open_and_lock(self) -> int:
        """Open and lock the directory, or the fallback file if that is not possible. Return the locked descriptor."""
        try:
            return _lock(os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in _DIRECTORY_LOCK_UNSUPPORTED:
                raise
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return _lock(os.open(self._directory / self._fallback_name, flags, 0o644))

    def release(self) -> None:
        """Release the lock. Does nothing if it is not held."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> int:
    """Lock an open file without waiting, and return its descriptor. On failure, close it and raise OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
