"""Reads blobs from a registry, starting at any offset, and determines their size."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import TracebackType

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.registry.auth.authorizer import Scope
from mirror.registry.http.headers import Headers
from mirror.registry.http.url_policy import Destination
from mirror.registry.session import ResponseStream, Session
from mirror.util.cancellation import Work

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_RANGE_TOTAL = re.compile(r"bytes (?:\d{1,19}-\d{1,19}|\*)/(\d{1,19})")
NO_RANGE_STATUSES = frozenset({400, 405, 412, 416, 501})  # sent by registries that do not support range requests
_SKIP_BUFFER = 1 << 18  # bytes


class BlobStream:
    """The body of the response to a GET request for a blob.

    `size` is the size of the whole blob in bytes, or None if the response does not state it."""

    def __init__(
        self, stream: ResponseStream, size: int | None, open_range: Callable[[int, int, Work], BlobStream]
    ) -> None:
        self._stream = stream
        self.size = size
        self._open_range = open_range

    def open_range(self, start: int, end: int, work: Work) -> BlobStream:
        """Request the bytes of the same blob from offset `start` to before offset `end`, and return their stream.

        Raises RemoteError if the response does not contain exactly this range."""
        return self._open_range(start, end, work)

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the blob."""
        return self._stream.readinto(buffer)

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)


def open_blob(
    session: Session,
    repository: str,
    blob: Descriptor,
    scopes: tuple[Scope, ...],
    work: Work,
    *,
    offset: int = 0,
    url: Destination | None = None,
) -> BlobStream:
    """Open `blob` for reading, starting at byte `offset`.

    If `url` is set, the blob is read from `url`, not from the repository. If the registry does not support range
    requests, the whole blob is requested and the first `offset` bytes are skipped. The caller already has these bytes,
    and verifies the digest of the whole blob. Raises Refused (size_mismatch) if the blob's size on the registry differs
    from the size in its descriptor."""
    what = str(url or f"{session.settings.host}/{repository}@{blob.digest}")
    where = url or _blob_path(repository, blob)
    stream = _request_range(session, where, blob, scopes, work, offset) if offset and blob.size is not None else None
    if stream is None:
        stream = _request_blob(session, where, scopes, work)
    try:
        size = _full_size(stream)
        if size is not None and blob.size is not None and size != blob.size:
            text = f"{what} has {size} bytes, but the size in its descriptor is {blob.size}"
            raise Refused(text, code="size_mismatch")
        if stream.status == 200 and offset:
            _skip_bytes(stream, offset)
    except BaseException:
        stream.close()
        raise
    return BlobStream(stream, size, partial(_open_range, session, where, blob, scopes))


def _open_range(
    session: Session,
    where: str | Destination,
    blob: Descriptor,
    scopes: tuple[Scope, ...],
    start: int,
    end: int,
    work: Work,
) -> BlobStream:
    """Request the bytes of a blob from offset `start` to before offset `end`. See `BlobStream.open_range`."""
    headers = (("Range", f"bytes={start}-{end - 1}"),)
    stream = _request_blob(session, where, scopes, work, headers=headers, expect=(206,))
    match = _content_range(stream)
    if match is None or (int(match[1]), int(match[2]) + 1) != (start, end) or match[3] not in ("*", str(blob.size)):
        stream.close()
        text = f"{stream.request}: the response does not contain the requested range"
        raise RemoteError(text, code="bad_response")
    return BlobStream(stream, blob.size, partial(_open_range, session, where, blob, scopes))


def _blob_path(repository: str, blob: Descriptor) -> str:
    """Return the path of a blob on its registry."""
    return f"/v2/{repository}/blobs/{blob.digest}"


def _request_blob(
    session: Session,
    where: str | Destination,
    scopes: tuple[Scope, ...],
    work: Work,
    *,
    headers: Sequence[tuple[str, str]] = (),
    expect: Collection[int] = (200,),
) -> ResponseStream:
    """Send a GET request for a blob, and return the response as a stream."""
    return session.stream(
        where,
        work,
        kind="blob",
        scopes=scopes,
        headers=headers,
        expect=expect,
    )


