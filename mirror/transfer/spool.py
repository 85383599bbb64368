"""The spool: files for blobs on their way to several targets, so that each blob is read from its source once.

The spool has a `blobs/` directory like that of an OCI layout, except that the file names are numbered. Each run deletes
the files of earlier runs when it starts. An upload can read a file while the file is being written, but reaches the end
of the file only after the digest has been verified.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from mirror.errors import LocalError, NetworkError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.store import BlobReader
from mirror.util.cancellation import Work

BUFFER = 256 << 10  # bytes
STOP_CHECK_INTERVAL = 1.0  # seconds between two checks for a stop while a reader waits for the writer


class DownloadBroken(NetworkError):
    """Raised by an upload if the download into its spool file failed or was restarted.

    The upload starts again once the file is complete."""

    code = "truncated"
    retryable = False


class SpoolFile:
    """A spool file, which holds one blob. One thread at a time writes it, and any number of threads read it.

    users: the number of copies that use the file.
    dropped: whether the file has been removed from the spool and will be deleted.
    attempt: the number of the latest attempt to write the file, starting at 1.
    complete: whether the file contains the whole blob, verified."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        self.path = path
        self.blob = blob
        self.users = 0
        self.dropped = False
        self._changed = threading.Condition()
        self._written = 0
        self._writing = False
        self.attempt = 0
        self.complete = False

    def fill(self, body: BlobReader, work: Work) -> None:
        """Write all bytes of `body` to the file, then mark the file as complete.

        `body` verifies the bytes, and raises an error at its end if they are wrong. Raises the errors that `body`
        raises, and LocalError if the file cannot be written."""
        done = False
        try:
            # Opening does not truncate the file: readers of an earlier attempt must first see that it has ended.
            with translate_os_errors(self.path), self.path.open("ab", buffering=0) as out:
                self._start_attempt()
                if os.fstat(out.fileno()).st_size:
                    os.ftruncate(out.fileno(), 0)
                buffer = memoryview(bytearray(BUFFER))
                while count := body.readinto(buffer):
                    _write_all(out.fileno(), buffer[:count])
                    self._set_state(self._written + count, writing=True)
                    work.progress(count)
            done = True
        finally:
            self._set_state(self._written, writing=False, complete=done)
            if self.dropped:  # it may have been deleted before it was opened here, which created it again
                self.path.unlink(missing_ok=True)

    def _start_attempt(self) -> None:
        """Start a new attempt to write the file, and make readers of an earlier attempt fail."""
        with self._changed:
            self.attempt += 1
            self._written, self._writing, self.complete = 0, True, False
            self._changed.notify_all()

    def _set_state(self, written: int, *, writing: bool, complete: bool = False) -> None:
        """Set how many bytes are written, and whether writing continues or is complete. Wake the readers."""
        with self._changed:
            self._written, self._writing, self.complete = written, writing, complete
            self._changed.notify_all()

    def open(self, offset: int, work: Work) -> SpoolReader:
        """Open the file for reading from byte `offset`, even while it is being written.

        Raises LocalError if the file cannot be opened."""
        return SpoolReader(self, offset, work)

    def wait_for_bytes(self, offset: int, attempt: int, work: Work) -> int:
        """Wait for bytes after `offset`, and return how many are available, or 0 at the end of a complete file.

        attempt: the attempt to write the file that was current when the reader opened it. Raises DownloadBroken if that
        attempt failed, and Cancelled after a stop."""
        while True:
            work.stop.raise_if_requested()
            with self._changed:
                if attempt != self.attempt:
                    raise DownloadBroken(
                        f"the download of {self.blob.digest} was restarted while the blob was being uploaded"
                    )
                if self._written > offset or self.complete:
                    return self._written - offset
                if not self._writing:
                    raise DownloadBroken(f"the download of {self.blob.digest} failed while the blob was being uploaded")
                self._changed.wait(STOP_CHECK_INTERVAL)


