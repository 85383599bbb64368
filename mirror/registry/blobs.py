"""Reading blobs: is it there, how big is it, and its bytes from an offset on."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from types import TracebackType

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.registry.auth.authorizer import Scope
from mirror.registry.session import Headers, Session, Stream
from mirror.util.cancellation import Work

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_TOTAL = re.compile(r"bytes (?:\d{1,19}-\d{1,19}|\*)/(\d{1,19})")
NO_RANGES = frozenset({400, 405, 412, 416, 501})  # what registries answer that do not give the rest of a blob
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
    """The bytes of `blob` from `offset` on. Raises Refused (size_mismatch) as soon as the answer's length tells.

    Where a registry does not give the rest of a blob, all of it is read and the first `offset` bytes are dropped: the
    caller proves the digest over what it had and what comes now."""
    what = f"{session.settings.host}/{repository}@{blob.digest}"
    stream = _rest(session, repository, blob, scopes, work, offset) if offset and blob.size is not None else None
    if stream is None:
        stream = _get(session, repository, blob, scopes, work)
    try:
        size = _whole_size(stream)
        if size is not None and blob.size is not None and size != blob.size:
            raise Refused(f"{what} is {size} bytes long, its descriptor says {blob.size}", code="size_mismatch")
        if stream.status == 200 and offset:
            _discard(stream, offset)
    except BaseException:
        stream.close()
        raise
    return BlobStream(stream, size)


def _get(
    session: Session,
    repository: str,
    blob: Descriptor,
    scopes: tuple[Scope, ...],
    work: Work,
    *,
    headers: Sequence[tuple[str, str]] = (),
    expect: Collection[int] = (200,),
) -> Stream:
    return session.stream(
        f"/v2/{repository}/blobs/{blob.digest}",
        work,
        kind="blob",
        scopes=scopes,
        headers=headers,
        expect=expect,
    )


def _rest(
    session: Session, repository: str, blob: Descriptor, scopes: tuple[Scope, ...], work: Work, offset: int
) -> Stream | None:
    """The answer to a request for the bytes from `offset` on: just those (206), or all (200).

    None: the request was refused, or answered with another range."""
    last = (blob.size or 0) - 1
    headers = (("Range", f"bytes={offset}-{last}"),)
    try:
        stream = _get(session, repository, blob, scopes, work, headers=headers, expect=(200, 206))
    except RemoteError as error:
        if error.status in NO_RANGES:
            return None
        raise
    match = _range_of(stream) if stream.status == 206 else None
    if stream.status == 200 or (match is not None and int(match[1]) == offset and _is_to_the_end(match)):
        return stream
    stream.close()
    return None


def _range_of(stream: Stream) -> re.Match[str] | None:
    return _CONTENT_RANGE.fullmatch(stream.headers.get("content-range") or "")


def _is_to_the_end(match: re.Match[str]) -> bool:
    return match[3] == "*" or int(match[2]) == int(match[3]) - 1


def _whole_size(stream: Stream) -> int | None:
    """Bytes of the whole blob, as the answer says; None where it does not."""
    if stream.status != 206:
        return _length(stream.headers)
    match = _range_of(stream)
    return int(match[3]) if match and match[3] != "*" else None


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
        expect = (200, 206, 404, *NO_RANGES) if headers else (200, 404)
        with _get(session, repository, blob, scopes, work, headers=headers, expect=expect) as stream:
            if stream.status == 404:
                return None
            if stream.status == 200:
                size = _length(stream.headers)
                return size if size is not None else _count(stream, blob)
            total = _TOTAL.fullmatch(stream.headers.get("content-range") or "")
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
