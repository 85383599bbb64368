"""Handles pushes to the registry server: upload sessions, mounts, manifests. Source: distribution-spec v1.1.1.

Deleting a manifest removes it from its repository. The file of the manifest is removed as well, unless another
repository has the manifest. A blob that is sent in one request is written directly to the store. A blob that is sent in
parts is collected in an unnamed file, which disappears when the process ends.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.layout.directory import LayoutStore, ManifestInUseError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.reference import is_path, is_tag
from mirror.serve.messages import Headers, HttpError, IncomingBody, ServerRequest, ServerResponse
from mirror.serve.push_sessions import PushSession, VerifyingBody
from mirror.store import Mount
from mirror.util.cancellation import Work

MAX_SESSIONS = 200  # maximum number of upload sessions; each of them has an open file
MAX_MANIFEST_BYTES = 4 << 20  # bytes
_BUFFER_BYTES = 256 << 10  # bytes
_POLL_INTERVAL = 0.5  # seconds between two checks for a stop while another request changes manifests
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,19})-(\d{1,19})(?:/.*)?")


class PushHandler:
    """Answers pushes to a layout: uploads, mounts, manifests and deletions. Thread-safe. Call `close` at the end.

    directory: where upload sessions create unnamed files; it should be on the same disk as the store."""

    def __init__(self, store: LayoutStore, work: Work, directory: Path) -> None:
        self._store = store
        self._work = work
        self._directory = directory
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, PushSession] = OrderedDict()
        self._repositories_pushed: set[str] = set()
        # (repository, digest) of deleted manifests whose files were kept, because other repositories have them
        self._deleted: set[tuple[str, str]] = set()
        self._changed = threading.Condition()
        self._active_puts = 0  # number of requests that are putting a manifest; -1 while a request deletes one

    def close(self) -> None:
        """Close all upload sessions."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.close()

    def has_pushes(self, repository: str) -> bool:
        """Return whether a blob or manifest has been pushed to the repository since the server started.

        Such a repository exists even if it has no tag yet."""
        return repository in self._repositories_pushed

    def has_deleted(self, repository: str, digest: str) -> bool:
        """Return whether a manifest whose file was kept has been deleted from `repository` since the server started.

        The file is kept if another repository has the manifest."""
        return (repository, digest) in self._deleted

    def handle(self, request: ServerRequest, repository: str, reference: str = "") -> ServerResponse:
        """Return the response to a push. reference: a tag, a digest, or the name of an upload session.

        Raises HttpError, NetworkError, and the exceptions of the store."""
        if "/manifests/" in request.path:
            return (self._put_manifest if request.method == "PUT" else self._delete_manifest)(
                request, repository, reference
            )
        if request.method == "POST":
            return self._post_upload(request, repository)
        session = self._take_session(repository, reference)
        keep = False
        try:
            if request.method == "DELETE":
                return ServerResponse(204)
            if request.method == "PUT":
                _check_content_range(request, session, repository, reference)
                self._commit(request, repository, session)
                return _created_response(repository, _requested_digest(request))
            if request.method == "PATCH":
                _check_content_range(request, session, repository, reference)
                session.append(request.body)
            keep = True
            return _session_response(204 if request.method in ("GET", "HEAD") else 202, repository, reference, session)
        except NetworkError:
            keep = True  # the client can resume after the bytes that arrived
            raise
        except HttpError as problem:
            keep = problem.status == 416
            raise
        finally:
            self._return_session(reference, session if keep else None)
            if not keep:
                session.close()

    # ---- sessions

    def _post_upload(self, request: ServerRequest, repository: str) -> ServerResponse:
        """Answer POST: mount a blob, store the blob in the request's body, or open an upload session."""
        mount = request.query_value("mount")
        if mount is not None and self._try_mount(request, repository, _parse_digest(mount)):
            return _created_response(repository, _parse_digest(mount))
        session = PushSession(self._directory)
        if mount is None and request.query_value("digest") is not None:
            try:
                self._commit(request, repository, session)
            finally:
                session.close()
            return _created_response(repository, _requested_digest(request))
        name = str(uuid.uuid4())
        with self._lock:
            self._sessions[name] = session
            full = len(self._sessions) > MAX_SESSIONS
            oldest = self._sessions.popitem(last=False)[1] if full else None
        if oldest is not None:
            oldest.close()
        return _session_response(202, repository, name, session)

    def _try_mount(self, request: ServerRequest, repository: str, digest: Digest) -> bool:
        """Mount a blob from the repository in the query parameter `from`. Without this parameter, use any repository.

        Return whether the blob was mounted. It cannot be mounted if the repository or the blob does not exist."""
        sibling = request.query_value("from")
        if sibling is not None and not (is_path(sibling) and self._has_repository(sibling)):
            return False
        if self._store.mount_blob(repository, Descriptor(digest, None), sibling or "", self._work) is not Mount.MOUNTED:
            return False
        self._repositories_pushed.add(repository)
        return True

    def _has_repository(self, repository: str) -> bool:
        """Return whether the repository exists."""
        return self.has_pushes(repository) or repository in self._store.repositories(repository, self._work)

    def _take_session(self, repository: str, name: str) -> PushSession:
        """Remove an upload session from the table and return it, so that no other request can use it at the same time.

        Raises HttpError (404) if there is no such session, or another request is using it."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is None:
            raise HttpError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload session, or another request is using it")
        return session

    def _return_session(self, name: str, session: PushSession | None) -> None:
        """Make a session available for the next request. Does nothing if `session` is None."""
        if session is not None:
            with self._lock:
                self._sessions[name] = session

    def _commit(self, request: ServerRequest, repository: str, session: PushSession) -> None:
        """Append the request's body to the bytes in a session, verify the digest, and write the blob to the store.

        Raises HttpError (DIGEST_INVALID), NetworkError, LocalError."""
        digest = _requested_digest(request)
        if session.size:
            session.append(request.body)
            if session.digest(digest.algorithm) != digest:
                raise HttpError(400, "DIGEST_INVALID", f"the received bytes do not have the digest {digest}")
            blob, body = Descriptor(digest, session.size), session.open()
        else:
            blob, body = Descriptor(digest, request.body.length), VerifyingBody(request.body, digest)
        try:
            with self._store.begin_upload(repository, blob, self._work) as upload:
                upload.send(lambda offset: body, self._work)
        except Refused as error:
            if error.code != "digest_mismatch":
                raise
            raise HttpError(400, "DIGEST_INVALID", error.what) from error
        self._repositories_pushed.add(repository)

    # ---- manifests

    def _put_manifest(self, request: ServerRequest, repository: str, reference: str) -> ServerResponse:
        """Answer PUT /v2/REPOSITORY/manifests/REFERENCE."""
        if ":" not in reference and not is_tag(reference):
            raise HttpError(400, "TAG_INVALID", f"not a valid tag: {reference}")
        expected = _parse_digest(reference) if ":" in reference else None
        try:
            manifest = parse_manifest(
                _read_manifest_body(request.body),
                request.header("Content-Type") or "",
                expected=expected,
                what="the manifest",
            )
            with self._manifest_access(exclusive=False):
                self._store.put_manifest(repository, reference, manifest, self._work)
                self._clear_deletion(repository, manifest)
        except NetworkError:
            raise  # the request is truncated
        except (Refused, RemoteError) as error:
            raise _to_http_error(error) from error
        self._repositories_pushed.add(repository)
        headers: Headers = (
            ("Location", f"/v2/{repository}/manifests/{manifest.digest}"),
            ("Docker-Content-Digest", manifest.digest),
        )
        if manifest.subject is not None:
            headers = (*headers, ("OCI-Subject", manifest.subject.digest))
        return ServerResponse(201, headers)

    def _delete_manifest(self, request: ServerRequest, repository: str, reference: str) -> ServerResponse:
        """Answer DELETE /v2/REPOSITORY/manifests/REFERENCE."""
        with self._manifest_access(exclusive=True):
            found = next(iter(self._store.resolve(repository, [reference], self._work)))
            if isinstance(found, Exception) or self.has_deleted(repository, reference):
                raise HttpError(404, "MANIFEST_UNKNOWN", f"{repository} does not have {reference}")
            if ":" not in reference:
                self._store.delete(repository, reference, self._work)
                return ServerResponse(202)
            try:
                removed = self._store.remove_manifest(repository, Digest.parse(reference), self._work)
            except ManifestInUseError as error:
                raise HttpError(405, "UNSUPPORTED", str(error)) from error
            if not removed:
                self._deleted.add((repository, reference))
        return ServerResponse(202)

    def _clear_deletion(self, repository: str, manifest: Manifest) -> None:
        """Forget that a manifest was deleted, because it has been pushed again.

        If the manifest is an index, forget all deletions in the repository, because the index may refer to the deleted
        manifests."""
        if manifest.children:
            self._deleted = {one for one in self._deleted if one[0] != repository}
        self._deleted.discard((repository, manifest.digest))

    @contextmanager
    def _manifest_access(self, *, exclusive: bool) -> Iterator[None]:
        """Return a context manager that holds a lock on the manifests until the `with` block exits.

        exclusive: False for puts, which may run at the same time. True for a delete, because a put must not refer to a
        manifest that is being removed. Raises Cancelled."""
        while not self._try_enter(exclusive=exclusive):
            self._work.stop.raise_if_requested()
        try:
            yield
        finally:
            with self._changed:
                self._active_puts = 0 if exclusive else self._active_puts - 1
                self._changed.notify_all()

    def _try_enter(self, *, exclusive: bool) -> bool:
        """Try to acquire the lock on the manifests. On failure, wait at most _POLL_INTERVAL, then return False."""
        with self._changed:
            if self._active_puts if exclusive else self._active_puts < 0:
                self._changed.wait(_POLL_INTERVAL)
                return False
            self._active_puts = -1 if exclusive else self._active_puts + 1
            return True


def _read_manifest_body(body: IncomingBody) -> bytes:
    """Read a manifest. Raises HttpError (413) if it is larger than MAX_MANIFEST_BYTES, and NetworkError."""
    data, buffer = bytearray(), memoryview(bytearray(_BUFFER_BYTES))
    while count := body.readinto(buffer):
        data += buffer[:count]
        if len(data) > MAX_MANIFEST_BYTES:
            raise HttpError(413, "SIZE_INVALID", f"the manifest has more than {MAX_MANIFEST_BYTES} bytes")
    return bytes(data)


def _check_content_range(request: ServerRequest, session: PushSession, repository: str, name: str) -> None:
    """Raise HttpError (416) if the chunk in the request does not begin where the previous chunk ended."""
    text = request.header("Content-Range")
    found = _CONTENT_RANGE.fullmatch(text.strip()) if text is not None else None
    if text is not None and (found is None or int(found[1]) != session.size):
        response = _session_response(416, repository, name, session)
        raise HttpError(416, "RANGE_INVALID", "a chunk must begin where the previous chunk ended", response.headers)


def _session_response(status: int, repository: str, name: str, session: PushSession) -> ServerResponse:
    """Return a response with the location of an upload session and the range of bytes received."""
    headers: Headers = (
        ("Location", f"/v2/{repository}/blobs/uploads/{name}"),
        ("Range", f"0-{max(0, session.size - 1)}"),
        ("Docker-Upload-UUID", name),
    )
    return ServerResponse(status, headers)


def _created_response(repository: str, digest: Digest) -> ServerResponse:
    """Return the response, with status 201, to a request that stored or mounted a blob."""
    return ServerResponse(201, (("Location", f"/v2/{repository}/blobs/{digest}"), ("Docker-Content-Digest", digest)))


def _requested_digest(request: ServerRequest) -> Digest:
    """Return the value of the query parameter `digest`. Raises HttpError (DIGEST_INVALID)."""
    return _parse_digest(request.query_value("digest") or "")


def _parse_digest(text: str) -> Digest:
    """Parse a digest. Raises HttpError (DIGEST_INVALID)."""
    try:
        return Digest.parse(text)
    except Refused as error:
        raise HttpError(400, "DIGEST_INVALID", error.what) from error


def _to_http_error(error: Refused | RemoteError) -> HttpError:
    """Convert an error from the store to an error response."""
    if error.code == "blob_missing":
        return HttpError(404, "MANIFEST_BLOB_UNKNOWN", error.what)
    if error.code == "digest_mismatch":
        return HttpError(400, "DIGEST_INVALID", error.what)
    return HttpError(400, "MANIFEST_INVALID", error.what)