def _request_range(
    session: Session,
    where: str | Destination,
    blob: Descriptor,
    scopes: tuple[Scope, ...],
    work: Work,
    offset: int,
) -> ResponseStream | None:
    """Request the bytes of a blob from `offset` to the end of the blob. Return the response, or None if it is unusable.

    The response contains the requested bytes (206) or the whole blob (200). It is unusable if the registry rejected the
    request or sent a different range."""
    last = (blob.size or 0) - 1
    headers = (("Range", f"bytes={offset}-{last}"),)
    try:
        stream = _request_blob(session, where, scopes, work, headers=headers, expect=(200, 206))
    except RemoteError as error:
        if error.status in NO_RANGE_STATUSES:
            return None
        raise
    match = _content_range(stream) if stream.status == 206 else None
    if stream.status == 200 or (match is not None and int(match[1]) == offset and _reaches_end(match)):
        return stream
    stream.close()
    return None


def _content_range(stream: ResponseStream) -> re.Match[str] | None:
    """Return the parsed Content-Range header of a response, or None if it is missing or invalid."""
    return _CONTENT_RANGE.fullmatch(stream.headers.get("content-range") or "")


def _reaches_end(match: re.Match[str]) -> bool:
    """Return whether the range in a parsed Content-Range header extends to the last byte of the blob."""
    return match[3] == "*" or int(match[2]) == int(match[3]) - 1


def _full_size(stream: ResponseStream) -> int | None:
    """Return the size of the whole blob in bytes, or None if the response does not state it."""
    if stream.status != 206:
        return _content_length(stream.headers)
    match = _content_range(stream)
    return int(match[3]) if match and match[3] != "*" else None


def _skip_bytes(stream: ResponseStream, count: int) -> None:
    """Read and discard `count` bytes of the body. Raises NetworkError (truncated) if the body is too short."""
    buffer = memoryview(bytearray(min(_SKIP_BUFFER, count)))
    while count:
        count_read = stream.readinto(buffer[: min(len(buffer), count)])
        if not count_read:
            text = f"{stream.request}: the blob ended before the offset at which the download should resume"
            raise NetworkError(text, code="truncated")
        count -= count_read


def blob_size(session: Session, repository: str, blob: Descriptor, scopes: tuple[Scope, ...], work: Work) -> int | None:
    """Return the size in bytes that the registry reports for `blob`, or None if it does not have the blob.

    Sends a HEAD request and, if its response does not show the size, a GET request. Raises MirrorError if a request
    fails."""
    response = session.call(
        "HEAD",
        _blob_path(repository, blob),
        work,
        kind="blob",
        scopes=scopes,
        expect={200, 403, 404, 405, 501},
    )
    if response.status == 404:
        return None
    if response.status == 403 and not response.destination.named_by_server:
        raise session.error_for(response, "HEAD", "blob")
    size = _content_length(response.headers) if response.status == 200 else None
    # The size is still unknown if HEAD is not supported, if HEAD was redirected to a URL that is signed for GET
    # (moby/moby#50065), or if the response has no Content-Length.
    return size if size is not None else _get_blob_size(session, repository, blob, scopes, work)


def _get_blob_size(
    session: Session, repository: str, blob: Descriptor, scopes: tuple[Scope, ...], work: Work
) -> int | None:
    """Use a GET request to find the size of a blob in bytes. Return None if the registry does not have the blob.

    If the registry supports range requests, only the first byte is requested, and the size is taken from Content-Range.
    Otherwise the size is taken from Content-Length, or the bytes of the body are counted."""
    first = (("Range", "bytes=0-0"),) if blob.size != 0 else ()
    for headers in dict.fromkeys((first, ())):
        expect = (200, 206, 404, *NO_RANGE_STATUSES) if headers else (200, 404)
        where = _blob_path(repository, blob)
        with _request_blob(session, where, scopes, work, headers=headers, expect=expect) as stream:
            if stream.status == 404:
                return None
            if stream.status == 200:
                size = _content_length(stream.headers)
                return size if size is not None else _count_bytes(stream, blob)
            total = _RANGE_TOTAL.fullmatch(stream.headers.get("content-range") or "")
            if total is not None:
                return int(total[1])
    return None


def _count_bytes(stream: ResponseStream, blob: Descriptor) -> int:
    """Count the bytes in the response body. Stop as soon as the count exceeds the size in the descriptor `blob`."""
    buffer = memoryview(bytearray(_SKIP_BUFFER))
    count = 0
    while (blob.size is None or count <= blob.size) and (count_read := stream.readinto(buffer)):
        count += count_read
    return count


def _content_length(headers: Headers) -> int | None:
    """Return the value of the Content-Length header, in bytes, or None if it is missing or invalid."""
    text = headers.get("content-length") or ""
    return int(text) if text.isascii() and text.isdigit() else None
