"""Reads blobs and verifies their size and digest, even if a broken download is resumed.

No HEAD is sent before the GET, because the response to the GET contains the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from mirror.errors import MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Hasher
from mirror.store import BlobReader
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.range_threads import RangeThreads
from mirror.transfer.read_failures import ReadFailures
from mirror.util.cancellation import Work

CHECKPOINT_INTERVAL = 4 << 20  # bytes between two positions at which the verification can continue
# A broken connection is resumed at once only if at least this many bytes arrived since it was last resumed.
MIN_PROGRESS = 1 << 20  # bytes
MAX_RESUMES = 5
MISSING_HINT = "push the image to the source again, or leave its tag out of the configuration"
_SKIP_BUFFER = 1 << 18  # bytes


class BlobDownload:
    """Reads a blob from the first source that has it, and verifies its size and digest. Implements `BlobBody`.

    bytes_read: the number of bytes read in all attempts. error: the error of the last read, or None if it succeeded.
    position: the number of bytes that have been hashed.

    Used by one thread at a time."""

    def __init__(
        self,
        blob: Descriptor,
        sources: Sequence[BlobSource],
        failures: ReadFailures | None = None,
        ranges: RangeThreads | None = None,
    ) -> None:
        """Create a download of `blob` without opening it. sources: the sources to read from, in order of preference.

        failures: the failed reads of this run. Sources that failed earlier are skipped; new failures are added.
        ranges: lets a large blob be read over several connections; None for only one connection."""
        self._blob = blob
        self._sources = list(sources)  # the first one is read
        self._failures = failures or ReadFailures()
        self._ranges = ranges
        self._first_error: MirrorError | None = None
        self._hasher = blob.digest.hasher()
        self._checkpoints: dict[int, Hasher] = {0: self._hasher.copy()}
        self._is_verified = False
        self.position = 0
        self.bytes_read = 0
        self.error: MirrorError | None = None

    @property
    def _name(self) -> str:
        """The name of the blob in the repository from which it is read, for messages."""
        return f"{self._sources[0]}@{self._blob.digest}"

    def open(self, offset: int, work: Work) -> VerifyingReader:
        """Open the blob for reading from byte `offset`. Raises the same errors as `Source.open_blob`."""
        self.error = None
        self._rewind(offset)
        skipped = offset - self.position
        reader = VerifyingReader(self, self.open_source(work), work)
        try:
            reader.skip(skipped)
        except BaseException:
            reader.close()
            raise
        return reader

    def _rewind(self, offset: int) -> None:
        """Reset the position and the hash to the last checkpoint at or before `offset`."""
        self.position = max(position for position in self._checkpoints if position <= offset)
        self._hasher, self._is_verified = self._checkpoints[self.position].copy(), False

    def open_source(self, work: Work) -> BlobReader:
        """Open the blob at the current position, in the first source that can provide it.

        Continues with the next source if the blob is missing or damaged, or if access to it is denied. Raises the first
        error if no source is left."""
        while True:
            source = self._sources[0]
            error = self._failures.find(source, self._blob)
            if error is None:
                try:
                    reader = source.store.open_blob(source.repository, self._blob, work, offset=self.position)
                    if self._ranges is None:
                        return reader
                    return self._ranges.wrap(reader, self._blob, self.position, source.store.host, work)
                except NotFound as missing:
                    what = f"{source} does not have blob {self._blob.digest}"
                    error = type(missing)(
                        what, hint=missing.hint or MISSING_HINT, code=missing.code, status=missing.status
                    )
                    error.__cause__, error.request_id = missing, missing.request_id
                except MirrorError as other:
                    error = other
                self.remember_error(error)
                if error.retryable or isinstance(error, RateLimited) or not isinstance(error, RemoteError):
                    raise error
            self._first_error = self._first_error or error
            if len(self._sources) == 1:
                self.error = self._first_error
                raise self._first_error
            del self._sources[0]

    def remember_error(self, error: MirrorError) -> None:
        """Remember that reading from the current source failed with `error`."""
        self.error = error
        self._failures.add(self._sources[0], self._blob, error)

    def hash_bytes(self, data: memoryview) -> None:
        """Add the next bytes of the blob to its hash. Check that the blob is not longer than its descriptor says.

        Raises Refused (size_mismatch) if it is longer."""
        self.bytes_read += len(data)
        self._hasher.update(data)
        self.position += len(data)
        if self._blob.size is not None and self.position > self._blob.size:
            raise Refused(
                f"{self._name} is longer than its descriptor says ({self._blob.size} bytes)", code="size_mismatch"
            )
        if self.position % CHECKPOINT_INTERVAL == 0:
            self._checkpoints[self.position] = self._hasher.copy()

    def verify_end(self) -> None:
        """At the end of the blob, check that its size and digest match the descriptor.

        Raises Refused (size_mismatch, digest_mismatch) if they differ."""
        if self._is_verified:
            return
        if self._blob.size is not None and self.position != self._blob.size:
            raise Refused(f"{self._name} ended after {self.position} of {self._blob.size} bytes", code="size_mismatch")
        actual = self._hasher.hexdigest()
        if actual != self._blob.digest.hex:
            raise Refused(
                f"{self._name}: received {self.position} bytes, but their digest is "
                f"{self._blob.digest.algorithm}:{actual}",
                hint=f"check whether the storage of {self._sources[0].store.host}, or a proxy, damages the content",
                code="digest_mismatch",
            )
        self._is_verified = True


class VerifyingReader:
    """A BlobReader that resumes a broken connection, and verifies size and digest at the end of the blob."""

    def __init__(self, download: BlobDownload, reader: BlobReader, work: Work) -> None:
        self._download = download
        self._reader = reader
        self._work = work
        self._resumed_at = download.position
        self._resumes = 0
        self.size = reader.size

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the blob.

        Raises Refused (size_mismatch, digest_mismatch) if the blob does not match its descriptor."""
        try:
            count = self._read(buffer)
            if count:
                self._download.hash_bytes(buffer[:count])
            else:
                self._download.verify_end()
        except MirrorError as error:
            self._download.remember_error(error)
            raise
        return count

    def _read(self, buffer: memoryview) -> int:
        """Read from the store. If the connection breaks, resume the download if it has made enough progress."""
        while True:
            try:
                return self._reader.readinto(buffer)
            except NetworkError:
                progress = self._download.position - self._resumed_at
                if self._resumes >= MAX_RESUMES or progress < MIN_PROGRESS:
                    raise
            self._resumes += 1
            self._resumed_at = self._download.position
            self.close()
            self._reader = self._download.open_source(self._work)

    def skip(self, count: int) -> None:
        """Read and hash the next `count` bytes without returning them to a caller."""
        buffer = memoryview(bytearray(min(count, _SKIP_BUFFER)))
        while count:
            skipped = self.readinto(buffer[: min(len(buffer), count)])
            if not skipped:
                return
            count -= skipped

    def close(self) -> None:
        """Close the underlying reader, which the store returned."""
        self._reader.__exit__(None, None, None)

    def __enter__(self) -> VerifyingReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)


