"""Uploads one blob through an upload session, and remembers which methods a host accepts.

Source: distribution-spec v1.1.1, "Pushing blobs". A single streamed PUT needs the fewest requests. If the host rejects
it, the blob is sent with a streamed PATCH and an empty PUT. A large blob is sent in chunks, unless the host rejects
chunks, so that a broken connection loses at most one chunk. If the host rejects large bodies, smaller blobs are also
sent in chunks.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from types import TracebackType

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.registry.auth.authorizer import Scope
from mirror.registry.blobs import blob_size
from mirror.registry.http.url_policy import Destination, with_query
from mirror.registry.session import Response, Session
from mirror.registry.upload_body import ByteCounter, TrackedBody, hold_back_end
from mirror.registry.upload_capabilities import UploadCapabilities
from mirror.registry.upload_deletion import delete_upload
from mirror.store import BlobReader
from mirror.util.cancellation import Work

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
# Statuses that may mean that the host does not support an upload in one PUT; a streamed PATCH is tried next.
_PUT_REJECTED = {400, 404, 405, 411, 415, 501}
# Statuses after a first chunk that may mean that the host does not support chunks; a single request is tried next.
_CHUNK_REJECTED = {400, 404, 405, 415, 416, 501}
# Statuses after the last chunk that may mean that the host does not accept a PUT with a body.
_LAST_CHUNK_REJECTED = {405, 411, 415, 501}

_log = logging.getLogger("mirror.upload")


class RegistryUpload:
    """An upload session for one blob. When its `with` block exits, the session is deleted unless it was committed.

    Not thread-safe."""

    def __init__(
        self,
        session: Session,
        capabilities: UploadCapabilities,
        repository: str,
        blob: Descriptor,
        scopes: tuple[Scope, ...],
        response: Response,
    ) -> None:
        self._session = session
        self._capabilities = capabilities
        self._repository = repository
        self._blob = blob
        self._scopes = scopes
        self._acknowledged = 0  # bytes that the registry has acknowledged
        self._is_lost = False  # the session cannot be resumed
        self._was_busy = False  # the registry rejected the body with 429 or 503; the session is still valid
        self._closed = False
        self._min_chunk = _min_chunk_length(response)
        self.committed = False
        self._what = f"{session.settings.host}/{repository}@{blob.digest}"
        locations = response.headers.get_all("location")
        if len(locations) != 1 or not locations[0]:
            raise RemoteError(f"{self._what}: the response to the POST lacks a single Location header", retryable=True)
        self._location = session.url_policy.check_upload_location(locations[0], response.destination)

    @property
    def resumable(self) -> bool:
        """Whether `send` can continue after the bytes that the registry already has."""
        return (self._acknowledged > 0 or self._was_busy) and not self._is_lost and not self.committed

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Upload the blob with a method that the host accepts, and commit it. `body` opens the blob at an offset."""
        tracked = TrackedBody(body)
        chunk = self._capabilities.first_chunk(self._blob)
        if self._acknowledged or chunk:
            self._send_chunks(tracked, work, self._blob.size or 0, chunk)
        elif self._capabilities.needs_patch:
            self._send_patch(tracked, work)
        else:
            self._send_whole(tracked, work)
        self.committed = True
        self._capabilities.lost_sessions.pop(self._blob.digest, None)

    # ---- in one request

    def _send_whole(self, body: TrackedBody, work: Work) -> None:
        """Send the blob in one PUT."""
        destination = with_query(self._location, "digest", self._blob.digest)
        counter = ByteCounter(work)
        try:
            response = self._send_body("PUT", destination, body, counter, {200, 201, 202, 204})
        except RemoteError as error:
            raise self._handle_failure(error, body, counter.bytes, whole=True) from error
        self._check_committed(response, work)

    def _handle_failure(
        self, error: RemoteError, body: TrackedBody, sent: int, *, whole: bool = False, chunk: int = 0
    ) -> MirrorError:
        """Record which methods the host rejects, and return the error of a failed upload.

        The error is retryable if another method can be tried. `sent` is the number of bytes sent, and `chunk` the chunk
        size in bytes, or 0 without chunks. `whole` is true after a single PUT. The capabilities do not show which
        method this upload used, because other uploads may have changed them."""
        if error is body.error:
            self._was_busy = False
            return error
        was_busy, self._was_busy = self._was_busy, whole and error.status in (429, 503)
        is_mixed = error.registry_code == "DIGEST_INVALID"  # the session contains wrong bytes and cannot be resumed
        self._is_lost = self._is_lost or is_mixed or error.status in (404, 416) or (was_busy and not self._was_busy)
        if error.status == 413:
            return self._handle_too_large(error, chunk)
        if error.retryable and not chunk:
            self._capabilities.record_broken_upload(self._blob.digest, sent)
        elif chunk and self._is_lost and self._acknowledged:
            self._capabilities.record_lost_session(self._blob.digest, has_wrong_bytes=is_mixed)
        method = ""
        if chunk and not self._acknowledged and error.status in _CHUNK_REJECTED and not is_mixed:
            self._capabilities.rejects_chunks = self._is_lost = True
            method = "in one request"
        elif whole and not was_busy and error.status in _PUT_REJECTED and not is_mixed:
            self._capabilities.needs_patch = True
            method = "with a PATCH"
        elif self._acknowledged and error.status in _LAST_CHUNK_REJECTED and not self._capabilities.needs_patch:
            self._capabilities.needs_patch = True
            method = "with a PATCH for the last chunk"
        elif error.status in (404, 416) or (was_busy and error.status == 400):
            method = "in a new session"
        if method:
            return self._retry_error(error, method)
        if is_mixed:
            return Refused(
                f"{self._what}: the target reports that the received bytes do not match the digest: {error.what}",
                hint="a proxy in front of the target may be modifying the data",
                retryable=True,
            )
        return error

    def _handle_too_large(self, error: RemoteError, chunk: int) -> MirrorError:
        """Return the error for a request body that was rejected as too large (413).

        The error is retryable if smaller chunks can be tried."""
        sizes = self._capabilities.sizes
        chunk_size = min(chunk // 2 or sizes.first, self._capabilities.chunk_size or sizes.first)
        while chunk_size >= (self._blob.size or 1):
            chunk_size //= 2
        if chunk_size >= sizes.smallest and not self._capabilities.rejects_chunks:
            self._capabilities.chunk_size = chunk_size
            return self._retry_error(error, f"in chunks of {chunk_size >> 20} MiB")
        return RemoteError(
            f"{self._what}: the target rejects a body of this size: {error.what}",
            hint="raise the body limit of the proxy in front of the registry (nginx: client_max_body_size)",
            status=413,
        )

    def _retry_error(self, error: RemoteError, method: str) -> MirrorError:
        """Log the method that is tried next, and return a retryable copy of `error`."""
        text = f"{self._what}: retrying the upload {method}"
        _log.info("upload_method", extra={"digest": self._blob.digest, "code": error.code, "text": text})
        return RemoteError(error.what, hint=error.hint, code=error.code, status=error.status, retryable=True)

    def _check_committed(self, response: Response, work: Work) -> None:
        """Check that the registry has stored the blob. If the response is not a 201, send a HEAD request to verify."""
        reported = response.headers.get_all("docker-content-digest")
        if reported and reported[0] != self._blob.digest and reported[0].startswith("sha256:"):
            raise Refused(f"{self._what}: the target stored {reported[0]} instead", code="target_lied")
        if response.status != 201:
            # Some registries confirm an upload with a different status, so check that the blob exists.
            size = blob_size(self._session, self._repository, self._blob, self._scopes, work)
            if size is None or (self._blob.size is not None and size != self._blob.size):
                raise RemoteError(
                    f"{self._what}: the target responded to the upload with {response.status}, but has no such blob",
                    retryable=True,
                )

    # ---- a streamed PATCH, then a PUT

    def _send_patch(self, body: TrackedBody, work: Work) -> None:
        """Send the blob in one PATCH, and commit it with a PUT."""
        counter = ByteCounter(work)
        try:
            response = self._send_body("PATCH", self._location, body, counter, {201, 202, 204})
            self._update_location(response)
            self._received_bytes(response, counter.bytes)
            self._commit(work)
        except RemoteError as error:
            raise self._handle_failure(error, body, counter.bytes) from error

    def _commit(self, work: Work) -> None:
        """Commit the blob with a PUT without a body, after all its bytes have been sent."""
        response = self._session.call(
            "PUT",
            with_query(self._location, "digest", self._blob.digest),
            work.without_retries(),
            kind="blob",
            scopes=self._scopes,
            expect={200, 201, 202, 204},
        )
        self._check_committed(response, work)

    # ---- chunks

    def _send_chunks(self, body: TrackedBody, work: Work, size: int, chunk: int) -> None:
        """Send the blob in chunks, starting with the first byte that the registry has not acknowledged.

        chunk: the size of the first chunk, or 0 for the usual size. Later chunks may be larger."""
        if self._acknowledged:
            self._request_offset(work, size)
        capabilities = self._capabilities
        chunk = max(chunk or capabilities.chunk_size or capabilities.sizes.first, self._min_chunk)
        clock = capabilities.clock
        try:
            with body(self._acknowledged) as reader:
                while size - self._acknowledged > chunk:
                    started = clock.now()
                    self._send_chunk(reader, self._acknowledged + chunk, work)
                    chunk = capabilities.next_chunk(chunk, clock.now() - started)
                self._send_last_chunk(reader, size, work)
        except RemoteError as error:
            raise self._handle_failure(error, body, 0, chunk=chunk) from error

    def _send_chunk(self, reader: BlobReader, end: int, work: Work, *, last: bool = False) -> None:
        """Send the chunk that ends before offset `end` with a PATCH. last: whether the blob also ends there."""
        response = self._send_range("PATCH", self._location, reader, end, work=work, last=last)
        self._update_location(response)
        self._received_bytes(response, end)
        self._acknowledged = end

    def _send_last_chunk(self, reader: BlobReader, size: int, work: Work) -> None:
        """Send the last chunk of a blob of `size` bytes, and commit the blob.

        The chunk is the body of the final PUT. This saves a request, and some hosts reject an empty PUT. A host that
        rejects a PUT with a body gets a PATCH and an empty PUT."""
        if self._capabilities.needs_patch or self._acknowledged == size:
            if self._acknowledged < size:
                self._send_chunk(reader, size, work, last=True)
            self._commit(work)
            return
        destination = with_query(self._location, "digest", self._blob.digest)
        self._check_committed(self._send_range("PUT", destination, reader, size, work=work, last=True), work)

    def _send_range(
        self, method: str, destination: Destination, reader: BlobReader, end: int, *, work: Work, last: bool
    ) -> Response:
        """Send the bytes before offset `end` in one request. last: whether `end` is the end of the blob."""
        length = end - self._acknowledged
        return self._session.upload(
            method,
            destination,
            work,
            kind="blob",
            scopes=self._scopes,
            headers=(
                ("Content-Range", f"{self._acknowledged}-{end - 1}"),
                ("Content-Type", "application/octet-stream"),
            ),
            length=length,
            body=hold_back_end(reader, ByteCounter(work), length, must_end=last),
            expect={201, 202, 204} if method == "PATCH" else {200, 201, 202, 204},
        )

    def _request_offset(self, work: Work, size: int) -> None:
        """Ask the registry how many bytes it has, so that the upload can continue after them, even within a chunk.

        Raises a retryable RemoteError if the request fails. After a permanent error, a new session is needed."""
        try:
            response = self._session.call(
                "GET", self._location, work.without_retries(), kind="upload", scopes=self._scopes, expect={200, 204}
            )
            self._update_location(response)
            self._acknowledged = self._received_bytes(response, self._acknowledged, size)
        except RemoteError as error:
            # A permanent error: 404, 405, or the 400 of `crane registry serve`.
            self._is_lost = self._is_lost or not error.retryable
            raise RemoteError(error.what, code=error.code, status=error.status, retryable=True) from error

    # ---- common to all methods

    def _send_body(
        self,
        method: str,
        destination: Destination,
        body: TrackedBody,
        counter: ByteCounter,
        expect: set[int],
    ) -> Response:
        """Send the whole blob in the body of one request."""
        with body(0) as reader:
            size = self._blob.size if self._blob.size is not None else reader.size
            chunks = hold_back_end(reader, counter, size, must_end=True)
            if size == 0:
                # An empty blob has no last bytes to hold back, so verify it before the request.
                chunks = iter(tuple(chunks))
            return self._session.upload(
                method,
                destination,
                counter.work,
                kind="blob",
                scopes=self._scopes,
                headers=(("Content-Type", "application/octet-stream"),),
                length=size,
                body=chunks,
                expect=expect,
            )

    def _update_location(self, response: Response) -> None:
        """Send the next request to the URL in the Location header of a response, if the response has one."""
        locations = response.headers.get_all("location")
        if locations and locations[0]:
            self._location = self._session.url_policy.check_upload_location(locations[0], response.destination)

    def _received_bytes(self, response: Response, expected: int, limit: int | None = None) -> int:
        """Return the number of bytes that the registry has, according to the Range header of a response.

        Without that header, `expected` is returned. Raises RemoteError if the number is less than `expected`, or
        greater than `limit` (or `expected` if `limit` is None)."""
        match = _RANGE.fullmatch(response.headers.get("range") or "")
        received = int(match[1]) + 1 if match and expected else expected
        if not expected <= received <= max(expected, limit or 0):
            self._is_lost = True
            text = f"{self._what}: {expected} bytes were sent, but the registry has {received}"
            raise RemoteError(text, retryable=True)
        return received

    def __enter__(self) -> RegistryUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete the session unless the blob was committed. Takes at most DELETE_TIMEOUT, even after a stop request."""
        if not self.committed and not self._closed:
            self._closed = True
            delete_upload(self._session, self._repository, self._location, self._what)


def _min_chunk_length(response: Response) -> int:
    """Return the minimum chunk size in bytes that the registry requires, or 0 if it requires none."""
    text = response.headers.get("oci-chunk-min-length") or ""
    return min(int(text), 1 << 30) if text.isascii() and text.isdigit() else 0
