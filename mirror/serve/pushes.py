"""The writing half of a registry over a store: upload sessions, mounts, manifests. Source: distribution-spec v1.1.1.

A manifest that is deleted is removed from its repository, and its file with it unless another repository has it.
A blob that comes in one request goes straight into the store; one that comes in pieces is collected in a file that has
no name, so that nothing is left of it when this process ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.layout.directory import InUse, LayoutStore
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest, Hasher
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.reference import is_path, is_tag
from mirror.serve.messages import Body, Headers, Problem, Request, Response
from mirror.store import BlobReader, Mount
from mirror.util.cancellation import Work
from mirror.util.file_reader import FileReader
from mirror.util.files import local_error

MOST_SESSIONS = 200  # each has a file open
MOST_MANIFEST = 4 << 20  # bytes
_PIECE = 256 << 10  # bytes
_LOOK_EVERY = 0.5  # seconds between two looks at a stop while another request changes manifests
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,19})-(\d{1,19})(?:/.*)?")


class Pushes:
    """Any thread; close it. scratch: a directory on the store's disk."""

    def __init__(self, store: LayoutStore, work: Work, scratch: Path) -> None:
        self._store = store
        self._work = work
        self._scratch = scratch
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._pushed: set[str] = set()
        self._deleted: set[tuple[str, str]] = set()  # (repository, digest) of manifests that other repositories have
        self._changed = threading.Condition()
        self._putting = 0  # requests that put a manifest; -1: one that deletes

    def close(self) -> None:
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.close()

    def has(self, repository: str) -> bool:
        """Whether anything was pushed there since we began: a repository may have blobs before it has a tag."""
        return repository in self._pushed

    def has_deleted(self, repository: str, digest: str) -> bool:
        """Whether a manifest that other repositories have was deleted from this one since we began."""
        return (repository, digest) in self._deleted

    def answer(self, request: Request, repository: str, reference: str = "") -> Response:
        """Raises Problem, NetworkError, and what the store raises."""
        if "/manifests/" in request.path:
            return (self._put_manifest if request.method == "PUT" else self._delete)(request, repository, reference)
        if request.method == "POST":
            return self._begin(request, repository)
        session = self._taken(repository, reference)
        kept = False
        try:
            if request.method == "DELETE":
                return Response(204)
            if request.method == "PUT":
                _in_order(request, session, repository, reference)
                self._commit(request, repository, session)
                return _created(repository, _asked(request))
            if request.method == "PATCH":
                _in_order(request, session, repository, reference)
                session.append(request.body)
            kept = True
            return _progress(204 if request.method in ("GET", "HEAD") else 202, repository, reference, session)
        except NetworkError:
            kept = True  # what came before the cut can be gone on with
            raise
        except Problem as problem:
            kept = problem.status == 416
            raise
        finally:
            self._give_back(reference, session if kept else None)
            if not kept:
                session.close()

    # ---- sessions

    def _begin(self, request: Request, repository: str) -> Response:
        mount = request.value("mount")
        if mount is not None and self._mounted(request, repository, _digest(mount)):
            return _created(repository, _digest(mount))
        session = _Session(self._scratch)
        if mount is None and request.value("digest") is not None:
            try:
                self._commit(request, repository, session)
            finally:
                session.close()
            return _created(repository, _asked(request))
        name = str(uuid.uuid4())
        with self._lock:
            self._sessions[name] = session
            full = len(self._sessions) > MOST_SESSIONS
            oldest = self._sessions.popitem(last=False)[1] if full else None
        if oldest is not None:
            oldest.close()
        return _progress(202, repository, name, session)

    def _mounted(self, request: Request, repository: str, digest: Digest) -> bool:
        """Without `from`, from wherever it is."""
        sibling = request.value("from")
        if sibling is not None and not (is_path(sibling) and self._is_known(sibling)):
            return False
        if self._store.mount_blob(repository, Descriptor(digest, None), sibling or "", self._work) is not Mount.MOUNTED:
            return False
        self._pushed.add(repository)
        return True

    def _is_known(self, repository: str) -> bool:
        return self.has(repository) or repository in self._store.repositories(repository, self._work)

    def _taken(self, repository: str, name: str) -> _Session:
        """A session for this request alone: two at once would mix their bytes."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is None:
            raise Problem(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload, or another request is at it")
        return session

    def _give_back(self, name: str, session: _Session | None) -> None:
        if session is not None:
            with self._lock:
                self._sessions[name] = session

    def _commit(self, request: Request, repository: str, session: _Session) -> None:
        digest = _asked(request)
        if session.size:
            session.append(request.body)
            if session.digest(digest.algorithm) != digest:
                raise Problem(400, "DIGEST_INVALID", f"what came does not hash to {digest}")
            blob, body = Descriptor(digest, session.size), session.open()
        else:
            blob, body = Descriptor(digest, request.body.length), _Incoming(request.body, digest)
        try:
            with self._store.begin_upload(repository, blob, self._work) as upload:
                upload.send(lambda offset: body, self._work)
        except Refused as error:
            if error.code != "digest_mismatch":
                raise
            raise Problem(400, "DIGEST_INVALID", error.what) from error
        self._pushed.add(repository)

    # ---- manifests

    def _put_manifest(self, request: Request, repository: str, reference: str) -> Response:
        if ":" not in reference and not is_tag(reference):
            raise Problem(400, "TAG_INVALID", "that is no tag")
        expected = _digest(reference) if ":" in reference else None
        try:
            manifest = parse_manifest(
                _all_of(request.body), request.header("Content-Type") or "", expected=expected, what="the manifest"
            )
            with self._changing(deletes=False):
                self._store.put_manifest(repository, reference, manifest, self._work)
                self._undelete(repository, manifest)
        except NetworkError:
            raise  # the request was cut
        except (Refused, RemoteError) as error:
            raise _refusal(error) from error
        self._pushed.add(repository)
        headers: Headers = (
            ("Location", f"/v2/{repository}/manifests/{manifest.digest}"),
            ("Docker-Content-Digest", manifest.digest),
        )
        if manifest.subject is not None:
            headers = (*headers, ("OCI-Subject", manifest.subject.digest))
        return Response(201, headers)

    def _delete(self, request: Request, repository: str, reference: str) -> Response:
        with self._changing(deletes=True):
            found = next(iter(self._store.resolve(repository, [reference], self._work)))
            if isinstance(found, Exception) or self.has_deleted(repository, reference):
                raise Problem(404, "MANIFEST_UNKNOWN", f"{repository} does not have {reference}")
            if ":" not in reference:
                self._store.delete(repository, reference, self._work)
                return Response(202)
            try:
                removed = self._store.remove_manifest(repository, Digest.parse(reference), self._work)
            except InUse as error:
                raise Problem(405, "UNSUPPORTED", str(error)) from error
            if not removed:
                self._deleted.add((repository, reference))
        return Response(202)

    def _undelete(self, repository: str, manifest: Manifest) -> None:
        """What is pushed is there again; below an index, all that the repository has."""
        if manifest.children:
            self._deleted = {one for one in self._deleted if one[0] != repository}
        self._deleted.discard((repository, manifest.digest))

    @contextmanager
    def _changing(self, *, deletes: bool) -> Iterator[None]:
        """Put manifests side by side, delete alone: a manifest that is about to be referred to must not vanish."""
        while not self._enter(deletes=deletes):
            self._work.stop.check()
        try:
            yield
        finally:
            with self._changed:
                self._putting = 0 if deletes else self._putting - 1
                self._changed.notify_all()

    def _enter(self, *, deletes: bool) -> bool:
        with self._changed:
            if self._putting if deletes else self._putting < 0:
                self._changed.wait(_LOOK_EVERY)
                return False
            self._putting = -1 if deletes else self._putting + 1
            return True


class _Session:
    """Bytes that came so far; used by one request at a time."""

    def __init__(self, scratch: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=scratch, buffering=0)  # noqa: SIM115 (kept until `close`)
        except OSError as error:
            raise local_error("write an upload to", scratch, error) from error
        self._scratch = scratch
        self._hasher: Hasher = hashlib.sha256()
        self.size = 0

    def append(self, body: Body) -> None:
        """Raises NetworkError, LocalError."""
        buffer = memoryview(bytearray(_PIECE))
        while count := body.readinto(buffer):
            left = buffer[:count]
            self._hasher.update(left)
            self.size += count
            try:
                while len(left):
                    left = left[os.write(self._file.fileno(), left) :]
            except OSError as error:
                raise local_error("write an upload to", self._scratch, error) from error

    def digest(self, algorithm: str) -> str:
        if algorithm == "sha256":
            return f"sha256:{self._hasher.hexdigest()}"
        hasher, buffer = hashlib.new(algorithm), memoryview(bytearray(_PIECE))
        with self.open() as reader:
            while count := reader.readinto(buffer):
                hasher.update(buffer[:count])
        return f"{algorithm}:{hasher.hexdigest()}"

    def open(self) -> BlobReader:
        return FileReader(os.dup(self._file.fileno()), self._scratch)

    def close(self) -> None:
        self._file.close()


class _Incoming:
    """A request's body as a blob that proves itself at its end."""

    def __init__(self, body: Body, digest: Digest) -> None:
        self.size = body.length
        self._body = body
        self._digest = digest
        self._hasher = digest.hasher()

    def readinto(self, buffer: memoryview) -> int:
        count = self._body.readinto(buffer)
        self._hasher.update(buffer[:count])
        if not count and self._hasher.hexdigest() != self._digest.hex:
            raise Refused(f"what came does not hash to {self._digest}", code="digest_mismatch")
        return count

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _all_of(body: Body) -> bytes:
    data, buffer = bytearray(), memoryview(bytearray(_PIECE))
    while count := body.readinto(buffer):
        data += buffer[:count]
        if len(data) > MOST_MANIFEST:
            raise Problem(413, "SIZE_INVALID", f"a manifest of more than {MOST_MANIFEST} bytes")
    return bytes(data)


