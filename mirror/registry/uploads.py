"""Uploads one blob through an upload session, and remembers which methods a host accepts.

Source: distribution-spec v1.1.1, "Pushing blobs". A single streamed PUT needs the fewest requests. If the host rejects
it, the blob is sent with a streamed PATCH and an empty PUT. If the host rejects large bodies, the blob is sent in
chunks. A blob whose upload fails after many bytes is also sent in chunks, unless the host rejects chunks.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.registry.auth.authorizer import Scope
from mirror.registry.blobs import blob_size
from mirror.registry.http.url_policy import Destination, with_query
from mirror.registry.session import Response, Session
from mirror.registry.upload_body import ByteCounter, TrackedBody, hold_back_end
from mirror.registry.upload_capabilities import UploadCapabilities
from mirror.store import BlobReader
from mirror.util.cancellation import Stop, Work

CHUNK_AFTER = 64 << 20  # bytes; an upload that fails after this many is repeated in chunks
MAX_CHUNK = 32 << 20  # bytes
MIN_CHUNK = 4 << 20  # bytes; ghcr.io rejects larger chunks: https://github.com/oras-project/rust-oci-client/pull/37
DELETE_TIMEOUT = 2.0  # seconds; the time limit for deleting an uncommitted session
_DELETED = frozenset({200, 202, 204, 404})
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
# Statuses that may mean that the host does not support an upload in one PUT; a streamed PATCH is tried next.
_PUT_REJECTED = {400, 404, 405, 411, 415, 501}
# Statuses after a first chunk that may mean that the host does not support chunks; a single request is tried next.
_CHUNK_REJECTED = {400, 404, 405, 415, 416, 501}

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
            raise RemoteError(f"{self._what}: the response to the POST has no Location header", retryable=True)
        self._location = session.url_policy.check_upload_location(locations[0], response.destination)

    @property
    def resumable(self) -> bool:
        """Whether `send` can continue after the bytes that the registry already has."""
        return (self._acknowledged > 0 or self._was_busy) and not self._is_lost and not self.committed

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Upload the blob with a method that the host accepts, and commit it. `body` opens the blob at an offset."""
        tracked = TrackedBody(body)
        if self._acknowledged or self._uses_chunks():
            self._send_chunks(tracked, work, self._blob.size or 0)
        elif self._capabilities.needs_patch:
            self._send_patch(tracked, work)
        else:
            self._send_whole(tracked, work)
        self.committed = True
        self._capabilities.broken_blobs.discard(self._blob.digest)

    def _uses_chunks(self) -> bool:
        """Return whether to send the blob in chunks."""
        capabilities, size = self._capabilities, self._blob.size
        chunk = capabilities.chunk_size or (MAX_CHUNK if self._blob.digest in capabilities.broken_blobs else 0)
        return not capabilities.rejects_chunks and size is not None and 0 < chunk < size

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
        """Record what a failed upload shows about the host, and return the error. The error is retryable if another
        method can be tried.

        `sent` is the number of bytes sent, and `chunk` the chunk size in bytes, or 0 without chunks. `whole` is true
        after a single PUT. The capabilities do not show this upload's method: other uploads may have changed them."""
        if error is body.error:
            self._was_busy = False
            return error
        was_busy, self._was_busy = self._was_busy, whole and error.status in (429, 503)
        is_mixed = error.registry_code == "DIGEST_INVALID"  # the session has wrong content and cannot be resumed
        self._is_lost = self._is_lost or is_mixed or error.status in (404, 416) or (was_busy and not self._was_busy)
        if error.status == 413:
            return self._handle_too_large(error, chunk)
        if error.retryable and sent >= CHUNK_AFTER:
            self._capabilities.broken_blobs.add(self._blob.digest)
        method = ""
        if chunk and not self._acknowledged and error.status in _CHUNK_REJECTED and not is_mixed:
            self._capabilities.rejects_chunks = self._is_lost = True
            method = "in one request"
        elif whole and not was_busy and error.status in _PUT_REJECTED and not is_mixed:
            self._capabilities.needs_patch = True
            method = "with a PATCH"
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
        """Return the error for a request body that was rejected as too large (413). It is retryable if smaller chunks
        can be tried."""
        chunk_size = min(chunk // 2 or MAX_CHUNK, self._capabilities.chunk_size or MAX_CHUNK)
        while chunk_size >= (self._blob.size or 1):
            chunk_size //= 2
        if chunk_size >= MIN_CHUNK and not self._capabilities.rejects_chunks:
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
        """Check that the registry has stored the blob. If the response is not a 201, send a HEAD to find out."""
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

    def _send_chunks(self, body: TrackedBody, work: Work, size: int) -> None:
        """Send the blob in chunks, starting with the first byte that the registry has not acknowledged."""
        if self._acknowledged:
            self._request_offset(work, size)
        chunk = max(self._capabilities.chunk_size or MAX_CHUNK, self._min_chunk)
        try:
            with body(self._acknowledged) as reader:
                while size - self._acknowledged > chunk:
                    end = self._acknowledged + chunk
                    response = self._send_chunk("PATCH", self._location, reader, end, work=work, last=False)
                    self._update_location(response)
                    self._received_bytes(response, end)
                    self._acknowledged = end
                # The last chunk is the body of the final PUT. This saves a request, and some hosts reject an empty PUT.
                destination = with_query(self._location, "digest", self._blob.digest)
                response = self._send_chunk("PUT", destination, reader, size, work=work, last=True)
            self._check_committed(response, work)
        except RemoteError as error:
            raise self._handle_failure(error, body, 0, chunk=chunk) from error

    def _send_chunk(
        self, method: str, destination: Destination, reader: BlobReader, end: int, *, work: Work, last: bool
    ) -> Response:
        """Send one chunk, which ends before offset `end`. If `last` is true, the request also commits the blob."""
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
            expect={200, 201, 202, 204} if last else {201, 202, 204},
        )

    def _request_offset(self, work: Work, size: int) -> None:
        """Ask the registry how many bytes it has, so that the upload can continue after them, even within a chunk.

        Raises a retryable RemoteError if the request fails. After a permanent error, a new session is needed."""
        try:
            response = self._session.call(
                "GET", self._location, work.without_retries(), kind="upload", scopes=self._scopes, expect={200, 204}
            )
            self._update_location(response)
            self._acknowledged = self._received_bytes(response, self._acknowledged, size - 1)
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
        """Use the Location header of a response, if it has one, for the next request."""
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
        if self.committed or self._closed:
            return
        self._closed = True
        with _limited_work(DELETE_TIMEOUT) as work:
            try:
                # Some registries require the action `delete`. It is a separate set of scopes, so that a refusal does
                # not affect pushes.
                scopes = (Scope(self._repository, ("pull", "push", "delete")),)
                self._session.call("DELETE", self._location, work, kind="upload", scopes=scopes, expect=_DELETED)
            except MirrorError as failure:
                # This is not an error, because registries remove unused sessions themselves.
                _log.debug("%s: upload session not deleted: %s", self._what, failure)


def _min_chunk_length(response: Response) -> int:
    """Return the minimum chunk size in bytes that the registry requires, or 0 if it requires none."""
    text = response.headers.get("oci-chunk-min-length") or ""
    return min(int(text), 1 << 30) if text.isascii() and text.isdigit() else 0


@contextmanager
def _limited_work(seconds: float) -> Iterator[Work]:
    """Return a context manager that yields a Work that is stopped after `seconds`, but not when the run is stopped."""
    stop = Stop()
    timer = threading.Timer(seconds, stop.request, args=("time limit",))
    timer.start()
    try:
        yield Work(stop, retries=False, urgent=True)
    finally:
        timer.cancel()
        timer.join()
