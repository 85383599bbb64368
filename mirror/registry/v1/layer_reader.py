"""The stored bytes of a v1 layer, across broken connections, with the old servers' ways of answering ranges.

Nothing vouches for these bytes but their length and, where there is one, a checksum; so a connection that broke is
gone on with only where it would show that the rest is of another layer, and else all of it is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from mirror.errors import NetworkError, RemoteError
from mirror.registry.session import Headers, Stream
from mirror.registry.v1 import parsing

# A body that broke is gone on with in place only if it got somewhere: at least this far since the last time.
WORTH_RESUMING = 1 << 20  # bytes
RESUMES = 5
# gzip and bzip2 have checksums inside, xz only if its writer wanted one. A plain tar whose rest is of another layer
# would be believed.
_CHECKED = (b"\x1f\x8b\x08", b"BZh")


class LayerReader:
    """Read once, from the beginning to the end. size: of the whole, bytes; None: not known.

    sure: whether anything but the end of the connection tells where the layer ends."""

    def __init__(
        self, open_at: Callable[[int, int | None], Stream], announced: int | None, what: str, *, checked: bool = True
    ) -> None:
        """announced: what the image's JSON came with; checked: there is a checksum, which a mixture would not fit.

        Opens the layer; raises as the session does, Refused."""
        self._open_at = open_at
        self._what = what
        self._checked = checked
        self._bytes = 0
        self._resumed_at = 0
        self._resumes = 0
        self.sure = True
        self._stream: Stream | None = open_at(0, None)
        try:
            self.size = self._judged(self._stream, announced)
        except BaseException:
            self.close()
            raise

    def _judged(self, stream: Stream, announced: int | None) -> int | None:
        if stream.status == 416:
            # docker-registry has no other answer for a layer of no bytes.
            if announced != 0:
                of = "a size that nobody told" if announced is None else f"{announced} bytes"
                raise RemoteError(f"{self._what}: 416 for a layer of {of}", status=416, retryable=True)
            self.close()
            return 0
        length = _length(stream.headers)
        if None not in (length, announced) and length != announced:
            raise parsing.invalid(self._what, f"{length} bytes are sent of a layer of {announced} bytes")
        self._ranges = "bytes" in stream.headers.listed("accept-ranges")
        self.sure = (length, announced) != (None, None) or "chunked" in stream.headers.listed("transfer-encoding")
        return announced if length is None else length

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer`; 0 only at the end, after all that was announced.

        Raises NetworkError (truncated), Refused (longer than announced)."""
        if self._stream is None:
            return 0
        count = self._read(buffer)
        if not self._bytes and bytes(buffer[:3]) in _CHECKED:
            self._checked = True
        self._bytes += count
        if self.size is None or (count and self._bytes <= self.size):
            return count
        if self._bytes > self.size:
            raise parsing.invalid(self._what, f"it is longer than the {self.size} bytes announced")
        if self._bytes < self.size:
            raise NetworkError(f"{self._what} ended after {self._bytes} of {self.size} bytes", code="truncated")
        return 0

    def _read(self, buffer: memoryview) -> int:
        while self._stream is not None:
            try:
                return self._stream.readinto(buffer)
            except NetworkError:
                size = self._resumable()
                if size is None:
                    raise
            self._resumes += 1
            self._resumed_at = self._bytes
            self.close()
            self._stream = self._reopened(size)
        return 0

    def _resumable(self) -> int | None:
        """The size, if it makes sense to ask for the rest; None: it does not."""
        # docker-registry refuses a range of one byte.
        if not (self._ranges and self._checked) or self.size is None or self.size - self._bytes < 2:
            return None
        got_somewhere = self._bytes - self._resumed_at >= WORTH_RESUMING
        return self.size if got_somewhere and self._resumes < RESUMES else None

    def _reopened(self, size: int) -> Stream:
        stream = self._open_at(self._bytes, size)
        if stream.status == 206 and parsing.ranged(stream.headers, self._bytes, size):
            return stream
        stream.close()
        raise NetworkError(
            f"{self._what}: its rest cannot be fetched, all of it has to be read again", code="truncated"
        )

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> LayerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _length(headers: Headers) -> int | None:
    text = headers.get("content-length") or ""
    return int(text) if text.isascii() and text.isdigit() else None
