"""Files that appear whole or not at all, directories that are ours alone, and the lock of a run.

Every file that must survive is written here: nothing else renames into place (threats-and-faults §5.3).
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

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUFFER = 256 * 1024  # bytes collected before a write
_POLL = 0.2  # seconds between two tries for a busy lock
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_HOLDER = re.compile(rb"pid ([1-9][0-9]{0,9}) since (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n")


def local_error(doing: str, path: Path | str, error: OSError) -> LocalError:
    """Trouble with a file of this machine, told for a person: what failed, where, what to do.

    doing: `write`, `create the directory` and the like. Code local_full where space or quota ran out, else local_io."""
    reason = error.strerror or type(error).__name__
    what = f"cannot {doing} {path}: {reason}"
    if error.errno in _FULL:
        return LocalError(what, hint="free some space there, or raise the quota or file size limit", code="local_full")
    blocker = _not_a_directory(Path(path)) if error.errno in (errno.ENOTDIR, errno.EEXIST) else None
    if blocker is not None:
        return LocalError(f"cannot {doing} {path}: {blocker} is not a directory", hint="choose another path")
    hint = _HINTS.get(error.errno or 0, "see the system's log for this file system")
    if doing == "read":
        hint = hint.replace("the right to write there", "the right to read it")
    return LocalError(what, hint=hint)


_HINTS = {
    errno.EACCES: "give this user the right to write there, or choose another path",
    errno.EPERM: "give this user the right to write there, or choose another path",
    errno.EROFS: "the file system is read-only: remount it, or choose another path",
    errno.ENOENT: "create the directory first",
    errno.EISDIR: "a directory is in the way: move it, or choose another path",
    errno.ELOOP: "a symbolic link is in the way: remove it, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.ENOLCK: "the file system cannot lock files: choose a local directory for `state`",
}


def _not_a_directory(path: Path) -> Path | None:
    """The part of `path` that should be a directory and is something else."""
    for part in (*reversed(path.parents), path):
        with suppress(OSError):
            if not stat.S_ISDIR(part.stat().st_mode):
                return part
    return None


class WholeFile(io.FileIO):
    """A new file whose own write errors, and only these, become LocalErrors that name the final path.

    `write` takes all or raises."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self._path = path

    def write(self, data: ReadableBuffer, /) -> int:
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
    """A file for `path`'s new content: after the block the path has all of it, on disk; if the block raises, the old.

    The umask can only take permissions away. Raises LocalError (local_full, local_io). A symbolic link at `path`
    is replaced, not followed; anything else there that is not a file is refused."""
    path = Path(path)
    try:
        _refuse_what_is_no_file(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise local_error("write", path, error) from error
    try:
        with whole_file(directory, path, mode=mode) as raw:
            out = io.BufferedWriter(raw, _BUFFER)
            try:
                yield out
                out.flush()
            except BaseException:
                # Detaching flushes what a failed write left in the buffer: the file is going, so is the interest in it.
                with suppress(OSError, LocalError, ValueError):
                    out.detach()
                raise
            out.detach()
        sync_directory(directory, path.parent)
    finally:
        os.close(directory)


@contextmanager
def whole_file(directory: int, path: Path, *, into: int | None = None, mode: int = 0o600) -> Iterator[WholeFile]:
    """A file for `path`, made under another name in an open directory: after the block it has its name there, or in the
    open directory `into` of the same file system, and all its bytes are on disk; if the block raises, it is gone.

    What must not be lost needs a `sync_directory` after that, which many files may share. Raises LocalError."""
    temporary = f".{path.name}.{os.urandom(8).hex()}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode, dir_fd=directory)
    except OSError as error:
        raise local_error("write", path, error) from error
    try:
        with WholeFile(descriptor, path) as raw:
            yield raw
            # An fsync that failed is not tried again: the kernel may have dropped the pages (the caller writes anew).
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
    """What was renamed into the open directory stays there, whatever happens. Raises LocalError."""
    try:
        os.fsync(directory)
    except OSError as error:
        raise local_error("write", path, error) from error


def publish(temporary: Path, path: Path) -> None:
    """Give `temporary`, a finished file beside `path`, its name; after this the path has all of it, on disk.

    Raises LocalError; then the path has what it had."""
    try:
        _refuse_what_is_no_file(path)
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


def sweep(directory: Path) -> int:
    """Remove what killed `atomic_write`s left in `directory` -> how many. Only for who holds the directory's lock."""
    swept = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if _LEFTOVER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink()
                    swept += 1
    except OSError as error:
        raise local_error("tidy up", directory, error) from error
    return swept


def _refuse_what_is_no_file(path: Path) -> None:
    with suppress(FileNotFoundError):
        found = path.lstat().st_mode
        if stat.S_ISDIR(found):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(found) or stat.S_ISLNK(found)):
            raise LocalError(f"cannot write {path}: it is not a regular file", hint="choose another path")


