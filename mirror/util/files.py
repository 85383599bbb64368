"""Atomic writes of files, private directories, and lock files.

All files that must survive a crash are written with these functions (docs/trust.md, "Files"). Only the state file is
created elsewhere (`mirror.state.file`).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from mirror.errors import LocalError, LockBusy
from mirror.util.shell_commands import quote_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUFFER = 256 * 1024  # the number of bytes that are collected before a write
_POLL = 0.2  # seconds between two attempts to take a busy lock
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_HOLDER = re.compile(rb"pid ([1-9][0-9]{0,9}) since (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n")


def local_error(doing: str, path: Path | str, error: OSError) -> LocalError:
    """Convert an OSError to a LocalError that says which operation failed, on which path, and what to do.

    doing: the operation, such as `write` or `create the directory`. The code is local_full if no space or quota is
    left, otherwise local_io."""
    reason = error.strerror or type(error).__name__
    what = f"cannot {doing} {path}: {reason}"
    if error.errno in _FULL:
        return LocalError(what, hint="free some space there, or raise the quota or file size limit", code="local_full")
    blocker = _find_non_directory(Path(path)) if error.errno in (errno.ENOTDIR, errno.EEXIST) else None
    if blocker is not None:
        return LocalError(f"cannot {doing} {path}: {blocker} is not a directory", hint="choose another path")
    hint = _HINTS.get(error.errno or 0, "check the system log for errors of this file system")
    if doing == "read":
        hint = hint.replace("permission to write there", "permission to read it")
    return LocalError(what, hint=hint)


_HINTS = {
    errno.EACCES: "give this user permission to write there, or choose another path",
    errno.EPERM: "give this user permission to write there, or choose another path",
    errno.EROFS: "the file system is read-only: remount it, or choose another path",
    errno.ENOENT: "create the directory first",
    errno.EISDIR: "a directory is in the way: move it, or choose another path",
    errno.ELOOP: "a symbolic link is in the way: remove it, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
    errno.ENOLCK: "the file system cannot lock files: choose a local directory for `state`",
}


def _find_non_directory(path: Path) -> Path | None:
    """Return the outermost existing part of `path` that is not a directory, or None if there is none."""
    for part in (*reversed(path.parents), path):
        with suppress(OSError):
            if not stat.S_ISDIR(part.stat().st_mode):
                return part
    return None


class NewFile(io.FileIO):
    """A file that is being written under a temporary name.

    path: the final path of the file, for error messages. `write` writes all bytes or raises LocalError."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self._path = path

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data` to the file. Raises LocalError."""
        left = memoryview(data).cast("B")
        total = len(left)
        try:
            while len(left):
                left = left[super().write(left) or 0 :]
        except OSError as error:
            raise local_error("write", self._path, error) from error
        return total


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Return a context manager that yields a new file. The file replaces `path` when the `with` block exits.

    At that point, the content is on disk. If the block raises, the old file stays. The umask can only reduce `mode`. A
    symbolic link at `path` is replaced, not followed. Raises LocalError (local_full, local_io), also if `path` is
    neither a regular file nor a link."""
    path = Path(path)
    try:
        _check_replaceable(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise local_error("write", path, error) from error
    try:
        with new_file(directory, path, mode=mode) as raw:
            out = io.BufferedWriter(raw, _BUFFER)
            try:
                yield out
                out.flush()
            except BaseException:
                # `detach` flushes what a failed write left in the buffer; the file is deleted anyway.
                with suppress(OSError, LocalError, ValueError):
                    out.detach()
                raise
            out.detach()
        sync_directory(directory, path.parent)
    finally:
        os.close(directory)


@contextmanager
def new_file(directory: int, path: Path, *, into: int | None = None, mode: int = 0o600) -> Iterator[NewFile]:
    """Return a context manager that yields a new file. The file is renamed to `path.name` when the `with` block exits.

    directory: an open directory for the temporary file. into: an open directory on the same file system for the renamed
    file; by default, `directory`. All bytes are on disk before the rename. If the block raises, the file is deleted. To
    make the new names durable, the caller calls `sync_directory` once. Raises LocalError."""
    temporary = f".{path.name}.{os.urandom(8).hex()}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode, dir_fd=directory)
    except OSError as error:
        raise local_error("write", path, error) from error
    try:
        with NewFile(descriptor, path) as raw:
            yield raw
            # A failed fsync must not be repeated: the kernel may have dropped the pages. The caller writes a new file.
            try:
                os.fsync(descriptor)
                os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory if into is None else into)
            except OSError as error:
                raise local_error("write", path, error) from error
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def sync_directory(directory: int, path: Path) -> None:
    """Make renames into the open directory durable. path: its path, for error messages. Raises LocalError."""
    try:
        os.fsync(directory)
    except OSError as error:
        raise local_error("write", path, error) from error


def rename_into_place(temporary: Path, path: Path) -> None:
    """Rename the complete file `temporary` to `path`, in the same directory, and make its content and name durable.

    Raises LocalError. The file at `path` is then either the old or the new one."""
    try:
        _check_replaceable(path)
        file = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        temporary.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise local_error("write", path, error) from error


def delete_leftovers(directory: Path) -> int:
    """Delete the temporary files that killed runs left in `directory`. Return the number of deleted files.

    The caller must hold the directory's lock."""
    deleted = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _LEFTOVER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink()
                    deleted += 1
    except OSError as error:
        raise local_error("clean up", directory, error) from error
    return deleted


def _check_replaceable(path: Path) -> None:
    """Raise LocalError or OSError if `path` exists and is neither a regular file nor a link."""
    with suppress(FileNotFoundError):
        found = path.lstat().st_mode
        if stat.S_ISDIR(found):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(found) or stat.S_ISLNK(found)):
            raise LocalError(f"cannot write {path}: it is not a regular file", hint="choose another path")


def private_directory(path: Path) -> Path:
    """Create the directory `path` if it is missing, check that only this user can write to it, and return it.

    Missing directories get mode 0700, regardless of the umask. Raises LocalError if `path` is a symbolic link or not a
    directory, belongs to another user, or can be written by others. Links in parent directories are followed."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps `..`)
    try:
        _create_directories(path)
        found = path.lstat()
    except OSError as error:
        raise local_error("create the directory", path, error) from error
    if stat.S_ISLNK(found.st_mode):
        raise LocalError(f"{path} is a symbolic link", hint="use the path of the directory that it points to")
    if not stat.S_ISDIR(found.st_mode):
        raise LocalError(f"{path} is not a directory", hint="move it away, or choose another path")
    if found.st_uid != os.geteuid():
        what = f"{path} belongs to another user (uid {found.st_uid}, not {os.geteuid()})"
        raise LocalError(what, hint=f"run as that user, or run `chown -R {os.geteuid()} {quote_path(path)}`")
    if found.st_mode & 0o022:
        what = f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
        raise LocalError(what, hint=f"check its content, then run `chmod go-w {quote_path(path)}`")
    return path


def _create_directories(path: Path) -> None:
    """Create the directory and its missing parents."""
    missing = []
    for part in (path, *path.parents):
        if os.path.lexists(part):
            break
        missing.append(part)
    for part in reversed(missing):
        try:
            part.mkdir(0o700)
        except FileExistsError:  # another run created it
            continue
        if stat.S_IMODE(part.lstat().st_mode) & 0o700 != 0o700:  # the umask removed permissions of the owner
            part.chmod(0o700)


class Sleeper(Protocol):
    """An object with an interruptible sleep, such as a `Stop`."""

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`. Raises an exception if the sleep is interrupted."""
        ...


class Lock(AbstractContextManager["Lock"]):
    """An exclusive lock on a file that serves no other purpose. The kernel releases it if the process is killed.

    The lock is not reentrant. The same thread must acquire and release it. Only messages use the file's content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait: float, stop: Sleeper) -> Lock:
        """Take the lock, and return this object. While another process holds it, try again for at most `wait` seconds.

        Raises LockBusy, LocalError, and any exception that `stop.sleep` raises."""
        deadline = time.monotonic() + wait
        while not self._try_acquire():
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockBusy(f"another run holds the lock {self.path}{self._read_holder()}", hint=_busy_hint(wait))
            stop.sleep(min(_POLL, left))
        return self

    def _try_acquire(self) -> bool:
        """Try once to take the lock. Return whether this run now holds the lock. Raises LocalError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise local_error("lock", self.path, error) from error
        acquired = False
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            acquired = self._is_current_file(descriptor)
        except OSError as error:
            raise local_error("lock", self.path, error) from error
        finally:
            if not acquired:
                os.close(descriptor)
        if not acquired:
            return self._try_acquire()
        self._write_holder(descriptor)
        self._descriptor = descriptor
        return True

    def _is_current_file(self, descriptor: int) -> bool:
        """Return whether the path still refers to the locked file, which may have been deleted or replaced."""
        ours = os.fstat(descriptor)
        if not stat.S_ISREG(ours.st_mode):
            raise LocalError(f"cannot lock {self.path}: it is not a regular file", hint="move it away")
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    @staticmethod
    def _write_holder(descriptor: int) -> None:
        """Write the process id and the time to the lock file, for the messages of runs that wait for the lock."""
        # The lock also works on a full disk, but messages then do not name its holder.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), 0)

    def _read_holder(self) -> str:
        """Describe the process that holds the lock, for messages. Return an empty string if the process is unknown."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                found = _HOLDER.fullmatch(os.read(descriptor, 100))
            finally:
                os.close(descriptor)
            if found:
                return f" (pid {found[1].decode()}, since {found[2].decode()})"
        return ""

    def release(self) -> None:
        """Release the lock. The file stays: if it were deleted, two runs could lock two files of the same name."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        self.release()


def _busy_hint(wait: float) -> str:
    """Return the hint for the error that another run holds the lock. wait: the seconds that this run has waited."""
    return f"it did not finish within {wait:g} s" if wait > 0 else "use --lock-wait SECONDS to wait until it finishes"
