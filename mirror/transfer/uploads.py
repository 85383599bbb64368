"""Runs the attempts to upload one blob. If possible, an attempt resumes the upload session of the previous attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from mirror.errors import RemoteError, is_failed_lookup
from mirror.oci.descriptor import Descriptor
from mirror.output.progress import BlobProgress
from mirror.store import BlobReader, Target, UploadSession
from mirror.util.cancellation import Work


class BlobBody(Protocol):
    """The content of a blob to upload. It can be opened several times."""

    def open(self, offset: int, work: Work) -> BlobReader:
        """Open the blob for reading from byte `offset`."""
        ...


class BlobUpload:
    """The upload of one blob to one repository. Its attempts run one after the other.

    bytes_sent: the number of bytes sent in all attempts.

    A running attempt owns the upload session. Between attempts, this object owns the session if the next attempt can
    resume it."""

    def __init__(
        self,
        target: Target,
        repository: str,
        blob: Descriptor,
        body: BlobBody,
        progress: BlobProgress,
        before_write: Callable[[], None],
        session: UploadSession | None = None,
    ) -> None:
        """Create an upload of `blob` that has made no attempt yet. progress: the progress of the upload, for display.

        before_write: called before an upload session is opened.
        session: an open session to use, such as one that the registry opened instead of mounting the blob."""
        self._target = target
        self._repository = repository
        self._blob = blob
        self._body = body
        self._progress = progress
        self._before_write = before_write
        self._lock = threading.Lock()
        self._session = session  # between attempts
        self._attempts = 0
        self._ended = False
        self._lookup_failed = False
        self.bytes_sent = 0

    def attempt(self, work: Work) -> None:
        """Attempt to upload the blob once. Raises the errors that the target and the body raise."""
        session = self._start_attempt()
        with ExitStack() as stack:
            if self._attempts > 1 and session is None and self._has_arrived(work):
                return  # only the response to the last attempt was lost
            bodies: list[BlobReader] = []
            stack.callback(_close_readers, bodies)
            if session is not None:
                stack.callback(self._keep_or_close, session)
            if session is None or not session.resumable:
                # Read from the source first: some registries drop a session that waits for a slow source.
                bodies.append(self._body.open(0, work))
            if session is None:
                self._before_write()
                session = self._target.begin_upload(self._repository, self._blob, work)
                stack.callback(self._keep_or_close, session)

            def open_body(offset: int) -> BlobReader:
                """Return the reader that is already open at this offset, or open the blob."""
                self._progress.start_at(offset)
                return bodies.pop() if bodies and offset == 0 else self._body.open(offset, work)

            session.send(open_body, work.with_progress(self._count_sent))

    def _has_arrived(self, work: Work) -> bool:
        """After a failed attempt, return whether the target has received the blob anyway.

        If the first lookup fails with a retryable error, this error is raised. If a second lookup fails, this returns
        False, so that the blob is uploaded again: the target may be unable to look up blobs."""
        try:
            return self._target.has_blob(self._repository, self._blob, work)
        except RemoteError as error:
            if not is_failed_lookup(error) or (error.retryable and not self._lookup_failed):
                self._lookup_failed = True
                raise
            return False

    def _count_sent(self, count: int) -> None:
        """Add `count` to the number of bytes sent."""
        self.bytes_sent += count
        self._progress.add(count)

    def _start_attempt(self) -> UploadSession | None:
        """Count the attempt, and return the session that the previous attempt left open, if any."""
        with self._lock:
            self._attempts += 1
            session, self._session = self._session, None
            return session

    def _keep_or_close(self, session: UploadSession) -> None:
        """Keep the session if the next attempt can resume it; otherwise close it."""
        with self._lock:
            if session.resumable and not self._ended:
                self._session = session
                return
        session.__exit__(None, None, None)

    def end_attempts(self) -> UploadSession | None:
        """Allow no further attempts. If an idle upload session is left, return it; the caller must close it.

        A running attempt closes its own session."""
        with self._lock:
            self._ended = True
            session, self._session = self._session, None
            return session


def _close_readers(bodies: list[BlobReader]) -> None:
    """Close readers that were opened but not used."""
    while bodies:
        bodies.pop().__exit__(None, None, None)
