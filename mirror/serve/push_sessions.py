"""Receives the bytes of pushed blobs: over several requests in an upload session, or in a single request."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType

from mirror.errors import Refused
from mirror.oci.digest import Digest, Hasher
from mirror.serve.messages import IncomingBody
from mirror.store import BlobReader
from mirror.util.file_reader import FileReader
from mirror.util.files import local_error

_BUFFER_BYTES = 256 << 10  # size of a read


class PushSession:
    """An upload session, which collects the bytes of a blob in an unnamed file. Used by one request at a time."""

    def __init__(self, directory: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (kept until `close`)
        except OSError as error:
            raise local_error("write an upload to", directory, error) from error
        self._directory = directory
        self._hasher: Hasher = hashlib.sha256()
        self.size = 0

    def append(self, body: IncomingBody) -> None:
        """Append the body of a request to the blob. Raises NetworkError, LocalError."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while count := body.readinto(buffer):
            left = buffer[:count]
            self._hasher.update(left)
            self.size += count
            try:
                while len(left):
                    left = left[os.write(self._file.fileno(), left) :]
            except OSError as error:
                raise local_error("write an upload to", self._directory, error) from error

    def digest(self, algorithm: str) -> str:
        """Return the digest of the bytes received so far. algorithm: sha256 or sha512."""
        if algorithm == "sha256":
            return f"sha256:{self._hasher.hexdigest()}"
        hasher, buffer = hashlib.new(algorithm), memoryview(bytearray(_BUFFER_BYTES))
        with self.open() as reader:
            while count := reader.readinto(buffer):
                hasher.update(buffer[:count])
        return f"{algorithm}:{hasher.hexdigest()}"

    def open(self) -> BlobReader:
        """Return a reader for the bytes received so far."""
        return FileReader(os.dup(self._file.fileno()), self._directory)

    def close(self) -> None:
        """Close the file, which deletes it."""
        self._file.close()


class VerifyingBody:
    """A BlobReader that reads the body of a request, and verifies the digest at the end of the body."""

    def __init__(self, body: IncomingBody, digest: Digest) -> None:
        self.size = body.length
        self._body = body
        self._digest = digest
        self._hasher = digest.hasher()

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes into `buffer`. Return the number of bytes read, or 0 at the end of the body.

        Raises NetworkError, and at the end Refused (digest_mismatch) if the digest does not match."""
        count = self._body.readinto(buffer)
        self._hasher.update(buffer[:count])
        if not count and self._hasher.hexdigest() != self._digest.hex:
            raise Refused(f"the received bytes do not have the digest {self._digest}", code="digest_mismatch")
        return count

    def __enter__(self) -> VerifyingBody:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
