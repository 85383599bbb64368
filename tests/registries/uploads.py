"""The v2 protocol for a `Storage`: blobs, mounts and upload sessions. Source: distribution-spec v1.1.1."""

from __future__ import annotations

import re

from tests.registries.exchange import Headers, Reply, Request, error_reply
from tests.registries.features import Features
from tests.registries.storage import Storage, Upload, digest_of

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d+)-(\d+)(?:/.*)?")
_HTML = (("Content-Type", "text/html"),)


class Blobs:
    """Request handlers; the caller holds the storage's lock."""

    def __init__(self, storage: Storage, features: Features) -> None:
        self._storage, self._features = storage, features

    # ---- blobs

    def get(self, request: Request) -> Reply:
        data = self._storage.blob(request.repository, request.reference)
        if data is None:
            return error_reply(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if self._features.blob_redirect and not request.ours:
            return Reply(307, (("Location", self._features.blob_redirect(request.reference)),))
        return blob_reply(request, data, ranges=self._features.ranges, digest=self._said(request.reference))

    def delete(self, request: Request) -> Reply:
        home = self._storage.find(request.repository)
        if home is None or request.reference not in home.blobs:
            return error_reply(404, "BLOB_UNKNOWN", "blob unknown to registry")
        home.blobs.discard(request.reference)
        return Reply(202)

    # ---- sessions

    def mount(self, request: Request) -> Reply:
        features, storage = self._features, self._storage
        if refused := self._uncreated(request):
            return refused
        other = request.query.get("from", [""])[0]
        data = storage.blob(other, request.reference) if features.mounts else None
        if features.mount_after_manifest and not storage.is_referred_to(other, request.reference):
            data = None
        if data is None:
            return self._opened(storage.begin(request.repository))
        storage.add_blob(request.repository, request.reference, data)
        return self._stored(request.repository, request.reference)

    def begin(self, request: Request) -> Reply:
        if refused := self._uncreated(request):
            return refused
        if "digest" in request.query:  # everything in one POST
            return self._store(Upload("", request.repository, bytearray(request.body)), request.query["digest"][0])
        return self._opened(self._storage.begin(request.repository))

    def patch(self, request: Request) -> Reply:
        upload = self._find(request)
        if isinstance(upload, Reply):
            return upload
        said = request.header("Content-Range")
        refused = self._too_large(request) or (self._refused_chunk(upload, said, len(request.body)) if said else None)
        if refused:
            return refused
        upload.data += request.body
        return self._opened(upload)

    def _refused_chunk(self, upload: Upload, said: str, size: int) -> Reply | None:
        features = self._features
        if not features.chunks:
            return error_reply(405, "UNSUPPORTED", "chunked uploads are not supported")
        if features.max_chunk is not None and size > features.max_chunk:
            return error_reply(416, "BLOB_UPLOAD_INVALID", "chunk too large")
        if size < features.min_chunk:
            return error_reply(400, "SIZE_INVALID", f"a chunk has at least {features.min_chunk} bytes")
        found = _CONTENT_RANGE.fullmatch(said)
        if not found or int(found[1]) != len(upload.data) or int(found[2]) - int(found[1]) + 1 != size:
            return Reply(416, self._session(upload))
        return None

    def commit(self, request: Request) -> Reply:
        upload = self._find(request)
        if isinstance(upload, Reply):
            return upload
        if refused := self._too_large(request):
            return refused
        if not request.body and upload.data and not self._features.empty_commit:
            return error_reply(500, "UNKNOWN", "empty body")
        digest = request.query.get("digest", [""])[0]
        upload.data += request.body
        reply = self._store(upload, digest)
        self._storage.uploads.pop(upload.id, None)
        return reply

    def status(self, request: Request) -> Reply:
        status = self._features.upload_status
        if status == 405:
            return error_reply(405, "UNSUPPORTED", "the operation is unsupported")
        if status == 400:
            return error_reply(400, "NAME_INVALID", "invalid digest")
        upload = self._find(request, any_state=True)
        if isinstance(upload, Reply) or status == 404:
            return error_reply(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        return Reply(status, self._session(upload))

    def cancel(self, request: Request) -> Reply:
        upload = self._find(request, any_state=True)
        if isinstance(upload, Reply):
            return upload
        del self._storage.uploads[upload.id]
        return Reply(204)

    # ---- steps

    def _uncreated(self, request: Request) -> Reply | None:
        if self._features.needs_creation and self._storage.find(request.repository) is None:
            return error_reply(404, "NAME_UNKNOWN", "create the repository first")
        return None

    def _too_large(self, request: Request) -> Reply | None:
        limit = self._features.max_body
        if limit is None or len(request.body) <= limit:
            return None
        return Reply(413, _HTML, b"<html><body>413 Request Entity Too Large</body></html>\n")

    def _find(self, request: Request, *, any_state: bool = False) -> Upload | Reply:
        """Return the upload session of a Location; only the newest is valid if they change."""
        identity = request.path.rpartition("/")[2]
        upload = self._storage.uploads.get(identity)
        if upload is None or upload.repository != request.repository:
            return error_reply(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        state = request.query.get("_state", [""])[0]
        if self._features.fresh_locations and not any_state and state != str(upload.state):
            return error_reply(404, "BLOB_UPLOAD_INVALID", "not the newest Location")
        return upload

    def _opened(self, upload: Upload) -> Reply:
        upload.state += 1
        return Reply(202, self._session(upload))

    def _session(self, upload: Upload) -> Headers:
        features = self._features
        base = features.upload_prefix or "/v2/"
        middle = "/" if features.upload_prefix else "/blobs/uploads/"
        path = f"{base}{upload.repository}{middle}{upload.id}"
        path += f"?_state={upload.state}" if features.fresh_locations else ""
        headers = [
            ("Location", features.locations(path) if features.locations else path),
            ("Range", f"0-{max(0, len(upload.data) - 1)}"),
            ("Docker-Upload-UUID", upload.id),
        ]
        return [*headers, ("OCI-Chunk-Min-Length", str(features.min_chunk))] if features.min_chunk else headers

    def _store(self, upload: Upload, digest: str) -> Reply:
        data = bytes(upload.data)
        try:
            right = digest_of(data, digest.partition(":")[0]) == digest
        except ValueError:
            right = False
        if not right:
            return error_reply(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self._storage.add_blob(upload.repository, digest, data)
        return self._stored(upload.repository, digest)

    def _stored(self, repository: str, digest: str) -> Reply:
        return Reply(201, [("Location", f"/v2/{repository}/blobs/{digest}"), *self._said(digest)])

    def _said(self, digest: str) -> list[tuple[str, str]]:
        return [("Docker-Content-Digest", digest)] if self._features.content_digest else []


def blob_reply(request: Request, data: bytes, *, ranges: bool, digest: Headers = ()) -> Reply:
    """Return a blob, or the range that was requested."""
    headers = [("Content-Type", "application/octet-stream"), *digest]
    found = _RANGE.fullmatch(request.header("Range") or "") if ranges else None
    if not found or request.method != "GET":
        return Reply(200, headers, data)
    start, size = int(found[1]), len(data)
    end = min(int(found[2]) if found[2] else size - 1, size - 1)
    if start > end:
        return Reply(416, [*headers, ("Content-Range", f"bytes */{size}")])
    return Reply(206, [*headers, ("Content-Range", f"bytes {start}-{end}/{size}")], data[start : end + 1])