def private_directory(path: Path) -> Path:
    """`path` as an existing directory that only this user can write to; made 0700, parents too, whatever the umask.

    Raises LocalError for a symbolic link, another owner, a group- or world-writable directory, or something
    else in the way. A symbolic link further up is the operator's."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps `..`)
    try:
        _make(path)
        found = path.lstat()
    except OSError as error:
        raise local_error("create the directory", path, error) from error
    if stat.S_ISLNK(found.st_mode):
        raise LocalError(f"{path} is a symbolic link", hint="name the directory that it leads to")
    if not stat.S_ISDIR(found.st_mode):
        raise LocalError(f"{path} is not a directory", hint="move it away, or choose another path")
    if found.st_uid != os.geteuid():
        raise LocalError(
            f"{path} belongs to another user (uid {found.st_uid}; we are {os.geteuid()})",
            hint=f"run as that user, or: chown -R {os.geteuid()} {path}",
        )
    if found.st_mode & 0o022:
        raise LocalError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"chmod go-w {path}, after a look at what is in it",
        )
    return path


def _make(path: Path) -> None:
    missing = []
    for part in (path, *path.parents):
        if os.path.lexists(part):
            break
        missing.append(part)
    for part in reversed(missing):
        try:
            part.mkdir(0o700)
        except FileExistsError:  # another run was faster
            continue
        if stat.S_IMODE(part.lstat().st_mode) & 0o700 != 0o700:  # a umask that takes from the owner
            part.chmod(0o700)


class Sleeper(Protocol):
    """Something that waits, and raises to end the wait early (`util.cancellation.Stop`)."""

    def sleep(self, seconds: float) -> None: ...


class Lock(AbstractContextManager["Lock"]):
    """An exclusive lock on a file that is there for nothing else; free as soon as its holder is gone, however it went.

    Not reentrant; one thread acquires and leaves. What the file says of the holder is for people only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, wait: float, stop: Sleeper) -> Lock:
        """Take the lock, trying for `wait` seconds. Raises LockBusy, LocalError, and what `stop.sleep` raises."""
        deadline = time.monotonic() + wait
        while not self._try():
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockBusy(f"another run holds {self.path}{self._holder()}", hint=_busy_hint(wait))
            stop.sleep(min(_POLL, left))
        return self

    def _try(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise local_error("lock", self.path, error) from error
        taken = False
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            taken = self._is_still(descriptor)
        except OSError as error:
            raise local_error("lock", self.path, error) from error
        finally:
            if not taken:
                os.close(descriptor)
        if not taken:
            return self._try()
        self._sign(descriptor)
        self._descriptor = descriptor
        return True

    def _is_still(self, descriptor: int) -> bool:
        """Whether the path still names the file that we locked: the directory may have been removed meanwhile."""
        ours = os.fstat(descriptor)
        if not stat.S_ISREG(ours.st_mode):
            raise LocalError(f"cannot lock {self.path}: it is not a regular file", hint="move it away")
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    @staticmethod
    def _sign(descriptor: int) -> None:
        # A full disk does not keep us from holding the lock; only the name of its holder is lost then.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), 0)

    def _holder(self) -> str:
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
        """Give the lock back; the file stays (removing it would let two runs hold two files of one name)."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        self.release()


def _busy_hint(wait: float) -> str:
    return f"waited {wait:g} s for it to end" if wait > 0 else "wait for it with --lock-wait SECONDS"
