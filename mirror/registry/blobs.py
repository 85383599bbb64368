"""Reading blobs: is it there, how big is it, and its bytes from an offset on."""

from __future__ import annotations

import re
from types import TracebackType

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.limits import Work
from mirror.oci.descriptor import Descriptor
from mirror.registry.scopes import Scope
from mirror.registry.session import Headers, Session, Stream

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_TOTAL = re.compile(r"bytes (?:\d{1,19}-\d{1,19}|\*)/(\d{1,19})")
_DISCARD = 1 << 18  # bytes read at a time where a Range was ignored


class BlobStream:
    """The body of a blob GET. size: of the whole blob, as the answer says; None where it does not."""

    def __init__(self, stream: Stream, size: int | None) -> None:
        self._stream = stream
        self.size = size

    def readinto(self, buffer: memoryview) -> int:
        return self._stream.readinto(buffer)

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, trace)


def open_blob(
    session: Session, repository: str, blob: Descriptor, scopes: tuple[Scope, ...], work: Work, *, offset: int = 0
) -> BlobStream:
    """The bytes of `blob` from `offset` on. Raises Refused (size_mismatch) as soon as the answer's length tells."""
    what = f"{session.settings.host}/{repository}@{blob.digest}"
    ranged = (("Range", f"bytes={offset}-{blob.size - 1}"),) if offset and blob.size is not None else ()
    stream = session.stream(
        f"/v2/{repository}/blobs/{blob.digest}",
        work,
        kind="blob",
        scopes=scopes,
        headers=ranged,
        expect={200, 206} if ranged else {200},
    )
    try:
        if stream.status == 206:
            size = _ranged_size(stream.headers.get("content-range") or "", offset, what)
        else:
            size = _length(stream.headers)
        if size is not None and blob.size is not None and size != blob.size:
            raise Refused(f"{what} is {size} bytes long, its descriptor says {blob.size}", code="size_mismatch")
        if stream.status == 200 and offset:
            # Range ignored: the beginning comes once more; the digest at the end proves that it still fits.
            _discard(stream, offset)
    except BaseException:
        stream.close()
        raise
    return BlobStream(stream, size)


def _ranged_size(content_range: str, offset: int, what: str) -> int | None:
    match = _CONTENT_RANGE.fullmatch(content_range.strip())
    if match is None or int(match[1]) != offset or (match[3] != "*" and int(match[2]) != int(match[3]) - 1):
        raise RemoteError(f"{what}: asked for the bytes from {offset} on, got another range", retryable=True)
    return None if match[3] == "*" else int(match[3])


def _discard(stream: Stream, count: int) -> None:
    buffer = memoryview(bytearray(min(_DISCARD, count)))
    while count:
        got = stream.readinto(buffer[: min(len(buffer), count)])
        if not got:
            raise NetworkError("the blob ended before the place to go on from", code="truncated")
        count -= got


def blob_size(session: Session, repository: str, blob: Descriptor, scopes: tuple[Scope, ...], work: Work) -> int | None:
    """How many bytes the registry holds as `blob`; None: it does not hold it.

    One HEAD; where its answer does not give the size, a GET as well. Raises as the session."""
    answer = session.call(
        "HEAD",
        f"/v2/{repository}/blobs/{blob.digest}",
        work,
        kind="blob",
        scopes=scopes,
        expect={200, 403, 404, 405, 501},
    )
    if answer.status == 404:
        return None
    if answer.status == 403 and not answer.destination.server_named:
        raise session.failure(answer, "HEAD", "blob")
    size = _length(answer.headers) if answer.status == 200 else None
    # No HEAD here, one that was redirected to a URL signed for GET (moby/moby#50065), or no Content-Length.
    return size if size is not None else _size_by_get(session, repository, blob, scopes, work)


def _size_by_get(
    session: Session, repository: str, blob: Descriptor, scopes: tuple[Scope, ...], work: Work
) -> int | None:
    """Ask for the first byte: Content-Range has the size of the whole. Where it has not, read the blob and count."""
    first = (("Range", "bytes=0-0"),) if blob.size != 0 else ()
    for headers in dict.fromkeys((first, ())):
        with session.stream(
            f"/v2/{repository}/blobs/{blob.digest}",
            work,
            kind="blob",
            scopes=scopes,
            headers=headers,
            expect={200, 206, 404, 416} if headers else {200, 404},
        ) as stream:
            if stream.status == 404:
                return None
            if stream.status == 200:
                size = _length(stream.headers)
                return size if size is not None else _count(stream, blob)
            total = _TOTAL.fullmatch((stream.headers.get("content-range") or "").strip())
            if total is not None:
                return int(total[1])
    return None


def _count(stream: Stream, blob: Descriptor) -> int:
    """Bytes of the body; where there are more than the blob should have, at least one more than that."""
    buffer = memoryview(bytearray(_DISCARD))
    count = 0
    while (blob.size is None or count <= blob.size) and (got := stream.readinto(buffer)):
        count += got
    return count


def _length(headers: Headers) -> int | None:
    text = headers.get("content-length") or ""
    return int(text) if text.isascii() and text.isdigit() else None