def _in_order(request: Request, session: _Session, repository: str, name: str) -> None:
    """Raises Problem (416): the piece does not begin where the last one ended."""
    text = request.header("Content-Range")
    found = _CONTENT_RANGE.fullmatch(text.strip()) if text is not None else None
    if text is not None and (found is None or int(found[1]) != session.size):
        answer = _progress(416, repository, name, session)
        raise Problem(416, "RANGE_INVALID", "a piece begins where the last one ended", answer.headers)


def _progress(status: int, repository: str, name: str, session: _Session) -> Response:
    headers: Headers = (
        ("Location", f"/v2/{repository}/blobs/uploads/{name}"),
        ("Range", f"0-{max(0, session.size - 1)}"),
        ("Docker-Upload-UUID", name),
    )
    return Response(status, headers)


def _created(repository: str, digest: Digest) -> Response:
    return Response(201, (("Location", f"/v2/{repository}/blobs/{digest}"), ("Docker-Content-Digest", digest)))


def _asked(request: Request) -> Digest:
    return _digest(request.value("digest") or "")


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except Refused as error:
        raise Problem(400, "DIGEST_INVALID", error.what) from error


def _refusal(error: Refused | RemoteError) -> Problem:
    if error.code == "blob_missing":
        return Problem(404, "MANIFEST_BLOB_UNKNOWN", error.what)
    if error.code == "digest_mismatch":
        return Problem(400, "DIGEST_INVALID", error.what)
    return Problem(400, "MANIFEST_INVALID", error.what)
