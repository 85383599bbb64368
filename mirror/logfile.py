"""The log file: lines that several processes append to one file, which is rotated at a size.

What several processes agree on is ConcurrentRotatingFileHandler's: the file that
is locked, and the names of backups. It rotates (`logrotation`); the rest of it is not needed for a line in most runs.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import stat
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from mirror.durable import local_error
from mirror.errors import LocalError

NEW = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

PATIENCE = 2.0  # seconds for which another process may hold the lock before we try again later
_MOMENT = 0.1  # seconds in which a write of another process is over
_LARGEST = 64 * 1024  # bytes of a batch
_KEPT = 8 * 1024 * 1024  # bytes of lines that wait for a disk with space; more are lost, and counted


class LockTimeout(BlockingIOError):
    """Another process holds the log's lock for longer than a write takes."""

    def __init__(self, lock: Path) -> None:
        super().__init__(errno.EAGAIN, "another process holds its lock")
        self.lock = lock


def log_error(path: Path, error: OSError) -> LocalError:
    """Why the log file cannot be written, told for a person."""
    if not isinstance(error, LockTimeout):
        return local_error("write the log file", path, error)
    return LocalError(
        f"cannot write the log file {path}: {error.strerror}",
        hint="that is another run with this log, or a program that rotates it, and it is stopped or hangs: see which "
        f"with `fuser -v {error.lock}`, and let it go on or end it; or give this run a `log.file` of its own",
    )


class LogFile:
    """For one thread. Lines of all processes are whole, and in the file or in one of its backups."""

    def __init__(self, path: Path, *, max_size: int, backups: int) -> None:
        """max_size: bytes at which the file is rotated. The lock file stands beside the log, for all who share it.

        Raises LocalError where the file cannot be written, or is a link or no regular file."""
        self.path = path.absolute()
        self._max_size = max_size
        self._backups = backups
        self._rounds = max(4096, min(_LARGEST, max_size // 4))
        self.hurry = math.inf  # from then on, by the monotonic clock, the lock is hardly waited for; set by any thread
        self._lock_path = self.path.with_name(f".__{self.path.name.removesuffix('.log')}.lock")
        self._lock: int | None = None
        self._file: int | None = None
        try:
            self._locked_write(b"")
        except OSError as error:
            self.close()
            raise log_error(path, error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for descriptor in (self._lock, self._file):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self._file = None

    def write(self, lines: deque[bytes]) -> None:
        """Append `lines`, and take from them what is in the file. Raises OSError: the rest could not be written."""
        while lines:
            batch: list[bytes] = []
            size = 0
            for line in lines:
                size += len(line)
                if batch and size > self._rounds:
                    break
                batch.append(line)
            self._locked_write(b"".join(batch))
            for _ in batch:
                lines.popleft()

    def _locked_write(self, data: bytes) -> None:
        """All of `data` or nothing."""
        lock = self._locked()
        try:
            file = self._opened()
            if os.fstat(file).st_size >= self._max_size:
                from mirror.logrotation import rotate  # noqa: PLC0415 (20 ms, once in a long while)

                rotate(self.path, self._backups)
                file = self._opened()
            _append(file, data)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _locked(self) -> int:
        """The lock file, locked. Raises LockTimeout."""
        if self._lock is None:
            self._lock = regular(self._lock_path, os.O_RDWR | NEW)
        began, wait = time.monotonic(), 0.001
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._lock
            except BlockingIOError:
                if time.monotonic() > min(began + PATIENCE, max(began + _MOMENT, self.hurry)):
                    raise LockTimeout(self._lock_path) from None
            time.sleep(wait)
            wait = min(0.05, wait * 2)

    def _opened(self) -> int:
        """The file that has the name now: another process may have rotated it.

        A link or a device that took its place is refused, also in mid-run (threats-and-faults L07)."""
        if self._file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), os.lstat(self.path)):
                    return self._file
            file, self._file = self._file, None
            os.close(file)
        self._file = regular(self.path, os.O_RDWR | os.O_APPEND | NEW)
        return self._file


def _append(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    # A process that was killed while it wrote may have left half a line.
    if data and size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def regular(path: Path, flags: int) -> int:
    """Open what must be a regular file. Raises OSError, LocalError."""
    descriptor = os.open(path, flags, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise LocalError(f"cannot write {path}: it is not a regular file", hint="choose another path for `log.file`")


class Backlog:
    """Lines on their way to the file: kept while it cannot be written, up to a bound. For one thread."""

    def __init__(self, file: LogFile) -> None:
        self.path = file.path
        self._file = file
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._again = 0.0  # no try before this time, after one that failed
        self.lost = 0  # lines
        self.error: OSError | LocalError | None = None  # of the last try
        self.cause: OSError | LocalError | None = None  # of the last try that failed

    def add(self, line: bytes) -> None:
        if self._bytes > _KEPT:
            self.lost += 1
            return
        self._lines.append(line)
        self._bytes += len(line)

    def write(self, *, now: bool = False) -> None:
        """Bring to the file what waits. After a failure (`error`) the next try is a second later, or `now`."""
        if not self._lines or (not now and time.monotonic() < self._again):
            return
        try:
            self._file.write(self._lines)
            self.error = None
        except (OSError, LocalError) as error:
            self.error = self.cause = error
            self._again = time.monotonic() + 1.0
        self._bytes = sum(map(len, self._lines))

    @property
    def waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._lines)

    def hurry(self, seconds: float) -> None:
        """Wait for others who hold the file for so long in all, if not less, then for moments only. From any thread."""
        self._file.hurry = min(self._file.hurry, time.monotonic() + seconds)

    def close(self) -> None:
        """What waits is lost."""
        self.lost += len(self._lines)
        self._lines.clear()
        self._file.close()
