"""Writes and rotates the log file, which several processes may share. Lines that cannot be written yet are buffered."""

from __future__ import annotations

import fcntl
import io
import logging
import math
import os
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mirror.errors import LocalError
from mirror.util.files import local_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# concurrent-log-handler imports portalocker, which looks for a writable directory for temporary files although the log
# needs none. On a full disk, or with a read-only root, there is no such directory, and the import would fail.
_found, tempfile.tempdir = tempfile.tempdir, tempfile.tempdir or os.curdir
from concurrent_log_handler import ConcurrentRotatingFileHandler  # noqa: E402

tempfile.tempdir = _found

LOCK_TIMEOUT = 2.0  # seconds that one attempt waits for a lock that another process holds
_MOMENT = 0.1  # seconds; a write by another process takes less
_KEPT = 8 * 1024 * 1024  # maximum number of characters in the buffer; further lines are lost, and counted
_NEW = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LogLocked(LocalError):
    """Raised if another process holds the lock on the log file for longer than a write normally takes."""

    def __init__(self, path: Path, lock: str) -> None:
        super().__init__(
            f"cannot write the log file {path}: another process holds its lock",
            hint="another run that uses this file, or a program that rotates it, is suspended or hangs: find the "
            f"process with `fuser -v {lock}` and resume or kill it, or set a different `log.file` for this run",
        )


class LogFile(ConcurrentRotatingFileHandler):
    """A ConcurrentRotatingFileHandler for the log of a run. Used by one thread.

    It differs from its base class in four ways. It does not write to links or devices, it limits the wait for the lock,
    it removes incomplete lines after a failed write, and it raises errors."""

    def __init__(self, path: Path, *, max_size: int, backups: int) -> None:
        """Open the log file. Raises LocalError if it cannot be written.

        max_size: the size in bytes at which the file is rotated. backups: the number of rotated files to keep."""
        super().__init__(path.absolute(), maxBytes=max_size, backupCount=backups, encoding="ascii")
        self.path = path.absolute()
        self.waits_end = math.inf  # monotonic time; later waits for the lock are short. Any thread may set it
        self.terminator = ""
        self.maxLockAttempts = 1
        self._error: BaseException | None = None
        try:
            os.close(_open_regular(Path(self.lockFilename), os.O_RDWR))  # the base class would follow a symbolic link
            self.write("")
        except OSError as error:
            self.close()
            raise _log_file_error(self.path, error) from error
        except BaseException:
            self.close()
            raise

    def write(self, lines: str) -> None:
        """Append complete lines to the file. If that fails, append none of them, and raise LocalError."""
        self._error = None
        self.emit(logging.makeLogRecord({"msg": lines}))
        if self._error is not None:
            raise _log_file_error(self.path, self._error) from self._error

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Store the current exception, so that `write` raises it."""
        self._error = self._error or sys.exception()

    def do_open(self, mode: str | None = None) -> io.TextIOWrapper:
        """Open the file with access for its owner only. Raises LocalError or OSError if it is now a link or device."""
        flags = os.O_RDWR | os.O_APPEND | (os.O_TRUNC if mode == "w" else 0)
        file = _AtomicAppendFile(_open_regular(self.path, flags), "a")
        return io.TextIOWrapper(file, encoding="ascii", write_through=True)

    def _lock_stream_lock(self, stream_lock: TextIO) -> None:
        """Take the lock on the log file within a limited time. The base class would wait indefinitely."""
        began, wait = time.monotonic(), 0.001
        while True:
            try:
                fcntl.flock(stream_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > min(began + LOCK_TIMEOUT, max(began + _MOMENT, self.waits_end)):
                    self._error = LogLocked(self.path, self.lockFilename)
                    raise
            time.sleep(wait)
            wait = min(0.05, wait * 2)


class _AtomicAppendFile(io.FileIO):
    """A file to which each write appends all of its bytes or none."""

    def write(self, data: ReadableBuffer) -> int:
        """Append `data` and return its size in bytes. If this fails, restore the file's size and raise OSError."""
        size = os.fstat(self.fileno()).st_size
        whole = bytes(data)
        # A process that was killed during a write may have left a partial line.
        if whole and size and os.pread(self.fileno(), 1, size - 1) != b"\n":
            whole = b"\n" + whole
        rest = memoryview(whole)
        try:
            while rest:
                rest = rest[os.write(self.fileno(), rest) :]
        except OSError:
            with suppress(OSError):
                self.truncate(size)
            raise
        return memoryview(data).nbytes


def _open_regular(path: Path, flags: int) -> int:
    """Open or create a regular file, with access for its owner only, and return its descriptor.

    Raises OSError, or LocalError if the path is not a regular file."""
    descriptor = os.open(path, flags | _NEW, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise LocalError(f"cannot write {path}: it is not a regular file", hint="choose a different path for `log.file`")


def _log_file_error(path: Path, error: BaseException) -> LocalError:
    """Convert an exception from a failed write to the log file to a LocalError."""
    if isinstance(error, LocalError):
        return error
    if isinstance(error, OSError):
        return local_error("write the log file", path, error)
    return LocalError(f"cannot write the log file {path}: {error}")


class Backlog:
    """A buffer of limited size for lines that have not been written to the log file yet. Used by one thread."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._lines: list[str] = []
        self._characters = 0
        self._retry_at = 0.0  # monotonic time, set after a failure
        self.lost = 0  # number of lines
        self.error: LocalError | None = None  # the error of the last attempt to write; None if it succeeded
        self.cause: LocalError | None = None  # the error of the last attempt that failed

    @property
    def is_empty(self) -> bool:
        """Whether no line is buffered."""
        return not self._lines

    def add(self, line: str) -> None:
        """Buffer a line, or count it as lost if the buffer is full."""
        if self._characters > _KEPT:
            self.lost += 1
            return
        self._lines.append(line)
        self._characters += len(line)

    def write(self, *, force: bool = False) -> None:
        """Write the buffered lines to the file. A failure sets `error`, and the lines stay in the buffer.

        Within a second after a failure, nothing is written unless `force` is set."""
        if not self._lines or (not force and time.monotonic() < self._retry_at):
            return
        try:
            self._file.write("".join(self._lines))
        except LocalError as error:
            self.error = self.cause = error
            self._retry_at = time.monotonic() + 1.0
        else:
            self.error = None
            self._lines.clear()
            self._characters = 0

    def limit_lock_waits(self, seconds: float) -> None:
        """Make writes wait only briefly for the file's lock once `seconds` have passed. Any thread may call this."""
        self._file.waits_end = min(self._file.waits_end, time.monotonic() + seconds)

    def close(self) -> None:
        """Close the file. Lines that are still buffered are lost."""
        self.lost += len(self._lines)
        self._lines.clear()
        self._file.close()
