"""Reading blobs so that what is read is proven: size and digest, across resumed connections.

There is no HEAD before a GET: the size comes with the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from mirror.errors import MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Hasher
from mirror.oci.reference import Repository
from mirror.store import BlobReader, Source
from mirror.transfer.retry_budgets import ReadFailures
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

CHECKPOINT_INTERVAL = 4 << 20  # bytes between two places from which a proof can be taken up again
# A body that broke is gone on with in place only if it got somewhere: at least this far since the last time.
MIN_PROGRESS = 1 << 20  # bytes
MAX_RESUMES = 5
MISSING_HINT = "push the image again at the source, or leave its tag out of the configuration"


class Proof:
    """The running size and digest of a blob that is being read. Used by one thread at a time."""

    def __init__(self, blob: Descriptor, origin: BlobSource) -> None:
        self._blob = blob
        self.origin = origin  # where it is read now
        self._hasher = blob.digest.hasher()
        self._marks: dict[int, Hasher] = {0: self._hasher.copy()}
        self.bytes = 0
        self.proven = False

    @property
    def what(self) -> str:
        return f"{self.origin}@{self._blob.digest}"

    def update(self, data: memoryview) -> None:
        """Raises Refused (size_mismatch) at the first byte too many."""
        self._hasher.update(data)
        self.bytes += len(data)
        if self._blob.size is not None and self.bytes > self._blob.size:
            raise Refused(f"{self.what} is longer than the {self._blob.size} bytes announced", code="size_mismatch")
        if self.bytes % CHECKPOINT_INTERVAL == 0:
            self._marks[self.bytes] = self._hasher.copy()

    def finish(self) -> None:
        """The end was reached. Raises Refused (size_mismatch, digest_mismatch)."""
        if self._blob.size is not None and self.bytes != self._blob.size:
            raise Refused(f"{self.what} ended after {self.bytes} of {self._blob.size} bytes", code="size_mismatch")
        actual = self._hasher.hexdigest()
        if actual != self._blob.digest.hex:
            raise Refused(
                f"{self.what}: {self.bytes} bytes with the digest {self._blob.digest.algorithm}:{actual}",
                hint=f"the storage of {self.origin.store.host}, or something on the way, is damaged",
                code="digest_mismatch",
            )
        self.proven = True

    def back_to(self, offset: int) -> int:
        """Take the proof up again at `offset`, or before it. -> where."""
        repository = max(mark for mark in self._marks if mark <= offset)
        self._hasher, self.bytes, self.proven = self._marks[repository].copy(), repository, False
        return repository


class BlobSource(Struct, frozen=True):
    """A repository that a blob may be read from."""

    store: Source
    repository: str

    def __str__(self) -> str:
        return str(Repository(self.store.host, self.repository))


class BlobDownload:
    """A blob as an upload's body: `open(offset)` opens it, again if need be, and proves its end.

    origins: where it may be read from, in the order of preference; one that does not have it is left out.
    unreadable: what is known of that, and is learned here. read: bytes that came so far, those of failed attempts too.
    trouble: what reading came to, if it failed last. Used by one thread at a time."""

    def __init__(self, blob: Descriptor, origins: Sequence[BlobSource], unreadable: ReadFailures | None = None) -> None:
        self._blob = blob
        self._origins = list(origins)
        self._unreadable = unreadable or ReadFailures()
        self.read = 0
        self.trouble: MirrorError | None = None
        self._first_trouble: MirrorError | None = None
        self._proof = Proof(blob, origins[0])

    def open(self, offset: int, work: Work) -> VerifyingReader:
        """The bytes from `offset` on. Raises as `Source.open_blob`."""
        self.trouble = None
        repository = self._proof.back_to(offset)
        reader = VerifyingReader(self, self._proof, self.reopen(repository, work), work)
        try:
            reader.skip(offset - repository)
        except BaseException:
            reader.close()
            raise
        return reader

    def reopen(self, offset: int, work: Work) -> BlobReader:
        """Open at `offset`, where the proof stands."""
        while True:
            origin = self._proof.origin = self._origins[0]
            error = self._unreadable.why(origin.store.host, origin.repository, self._blob)
            if error is None:
                try:
                    return origin.store.open_blob(origin.repository, self._blob, work, offset=offset)
                except NotFound as missing:
                    what = f"{origin} does not have blob {self._blob.digest}"
                    error = type(missing)(
                        what, hint=missing.hint or MISSING_HINT, code=missing.code, status=missing.status
                    )
                    error.__cause__ = missing
                except MirrorError as other:
                    error = other
                self.failed(error)
                if error.retryable or isinstance(error, RateLimited) or not isinstance(error, RemoteError):
                    raise error
            self._first_trouble = self._first_trouble or error
            if len(self._origins) == 1:
                self.trouble = self._first_trouble
                raise self._first_trouble
            del self._origins[0]

    def failed(self, error: MirrorError) -> None:
        """Reading it from where it is read now came to this."""
        self.trouble = error
        origin = self._origins[0]
        self._unreadable.note(origin.store.host, origin.repository, self._blob, error)


class BufferedBlob:
    """The bytes of a small blob, proven, as an upload's body: read before its upload has a slot."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    @classmethod
    def read_from(cls, body: BlobDownload, size: int, work: Work) -> BufferedBlob:
        """Read all of `body`, which is `size` bytes long. Raises as it does."""
        data = bytearray(size)
        free = memoryview(data)
        with body.open(0, work) as reader:
            while count := reader.readinto(free or memoryview(bytearray(1))):
                free = free[count:]
        return cls(data)

    def open(self, offset: int, work: Work) -> BufferedReader:
        work.stop.raise_if_requested()
        return BufferedReader(self._data, offset)


class BufferedReader:
    """A BlobReader over bytes in memory."""

    def __init__(self, data: bytearray, offset: int) -> None:
        self._rest = memoryview(data)[offset:]
        self.size: int | None = len(data)

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def __enter__(self) -> BufferedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rest.release()


class VerifyingReader:
    """A BlobReader that goes on after a break and raises at the end unless size and digest are right."""

    def __init__(self, body: BlobDownload, proof: Proof, reader: BlobReader, work: Work) -> None:
        self._body = body
        self._proof = proof
        self._reader = reader
        self._work = work
        self._resumed_at = proof.bytes
        self._resumes = 0
        self.size = reader.size

    def readinto(self, buffer: memoryview) -> int:
        try:
            count = self._read(buffer)
            if count:
                self._body.read += count
                self._proof.update(buffer[:count])
            elif not self._proof.proven:
                self._proof.finish()
        except MirrorError as error:
            self._body.failed(error)
            raise
        return count

    def _read(self, buffer: memoryview) -> int:
        while True:
            try:
                return self._reader.readinto(buffer)
            except NetworkError:
                if self._resumes >= MAX_RESUMES or self._proof.bytes - self._resumed_at < MIN_PROGRESS:
                    raise
            self._resumes += 1
            self._resumed_at = self._proof.bytes
            self.close()
            self._reader = self._body.reopen(self._proof.bytes, self._work)

    def skip(self, count: int) -> None:
        """Read `count` bytes only to prove them."""
        buffer = memoryview(bytearray(min(count, 1 << 18)))
        while count:
            got = self.readinto(buffer[: min(len(buffer), count)])
            if not got:
                return
            count -= got

    def close(self) -> None:
        self._reader.__exit__(None, None, None)

    def __enter__(self) -> VerifyingReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)