class SpoolReader:
    """A BlobReader that reads a spool file, even while the file is being written."""

    def __init__(self, file: SpoolFile, offset: int, work: Work) -> None:
        self._file = file
        self._attempt = file.attempt
        self._offset = offset
        self._work = work
        self.size = file.blob.size
        with translate_os_errors(file.path):
            self._fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the blob.

        Waits until the writer has written more bytes or has verified the whole blob. Raises DownloadBroken, LocalError,
        Cancelled."""
        available = self._file.wait_for_bytes(self._offset, self._attempt, self._work)
        if not available:
            return 0
        with translate_os_errors(self._file.path):
            count = os.preadv(self._fd, [buffer[: min(len(buffer), available)]], self._offset)
        # Check again: a new attempt may have replaced the bytes before they were read.
        self._file.wait_for_bytes(0, self._attempt, self._work)
        if not count:
            raise LocalError(
                f"{self._file.path} is shorter than the data written to it", hint="check the disk for errors"
            )
        self._offset += count
        return count

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


class Spool:
    """Manages the spool files of a run within a limit on their total size. Old unused files are dropped to make room.

    Must be used on the event loop. Only `prepare` and `close` access the disk."""

    def __init__(self, directory: Path, limit: int | None) -> None:
        """Create a spool in `directory` without accessing the disk. limit: the maximum total size in bytes.

        If `limit` is None, `prepare` sets it to half of the free space."""
        self._directory = directory
        self._limit = limit
        self._dropped: list[Path] = []
        self._files: OrderedDict[Digest, SpoolFile] = OrderedDict()
        self._bytes = 0
        self._numbers = itertools.count(1)
        self._ready = False

    def prepare(self) -> None:
        """Create the directory, and delete files that a killed run left behind. Call this once, before `acquire`.

        Raises LocalError if the directory cannot be created."""
        blobs = self._directory / "blobs"
        with translate_os_errors(self._directory):
            shutil.rmtree(blobs, ignore_errors=True)
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            blobs.mkdir(mode=0o700)
            for algorithm in ("sha256", "sha512"):
                (blobs / algorithm).mkdir(mode=0o700)
            if self._limit is None:
                self._limit = shutil.disk_usage(self._directory).free // 2
        self._ready = True

    def acquire(self, blob: Descriptor) -> SpoolFile | None:
        """Return a spool file for `blob`, or None if the files in use leave no room.

        The file stays in the spool at least until it is passed to `release`. A blob that exceeds the limit gets a file
        only if no other file is in use."""
        size = blob.size or 0
        file = self._files.get(blob.digest)
        if file is not None:
            self._files.move_to_end(blob.digest)
            file.users += 1
            return file
        self._make_room(size)
        if self._files and self._bytes + size > (self._limit or 0):
            return None
        # The name is never reused: a dropped file of the same blob may be written or deleted at any later time.
        name = f"{blob.digest.hex}.{next(self._numbers)}"
        path = self._directory / "blobs" / blob.digest.algorithm / name
        file = self._files[blob.digest] = SpoolFile(path, blob)
        file.users = 1
        self._bytes += size
        return file

    def _make_room(self, size: int) -> None:
        """Drop unused files until `size` bytes fit."""
        for file in list(self._files.values()):
            if self._bytes + size <= (self._limit or 0):
                break
            if not file.users:
                self._drop(file)

    def _drop(self, file: SpoolFile) -> None:
        """Remove a file from the spool. The caller of `take_dropped` deletes it."""
        del self._files[file.blob.digest]
        self._bytes -= file.blob.size or 0
        file.dropped = True
        self._dropped.append(file.path)

    def take_dropped(self) -> list[Path]:
        """Return the paths of the files dropped since the last call. The caller must delete these files."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def release(self, file: SpoolFile) -> None:
        """Decrement the number of copies that use a file. A complete file stays in the spool until space is needed."""
        file.users -= 1
        if not file.users and not file.complete and self._files.get(file.blob.digest) is file:
            self._drop(file)

    def close(self) -> None:
        """Delete all spool files. Blocks."""
        if self._ready:
            shutil.rmtree(self._directory / "blobs", ignore_errors=True)


def remove_files(paths: Iterable[Path]) -> None:
    """Delete files that the spool has dropped. Blocks."""
    for path in paths:
        path.unlink(missing_ok=True)


class translate_os_errors:  # noqa: N801 - reads as a function in `with translate_os_errors(path)`
    """A context manager that converts an OSError raised in its `with` block to a LocalError that names `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise LocalError(
                f"cannot use {self._path} for the spool: {error.strerror}",
                hint="free some space, or set `spool` to a directory on a larger disk"
                if is_full
                else "check the permissions of the spool directory, and the disk for errors",
                code="local_full" if is_full else "local_io",
            ) from error


def _write_all(descriptor: int, data: memoryview) -> None:
    """Write all of `data` to a file descriptor. Raises OSError."""
    while data:
        data = data[os.write(descriptor, data) :]
