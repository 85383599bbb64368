"""One blob into one repository: the attempts of an upload, and what they keep from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol

from mirror.limits import Work
from mirror.oci.descriptor import Descriptor
from mirror.store import BlobReader, Target, UploadSession


class Body(Protocol):
    """Bytes that can be opened again: a source's, or a spool file's."""

    def open(self, offset: int, work: Work) -> BlobReader: ...


class Sending:
    """An upload over its attempts. `attempt` is run by one thread at a time; `session` may outlive it.

    sent: bytes of all attempts."""

    def __init__(
        self,
        target: Target,
        repository: str,
        blob: Descriptor,
        body: Body,
        moved: Callable[[int], None],
        before_write: Callable[[], None],
    ) -> None:
        self._target = target
        self._repository = repository
        self._blob = blob
        self._body = body
        self._moved = moved
        self._before_write = before_write
        self._tries = 0
        self.sent = 0
        self.session: UploadSession | None = None

    def attempt(self, work: Work) -> None:
        """Upload. Raises as the target and the body do; a session that can be gone on with is kept for the next time."""
        self._tries += 1
        if self._tries > 1 and self.session is None and self._target.has_blob(self._repository, self._blob, work):
            return  # the answer to the last attempt was lost, not the blob
        with ExitStack() as stack:
            bodies: list[BlobReader] = []
            if self.session is None or not self.session.resumable:
                # The source speaks first: a session that waits for a slow source is dropped by some registries.
                first = self._body.open(0, work)
                stack.callback(_close_unused, bodies)
                bodies.append(first)
            session = self.session
            if session is None:
                self._before_write()
                session = self.session = self._target.begin_upload(self._repository, self._blob, work)
            stack.push(self._settle)

            def body(offset: int) -> BlobReader:
                return bodies.pop() if bodies and offset == 0 else self._body.open(offset, work)

            session.send(body, replace(work, progress=self._progress(work)))

    def _progress(self, work: Work) -> Callable[[int], None]:
        def note(count: int) -> None:
            self.sent += count
            self._moved(count)
            work.progress(count)

        return note

    def _settle(self, *_: object) -> bool:
        """Close the session after an attempt, unless the next one can go on with it."""
        session = self.session
        if session is not None and not (session.resumable and not session.committed):
            self.session = None
            session.__exit__(None, None, None)
        return False


def _close_unused(bodies: list[BlobReader]) -> None:
    while bodies:
        bodies.pop().__exit__(None, None, None)