class BufferedBlob:
    """A small blob in memory, as the body of an upload. Its bytes are verified before the upload starts."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    @classmethod
    def read_from(cls, download: BlobDownload, size: int, work: Work) -> BufferedBlob:
        """Read a blob of `size` bytes into memory. Raises the errors that `download` raises."""
        data = bytearray(size)
        free = memoryview(data)
        with download.open(0, work) as reader:
            # After the last byte, read once more: the end of the blob has to be verified.
            while count := reader.readinto(free or memoryview(bytearray(1))):
                free = free[count:]
        return cls(data)

    @property
    def content(self) -> bytes:
        """The bytes of the blob."""
        return bytes(self._data)

    def open(self, offset: int, work: Work) -> BufferedReader:
        """Open the blob for reading from byte `offset`. Raises Cancelled after a stop."""
        work.stop.raise_if_requested()
        return BufferedReader(self._data, offset)


class BufferedReader:
    """A BlobReader that reads a blob from memory."""

    def __init__(self, data: bytearray, offset: int) -> None:
        self._left = memoryview(data)[offset:]
        self.size: int | None = len(data)

    def readinto(self, buffer: memoryview) -> int:
        """Copy bytes into the beginning of `buffer`. Return the number of bytes copied, or 0 at the end of the blob."""
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def __enter__(self) -> BufferedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.release()
