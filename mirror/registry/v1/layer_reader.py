"""Reads the stored bytes of a v1 layer. Resumes broken downloads, and handles the range responses of old servers.

Only the length of the layer and, in some cases, a checksum show whether these bytes are correct. A broken download is
therefore resumed only if a mixture of two layers would be detected. Otherwise the download must start again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from mirror.errors import NetworkError, RemoteError
from mirror.registry.http.headers import Headers
from mirror.registry.session import ResponseStream
from mirror.registry.v1 import parsing

# A broken download is resumed only if at least this much was received since it last started or resumed.
MIN_PROGRESS = 1 << 20  # bytes
MAX_RESUMES = 5
# Formats that contain checksums: gzip and bzip2. In xz they are optional, and a plain tar has none, so bytes from a
# different layer would not be detected.
_CHECKSUMMED = (b"\x1f\x8b\x08", b"BZh")


class LayerReader:
    """A reader for one v1 layer, which is read once from beginning to end. Implements BlobReader.

    size: the size of the whole layer in bytes; None if unknown. end_known: whether the response states where the layer
    ends; otherwise it ends when the connection is closed."""

    def __init__(
        self,
        open_at: Callable[[int, int | None], ResponseStream],
        declared_size: int | None,
        what: str,
        *,
        checked: bool = True,
    ) -> None:
        """Open the layer. Raises errors from `open_at`, and Refused if the response contradicts `declared_size`.

        open_at: opens the layer at an offset, given the size of the layer (None at the first request).
        declared_size: the size in bytes that the response with the image's JSON declared; None if it declared none.
        checked: whether the caller verifies a checksum, which detects a mixture of two layers."""
        self._open_at = open_at
        self._what = what
        self._checked = checked
        self._bytes = 0
        self._resumed_at = 0
        self._resumes = 0
        self.end_known = True
        self._stream: ResponseStream | None = open_at(0, None)
        try:
            self.size = self._check_response(self._stream, declared_size)
        except BaseException:
            self.close()
            raise

    def _check_response(self, stream: ResponseStream, declared_size: int | None) -> int | None:
        """Check the response to the first request. Return the size of the layer in bytes, or None if unknown."""
        if stream.status == 416:
            # docker-registry responds with 416 for an empty layer.
            if declared_size != 0:
                size = "unknown size" if declared_size is None else f"{declared_size} bytes"
                raise RemoteError(
                    f"{self._what}: the registry responded with 416 to a request for a layer of {size}",
                    status=416,
                    retryable=True,
                )
            self.close()
            return 0
        length = _content_length(stream.headers)
        if None not in (length, declared_size) and length != declared_size:
            raise parsing.invalid_error(
                self._what, f"the response has {length} bytes, but the registry declared {declared_size} for the image"
            )
        self._ranges = "bytes" in stream.headers.tokens("accept-ranges")
        self.end_known = (length, declared_size) != (None, None) or "chunked" in stream.headers.tokens(
            "transfer-encoding"
        )
        return declared_size if length is None else length

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the layer.

        Raises NetworkError (truncated) if the layer is shorter than `size`, Refused if it is longer."""
        if self._stream is None:
            return 0
        count = self._read(buffer)
        if not self._bytes and bytes(buffer[:3]) in _CHECKSUMMED:
            self._checked = True
        self._bytes += count
        if self.size is None or (count and self._bytes <= self.size):
            return count
        if self._bytes > self.size:
            raise parsing.invalid_error(self._what, f"the layer is longer than the declared {self.size} bytes")
        if self._bytes < self.size:
            raise NetworkError(f"{self._what} ended after {self._bytes} of {self.size} bytes", code="truncated")
        return 0

    def _read(self, buffer: memoryview) -> int:
        """Read from the stream, and resume the download if it breaks."""
        while self._stream is not None:
            try:
                return self._stream.readinto(buffer)
            except NetworkError:
                size = self._resumable_size()
                if size is None:
                    raise
            self._resumes += 1
            self._resumed_at = self._bytes
            self.close()
            self._stream = self._reopen(size)
        return 0

    def _resumable_size(self) -> int | None:
        """Return the size of the layer if the download can be resumed, or None if it cannot."""
        # docker-registry rejects a request for a range of one byte.
        if not (self._ranges and self._checked) or self.size is None or self.size - self._bytes < 2:
            return None
        has_progressed = self._bytes - self._resumed_at >= MIN_PROGRESS
        return self.size if has_progressed and self._resumes < MAX_RESUMES else None

    def _reopen(self, size: int) -> ResponseStream:
        """Request the remaining bytes of the layer. Raises NetworkError (truncated) if the response has other bytes."""
        stream = self._open_at(self._bytes, size)
        if stream.status == 206 and parsing.is_requested_range(stream.headers, self._bytes, size):
            return stream
        stream.close()
        raise NetworkError(f"{self._what}: the download cannot be resumed and must start again", code="truncated")

    def close(self) -> None:
        """Close the response, if one is open."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> LayerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _content_length(headers: Headers) -> int | None:
    """Return the Content-Length in bytes, or None if it is missing or invalid."""
    text = headers.get("content-length") or ""
    return int(text) if text.isascii() and text.isdigit() else None
