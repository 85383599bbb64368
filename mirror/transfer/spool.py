"""The spool: blobs on their way to several targets, read from the source once.

A directory like an OCI layout's `blobs/`, but that its names are numbered. Nothing in it outlives a run: it is swept at
the start.
Uploads read behind the writer; the end of a blob is shown to them only when its digest has been proven.
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
STOP_CHECK_INTERVAL = 1.0  # seconds between two looks at a stop while waiting for the writer


class DownloadBroken(NetworkError):
    """The download that fills a spool file gave up for now; the upload behind it begins again when it is whole."""

    code = "truncated"
    retryable = False


class SpoolFile:
    """One blob in the spool. One writer, any number of readers, any threads."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        self.path = path
        self.blob = blob
        self.users = 0
        self.dropped = False  # the spool has forgotten it; set before it is unlinked
        self._changed = threading.Condition()
        self._written = 0
        self._writing = False
        self.attempt = 0  # of the writer, from 1
        self.complete = False

    def fill(self, body: BlobReader, work: Work) -> None:
        """Write `body`, from its beginning to its proven end: then it is complete. Raises as that does, LocalError."""
        done = False
        try:
            # Not truncated by opening it: who reads behind an earlier, broken attempt must learn of this one first.
            with translate_os_errors(self.path), self.path.open("ab", buffering=0) as out:
                self._begin()
                if os.fstat(out.fileno()).st_size:
                    os.ftruncate(out.fileno(), 0)
                buffer = memoryview(bytearray(BUFFER))
                while count := body.readinto(buffer):
                    _write(out.fileno(), buffer[:count])
                    self._note(self._written + count, writing=True)
                    work.progress(count)
            done = True
        finally:
            self._note(self._written, writing=False, complete=done)
            if self.dropped:  # maybe before it was opened here, which has made it anew
                self.path.unlink(missing_ok=True)

    def _begin(self) -> None:
        with self._changed:
            self.attempt += 1
            self._written, self._writing, self.complete = 0, True, False
            self._changed.notify_all()

    def _note(self, written: int, *, writing: bool, complete: bool = False) -> None:
        with self._changed:
            self._written, self._writing, self.complete = written, writing, complete
            self._changed.notify_all()

    def open(self, offset: int, work: Work) -> SpoolReader:
        """Read from `offset` on, behind the writer if there still is one."""
        return SpoolReader(self, offset, work)

    def available(self, offset: int, attempt: int, work: Work) -> int:
        """Wait until there are bytes at `offset`, or the proven end. -> how many there are beyond `offset`.

        attempt: of the writer, that the reader follows. Raises SpoolBroken if the writer gave up, or began again."""
        while True:
            work.stop.raise_if_requested()
            with self._changed:
                if attempt != self.attempt:
                    raise DownloadBroken(f"the download of {self.blob.digest} began again while it was being sent on")
                if self._written > offset or self.complete:
                    return self._written - offset
                if not self._writing:
                    raise DownloadBroken(f"the download of {self.blob.digest} broke off while it was being sent on")
                self._changed.wait(STOP_CHECK_INTERVAL)


class SpoolReader:
    """A BlobReader over a spool file."""

    def __init__(self, file: SpoolFile, offset: int, work: Work) -> None:
        self._file = file
        self._attempt = file.attempt
        self._offset = offset
        self._work = work
        self.size = file.blob.size
        with translate_os_errors(file.path):
            self._fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def readinto(self, buffer: memoryview) -> int:
        available = self._file.available(self._offset, self._attempt, self._work)
        if not available:
            return 0
        with translate_os_errors(self._file.path):
            count = os.preadv(self._fd, [buffer[: min(len(buffer), available)]], self._offset)
        # What was read may be of another attempt than what was counted.
        self._file.available(0, self._attempt, self._work)
        if not count:
            raise LocalError(f"{self._file.path} is shorter than what was written to it")
        self._offset += count
        return count

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


class Spool:
    """The files of a run, bounded in bytes: what nobody uses makes room, oldest first.

    limit: bytes; None: half of what is free when the first blob comes. Used on the event loop; only `prepare` and
    `close` do I/O."""

    def __init__(self, directory: Path, limit: int | None) -> None:
        self._directory = directory
        self._limit = limit
        self._dropped: list[Path] = []
        self._files: OrderedDict[Digest, SpoolFile] = OrderedDict()
        self._bytes = 0
        self._numbers = itertools.count(1)
        self._ready = False

    def prepare(self) -> None:
        """Make the directory, and sweep what a killed run left. Raises LocalError. Once, before `claim`."""
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
        """The file for `blob`, kept until `leave`. None: it does not fit now beside what is in use."""
        size = blob.size or 0
        found = self._files.get(blob.digest)
        if found is not None:
            self._files.move_to_end(blob.digest)
            found.users += 1
            return found
        self._make_room(size)
        if self._files and self._bytes + size > (self._limit or 0):
            return None
        # A name that no other file ever has: one of the same blob that was dropped may be unlinked, and even written
        # to, at any time from then on.
        name = f"{blob.digest.hex}.{next(self._numbers)}"
        path = self._directory / "blobs" / blob.digest.algorithm / name
        found = self._files[blob.digest] = SpoolFile(path, blob)
        found.users = 1
        self._bytes += size
        return found

    def _make_room(self, size: int) -> None:
        for file in list(self._files.values()):
            if self._bytes + size <= (self._limit or 0):
                break
            if not file.users:
                self._drop(file)

    def _drop(self, file: SpoolFile) -> None:
        del self._files[file.blob.digest]
        self._bytes -= file.blob.size or 0
        file.dropped = True
        self._dropped.append(file.path)

    def take_dropped(self) -> list[Path]:
        """The files that are not needed any more since the last call; the caller removes them."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def release(self, file: SpoolFile) -> None:
        """Done with `file`; it stays for others until room is needed, unless it is not whole."""
        file.users -= 1
        if not file.users and not file.complete and self._files.get(file.blob.digest) is file:
            self._drop(file)

    def close(self) -> None:
        """Remove what is there."""
        if self._ready:
            shutil.rmtree(self._directory / "blobs", ignore_errors=True)


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files that were dropped. Does I/O."""
    for path in paths:
        path.unlink(missing_ok=True)


class translate_os_errors:  # noqa: N801 - reads as a word in `with translated(path)`
    """OSErrors of a local path as LocalError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise LocalError(
                f"{self._path}: {error.strerror}",
                hint="free some space, or set `spool` to a larger disk" if full else "check the spool directory",
                code="local_full" if full else "local_io",
            ) from error


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
