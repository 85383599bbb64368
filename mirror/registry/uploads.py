"""Uploading one blob: an upload session, and what a host has taught us about how it likes them.

Source: distribution-spec v1.1.1, "Pushing blobs". One streamed PUT is the fewest requests; a host that refuses
that gets a streamed PATCH and a PUT; a host that refuses large bodies gets chunks. A single blob whose upload broke
after many bytes is sent in chunks as well, unless the host takes none.
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
from mirror.oci.digest import Digest
from mirror.registry.auth.authorizer import Scope
from mirror.registry.blobs import blob_size
from mirror.registry.http.url_policy import Destination, with_query
from mirror.registry.session import Answer, Session
from mirror.registry.upload_body import Counted, Watched, held_back
from mirror.store import BlobReader
from mirror.util.cancellation import Stop, Work
from mirror.util.structs import Struct, field

CHUNK_AFTER = 64 << 20  # a blob whose upload broke after this many bytes is sent again in chunks
LARGEST_CHUNK = 32 << 20
SMALLEST_CHUNK = 4 << 20  # the most that one large host takes in a chunk (docs/compatibility.md)
DELETE_WITHIN = 2.0  # seconds for the DELETE of a session that is given up
_GONE = frozenset({200, 202, 204, 404})

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
# A one-request upload was not understood: these may mean that, and a streamed PATCH is worth a try.
_NOT_IN_ONE = {400, 404, 405, 411, 415, 501}

# A first chunk was not understood: the host takes none, or none of this size, and the blob is sent in one request.
_NO_CHUNKS = {400, 404, 405, 415, 416, 501}

_log = logging.getLogger("mirror.upload")


class UploadHabits(Struct):
    """What one host was found to take. Thread-safe: each write is atomic, and what a host refuses stays refused."""

    patch: bool = False  # a streamed PATCH and then a PUT, instead of one PUT
    chunk: int = 0  # bytes of a chunk; 0: large bodies are not refused
    unchunked: bool = False  # it takes no chunks
    broken: set[Digest] = field(default_factory=set)  # blobs whose upload broke after CHUNK_AFTER bytes


class Upload:
    """One upload session. Use with `with`: left uncommitted, it is DELETEd. Used by one thread at a time."""

    def __init__(
        self,
        session: Session,
        habits: UploadHabits,
        repository: str,
        blob: Descriptor,
        scopes: tuple[Scope, ...],
        opened: Answer,
    ) -> None:
        self._session = session
        self._habits = habits
        self._repository = repository
        self._blob = blob
        self._scopes = scopes
        self._answered = 0  # bytes that the registry has said it holds
        self._lost = False  # it cannot be gone on with
        self._put_off = False  # the registry was too busy for the body: the session as such still stands
        self._closed = False
        self._least = _minimum(opened)
        self.committed = False
        self._what = f"{session.settings.host}/{repository}@{blob.digest}"
        location = opened.headers.all("location")
        if len(location) != 1 or not location[0]:
            raise RemoteError(f"{self._what}: an upload was opened without saying where", retryable=True)
        self._where = session.trust.upload_location(location[0], opened.destination)

    @property
    def resumable(self) -> bool:
        """Whether `send` can go on from bytes that the registry already holds."""
        return (self._answered > 0 or self._put_off) and not self._lost and not self.committed

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        watched = Watched(body)
        if self._answered or self._in_chunks():
            self._send_chunks(watched, work, self._blob.size or 0)
        elif self._habits.patch:
            self._send_patch(watched, work)
        else:
            self._send_whole(watched, work)
        self.committed = True
        self._habits.broken.discard(self._blob.digest)

    def _in_chunks(self) -> bool:
        habits, size = self._habits, self._blob.size
        chunk = habits.chunk or (LARGEST_CHUNK if self._blob.digest in habits.broken else 0)
        return not habits.unchunked and size is not None and 0 < chunk < size

    # ---- in one request

    def _send_whole(self, body: Watched, work: Work) -> None:
        where = with_query(self._where, "digest", self._blob.digest)
        sent = Counted(work)
        try:
            answer = self._stream("PUT", where, body, sent, {200, 201, 202, 204})
        except RemoteError as error:
            raise self._learn(error, body, sent.bytes, whole=True) from error
        self._proven(answer, work)

    def _learn(
        self, error: RemoteError, body: Watched, sent: int, *, whole: bool = False, chunk: int = 0
    ) -> MirrorError:
        """What a failed upload says about the host; -> the error, retryable where another way is left to try.

        whole: it was sent in one request; chunk: or in chunks of so many bytes. Uploads beside this one may have
        learned the same in the meantime, so what counts is what was tried here."""
        if error is body.error:
            self._put_off = False
            return error
        again, self._put_off = self._put_off, whole and error.status in (429, 503)
        mixed = error.registry_code == "DIGEST_INVALID"  # so is what the session holds
        self._lost = self._lost or mixed or error.status in (404, 416) or (again and not self._put_off)
        if error.status == 413:
            return self._too_large(error, chunk)
        if error.retryable and sent >= CHUNK_AFTER:
            self._habits.broken.add(self._blob.digest)
        how = ""
        if chunk and not self._answered and error.status in _NO_CHUNKS and not mixed:
            self._habits.unchunked = self._lost = True
            how = "in one request"
        elif whole and not again and error.status in _NOT_IN_ONE and not mixed:
            self._habits.patch = True
            how = "with a PATCH"
        elif error.status in (404, 416) or (again and error.status == 400):
            how = "in a new session"
        if how:
            return self._again(error, how)
        if mixed:
            return Refused(
                f"{self._what}: the target says that other bytes arrived than were sent: {error.what}",
                hint="something between here and the target changes bytes",
                retryable=True,
            )
        return error

    def _too_large(self, error: RemoteError, chunk: int) -> MirrorError:
        """The error of a body that a proxy refuses for its size; retryable if smaller chunks are worth a try."""
        smaller = min(chunk // 2 or LARGEST_CHUNK, self._habits.chunk or LARGEST_CHUNK)
        while smaller >= (self._blob.size or 1):
            smaller //= 2
        if smaller >= SMALLEST_CHUNK and not self._habits.unchunked:
            self._habits.chunk = smaller
            return self._again(error, f"in chunks of {smaller >> 20} MiB")
        return RemoteError(
            f"{self._what}: a body of this size is refused: {error.what}",
            hint="raise the body limit of the proxy before the registry (nginx: client_max_body_size)",
            status=413,
        )

    def _again(self, error: RemoteError, how: str) -> MirrorError:
        text = f"{self._what}: trying again {how}"
        _log.info("upload_method", extra={"digest": self._blob.digest, "code": error.code, "text": text})
        return RemoteError(error.what, hint=error.hint, code=error.code, status=error.status, retryable=True)

    def _proven(self, answer: Answer, work: Work) -> None:
        said = answer.headers.all("docker-content-digest")
        if said and said[0] != self._blob.digest and said[0].startswith("sha256:"):
            raise Refused(f"{self._what} was stored as {said[0]}", code="target_lied")
        if answer.status != 201:
            # Committed, some say with another word; the blob itself is the proof.
            size = blob_size(self._session, self._repository, self._blob, self._scopes, work)
            if size is None or (self._blob.size is not None and size != self._blob.size):
                raise RemoteError(
                    f"{self._what}: the upload ended with {answer.status} and is not there", retryable=True
                )

    # ---- a streamed PATCH, then a PUT

    def _send_patch(self, body: Watched, work: Work) -> None:
        sent = Counted(work)
        try:
            answer = self._stream("PATCH", self._where, body, sent, {201, 202, 204})
            self._moved_to(answer)
            self._holds(answer, sent.bytes)
            self._commit(work)
        except RemoteError as error:
            raise self._learn(error, body, sent.bytes) from error

    def _commit(self, work: Work) -> None:
        answer = self._session.call(
            "PUT",
            with_query(self._where, "digest", self._blob.digest),
            work.once(),
            kind="blob",
            scopes=self._scopes,
            expect={200, 201, 202, 204},
        )
        self._proven(answer, work)

    # ---- chunks

    def _send_chunks(self, body: Watched, work: Work, size: int) -> None:
        if self._answered:
            self._resume(work, size)
        chunk = max(self._habits.chunk or LARGEST_CHUNK, self._least)
        try:
            with body(self._answered) as reader:
                while size - self._answered > chunk:
                    end = self._answered + chunk
                    answer = self._send_chunk("PATCH", self._where, reader, end, work=work, last=False)
                    self._moved_to(answer)
                    self._holds(answer, end)
                    self._answered = end
                # The last chunk goes with the closing PUT: one request less, and some want no empty one.
                where = with_query(self._where, "digest", self._blob.digest)
                answer = self._send_chunk("PUT", where, reader, size, work=work, last=True)
            self._proven(answer, work)
        except RemoteError as error:
            raise self._learn(error, body, 0, chunk=chunk) from error

    def _send_chunk(
        self, method: str, where: Destination, reader: BlobReader, end: int, *, work: Work, last: bool
    ) -> Answer:
        length = end - self._answered
        return self._session.upload(
            method,
            where,
            work,
            kind="blob",
            scopes=self._scopes,
            headers=(("Content-Range", f"{self._answered}-{end - 1}"), ("Content-Type", "application/octet-stream")),
            length=length,
            body=held_back(reader, Counted(work), length, to_the_end=last),
            expect={200, 201, 202, 204} if last else {201, 202, 204},
        )

    def _resume(self, work: Work, size: int) -> None:
        """Ask how far it got, be it the middle of a chunk, and go on from there; one that does not say is dead."""
        try:
            answer = self._session.call(
                "GET", self._where, work.once(), kind="upload", scopes=self._scopes, expect={200, 204}
            )
            self._moved_to(answer)
            self._answered = self._holds(answer, self._answered, size - 1)
        except RemoteError as error:
            # An answer that would come again: 404, 405, or the 400 of `crane registry serve`.
            self._lost = self._lost or not error.retryable
            raise RemoteError(error.what, code=error.code, status=error.status, retryable=True) from error

    # ---- common to all

    def _stream(
        self,
        method: str,
        where: Destination,
        body: Watched,
        sent: Counted,
        expect: set[int],
    ) -> Answer:
        with body(0) as reader:
            size = self._blob.size if self._blob.size is not None else reader.size
            chunks = held_back(reader, sent, size, to_the_end=True)
            if size == 0:
                # Nothing can be held back of nothing: prove it before the request is made.
                chunks = iter(tuple(chunks))
            return self._session.upload(
                method,
                where,
                sent.work,
                kind="blob",
                scopes=self._scopes,
                headers=(("Content-Type", "application/octet-stream"),),
                length=size,
                body=chunks,
                expect=expect,
            )

    def _moved_to(self, answer: Answer) -> None:
        location = answer.headers.all("location")
        if location and location[0]:
            self._where = self._session.trust.upload_location(location[0], answer.destination)

    def _holds(self, answer: Answer, wanted: int, most: int | None = None) -> int:
        """How many bytes the answer's Range says there are, `wanted` where it says nothing. Raises where that is fewer
        than `wanted`, or more than `most` (none: `wanted`); a registry that swallowed bytes is found out here."""
        match = _RANGE.fullmatch(answer.headers.get("range") or "")
        held = int(match[1]) + 1 if match and wanted else wanted
        if not wanted <= held <= max(wanted, most or 0):
            self._lost = True
            raise RemoteError(f"{self._what}: {wanted} bytes were sent, the registry has {held}", retryable=True)
        return held

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give it up, unless it was committed. The DELETE is sent also when the run was stopped, within a bound."""
        if self.committed or self._closed:
            return
        self._closed = True
        with _at_most(DELETE_WITHIN) as work:
            try:
                # Some registries want the right to delete for this. Scopes of its own, so that a refusal is not
                # taken for one of those that push.
                scopes = (Scope(self._repository, ("pull", "push", "delete")),)
                self._session.call("DELETE", self._where, work, kind="upload", scopes=scopes, expect=_GONE)
            except MirrorError as failure:
                # Registries throw forgotten sessions away by themselves; there is nothing more to do.
                _log.debug("%s: upload session not deleted: %s", self._what, failure)


def _minimum(answer: Answer) -> int:
    text = answer.headers.get("oci-chunk-min-length") or ""
    return min(int(text), 1 << 30) if text.isascii() and text.isdigit() else 0


@contextmanager
def _at_most(seconds: float) -> Iterator[Work]:
    """A Work of its own that is stopped after `seconds`."""
    stop = Stop()
    timer = threading.Timer(seconds, stop.request, args=("too late",))
    timer.start()
    try:
        yield Work(stop, retries=False, urgent=True)
    finally:
        timer.cancel()
        timer.join()
