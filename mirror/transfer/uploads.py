"""One blob into one repository: the attempts of an upload, and what they keep from one to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from mirror.errors import RemoteError, is_failed_lookup
from mirror.oci.descriptor import Descriptor
from mirror.store import BlobReader, Target, UploadSession
from mirror.util.cancellation import Work
from mirror.util.structs import replace


class BlobBody(Protocol):
    """Bytes that can be opened again: a source's, or a spool file's."""

    def open(self, offset: int, work: Work) -> BlobReader: ...


class BlobUpload:
    """An upload over its attempts, of which one runs at a time. sent: bytes of all attempts.

    An attempt owns the session while it runs; between attempts it is kept here if it can be gone on with."""

    def __init__(
        self,
        target: Target,
        repository: str,
        blob: Descriptor,
        body: BlobBody,
        moved: Callable[[int], None],
        before_write: Callable[[], None],
        session: UploadSession | None = None,
    ) -> None:
        """session: one that is open already, such as a mount that was refused leaves."""
        self._target = target
        self._repository = repository
        self._blob = blob
        self._body = body
        self._moved = moved
        self._before_write = before_write
        self._lock = threading.Lock()
        self._kept = session
        self._tries = 0
        self._given_up = False
        self._lookup_failed = False
        self.sent = 0

    def attempt(self, work: Work) -> None:
        """Upload. Raises as the target and the body do."""
        session = self._begin()
        with ExitStack() as stack:
            if self._tries > 1 and session is None and self._arrived(work):
                return  # the answer to the last attempt was lost, not the blob
            bodies: list[BlobReader] = []
            stack.callback(_close, bodies)
            if session is not None:
                stack.callback(self._settle, session)
            if session is None or not session.resumable:
                # The source speaks first: a session that waits for a slow source is dropped by some registries.
                bodies.append(self._body.open(0, work))
            if session is None:
                self._before_write()
                session = self._target.begin_upload(self._repository, self._blob, work)
                stack.callback(self._settle, session)

            def body(offset: int) -> BlobReader:
                return bodies.pop() if bodies and offset == 0 else self._body.open(offset, work)

            session.send(body, replace(work, progress=partial(self._note, work)))

    def _arrived(self, work: Work) -> bool:
        """Whether the target has the blob after a failed attempt. Where it cannot look that up, not even in the next
        attempt, the blob is uploaded again."""
        try:
            return self._target.has_blob(self._repository, self._blob, work)
        except RemoteError as error:
            if not is_failed_lookup(error) or (error.retryable and not self._lookup_failed):
                self._lookup_failed = True
                raise
            return False

    def _note(self, work: Work, count: int) -> None:
        self.sent += count
        self._moved(count)
        work.progress(count)

    def _begin(self) -> UploadSession | None:
        with self._lock:
            self._tries += 1
            session, self._kept = self._kept, None
            return session

    def _settle(self, session: UploadSession) -> None:
        """Close the session after an attempt, unless the next one can go on with it."""
        with self._lock:
            if session.resumable and not self._given_up:
                self._kept = session
                return
        session.__exit__(None, None, None)

    def end_attempts(self) -> UploadSession | None:
        """No further attempt will be made. -> what the caller has to close; a running attempt closes its own."""
        with self._lock:
            self._given_up = True
            session, self._kept = self._kept, None
            return session


def _close(bodies: list[BlobReader]) -> None:
    while bodies:
        bodies.pop().__exit__(None, None, None)
