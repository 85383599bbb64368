"""Handles requests to the registry server: routing and pulls. Source: distribution-spec v1.1.1.

The module `pushes` handles pushes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from mirror.errors import LocalError, NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Manifest
from mirror.oci.reference import is_path, is_tag
from mirror.oci.referrers import referrer_entry
from mirror.oci.strictjson import Object
from mirror.serve.messages import (
    BlobRange,
    Headers,
    HttpError,
    ServerRequest,
    ServerResponse,
    json_response,
    paginate,
    parse_range,
)
from mirror.serve.pushes import PushHandler
from mirror.store import Source
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

_MAX_REFERRERS = 10_000
_NAMES_MAX_AGE = 0.5  # seconds for which the list of repositories is reused
_READ_METHODS = ("GET", "HEAD")
# The codes of errors that a store raises for bytes that are not a manifest.
_NOT_A_MANIFEST_CODES = ("manifest_invalid", "manifest_ambiguous", "bundle_invalid")


class _Route(Struct, frozen=True):
    """A route of the registry API: a pattern for paths, and the methods that it supports.

    reads: the function that answers GET and HEAD; its arguments are the request and the groups of `pattern`. writes:
    the methods that the push handler answers."""

    pattern: re.Pattern[str]
    reads: Callable[..., ServerResponse] | None
    writes: tuple[str, ...] = ()


class RegistryHandler:
    """Routes requests from clients, and answers pulls; a PushHandler answers pushes. Thread-safe.

    pushes: None if the registry is read-only. default_repository: the repository to which tags without a repository
    name are assigned."""

    def __init__(
        self, store: Source, work: Work, *, default_repository: str = "", pushes: PushHandler | None = None
    ) -> None:
        self._store = store
        self._work = work
        self._default_repository = default_repository
        self._pushes = pushes
        self._names: frozenset[str] = frozenset()
        self._names_read_at = float("-inf")
        self._routes = (
            _Route(re.compile(r"/v2/?"), self._get_version),
            _Route(re.compile(r"/v2/_catalog"), self._get_catalog),
            _Route(re.compile(r"/v2/(.+)/tags/list"), self._get_tags),
            _Route(re.compile(r"/v2/(.+)/manifests/([^/]+)"), self._get_manifest, ("PUT", "DELETE")),
            _Route(re.compile(r"/v2/(.+)/referrers/([^/]+)"), self._get_referrers),
            _Route(re.compile(r"/v2/(.+)/blobs/uploads/?"), None, ("POST",)),
            _Route(re.compile(r"/v2/(.+)/blobs/uploads/([^/]+)"), self._get_upload, ("PATCH", "PUT", "DELETE")),
            _Route(re.compile(r"/v2/(.+)/blobs/([^/]+)"), self._get_blob),
        )

    def handle(self, request: ServerRequest) -> ServerResponse:
        """Return the response to a request. Most errors are converted to error responses.

        Raises NetworkError if the request is truncated, and Cancelled."""
        try:
            return self._route_request(request)
        except HttpError as problem:
            return problem.to_response()
        except NotFound as error:
            return HttpError(404, "MANIFEST_UNKNOWN", error.what).to_response()
        except (Refused, LocalError) as error:
            return HttpError(500, "UNKNOWN", error.what).to_response()

    def _route_request(self, request: ServerRequest) -> ServerResponse:
        """Find the route for a request, and call its handler. Raises HttpError if no route matches."""
        for route in self._routes:
            found = route.pattern.fullmatch(request.path)
            if found is not None:
                if found.lastindex and not is_path(found[1]):
                    raise HttpError(400, "NAME_INVALID", f"not a valid repository name: {found[1]}")
                if request.method in _READ_METHODS and route.reads is not None:
                    return route.reads(request, *found.groups())
                if self._pushes is not None and request.method in route.writes:
                    return self._pushes.handle(request, *found.groups())
                raise self._method_error(route)
        raise HttpError(404, "NAME_UNKNOWN", f"this registry does not serve the path {request.path}")

    def _method_error(self, route: _Route) -> HttpError:
        """Return the error (405) for a method that the route does not support."""
        allowed = (
            *(_READ_METHODS if route.reads is not None else ()),
            *(route.writes if self._pushes is not None else ()),
        )
        why = "this path does not support the method" if self._pushes is not None else "this registry is read-only"
        return HttpError(405, "UNSUPPORTED", why, (("Allow", ", ".join(allowed)),))

    # ---- pulls

    def _get_version(self, request: ServerRequest) -> ServerResponse:
        """Answer GET /v2/, the version check."""
        return json_response({})

    def _get_catalog(self, request: ServerRequest) -> ServerResponse:
        """Answer GET /v2/_catalog with a list of the repositories."""
        names, link = paginate(request, sorted(self._repositories()))
        return json_response({"repositories": names}, headers=link)

    def _repositories(self) -> frozenset[str]:
        """Return the names of all repositories in the store."""
        found = {name for name in self._store.repositories("", self._work) if isinstance(name, str)}
        if self._default_repository and self._has_tags(self._default_repository):
            found.add(self._default_repository)
        return frozenset(found)

    def _has_tags(self, repository: str) -> bool:
        """Return whether the repository exists and has tags."""
        try:
            return any(True for _ in self._store.tags(repository, self._work))
        except NotFound:
            return False

    def _require_repository(self, repository: str) -> None:
        """Raise HttpError (NAME_UNKNOWN) if the repository does not exist."""
        if repository in self._names or (self._pushes is not None and self._pushes.has_pushes(repository)):
            return
        now = time.monotonic()
        if now - self._names_read_at > _NAMES_MAX_AGE or not self._names:
            self._names, self._names_read_at = self._repositories(), now
        if repository not in self._names:
            raise HttpError(404, "NAME_UNKNOWN", f"repository {repository} not found")

    def _get_tags(self, request: ServerRequest, repository: str) -> ServerResponse:
        """Answer GET /v2/REPOSITORY/tags/list."""
        try:
            listed = self._store.tags(repository, self._work)
            tags = sorted(tag for tag in listed if isinstance(tag, str))
        except NotFound as error:
            raise HttpError(404, "NAME_UNKNOWN", error.what) from error
        page_tags, link = paginate(request, tags)
        return json_response({"name": repository, "tags": page_tags}, headers=link)

    def _get_manifest(self, request: ServerRequest, repository: str, reference: str) -> ServerResponse:
        """Answer GET or HEAD /v2/REPOSITORY/manifests/REFERENCE."""
        if ":" in reference:
            _parse_digest(reference)
            self._require_repository(repository)
        elif not is_tag(reference):
            raise HttpError(404, "MANIFEST_UNKNOWN", f"not a valid tag: {reference}")
        if self._pushes is not None and self._pushes.has_deleted(repository, reference):
            raise HttpError(404, "MANIFEST_UNKNOWN", f"{reference} was deleted from {repository}")
        manifest = self._read_manifest(repository, reference)
        headers: Headers = (
            ("Content-Type", manifest.media_type),
            ("Docker-Content-Digest", manifest.digest),
            ("ETag", f'"{manifest.digest}"'),
        )
        if request.header("If-None-Match") == f'"{manifest.digest}"':
            return ServerResponse(304, headers)
        return ServerResponse(200, headers, manifest.body, manifest.size)

    def _read_manifest(self, repository: str, reference: str) -> Manifest:
        """Read a manifest. Raises HttpError (404) if `reference` is the digest of a blob that is not a manifest."""
        try:
            return self._store.manifest(repository, reference, self._work)
        except Refused as error:
            # Only reading the blob shows that it is not a manifest. With 404, unlike 500, clients do not retry.
            if ":" in reference and error.code in _NOT_A_MANIFEST_CODES:
                raise HttpError(404, "MANIFEST_UNKNOWN", error.what) from error
            raise

    def _get_blob(self, request: ServerRequest, repository: str, text: str) -> ServerResponse:
        """Answer GET or HEAD /v2/REPOSITORY/blobs/DIGEST, for the whole blob or a range."""
        digest = _parse_digest(text)
        self._require_repository(repository)
        headers: Headers = (
            ("Content-Type", "application/octet-stream"),
            ("Docker-Content-Digest", digest),
            ("ETag", f'"{digest}"'),
            ("Accept-Ranges", "bytes"),
        )
        size = self._blob_size(repository, digest)
        part = parse_range(request.header("Range"), size)
        start, length = part or (0, size)
        if part is not None:
            headers = (*headers, ("Content-Range", f"bytes {start}-{start + length - 1}/{size}"))
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return ServerResponse(status, headers, b"", length)
        reader = self._store.open_blob(repository, Descriptor(digest, size), self._work, offset=start)
        return ServerResponse(status, headers, BlobRange(reader, length))

    def _blob_size(self, repository: str, digest: Digest) -> int:
        """Return the size of a blob in bytes. Raises HttpError (BLOB_UNKNOWN) if it does not exist."""
        try:
            with self._store.open_blob(repository, Descriptor(digest, None), self._work) as reader:
                return reader.size or 0
        except NotFound as error:
            raise HttpError(404, "BLOB_UNKNOWN", error.what) from error

    def _get_referrers(self, request: ServerRequest, repository: str, text: str) -> ServerResponse:
        """Answer GET /v2/REPOSITORY/referrers/DIGEST."""
        digest, kind = _parse_digest(text), request.query_value("artifactType")
        entries: list[Object] = []
        for descriptor in self._store.referrers(repository, digest, self._work) or ():
            if len(entries) == _MAX_REFERRERS:
                break
            entry = referrer_entry(self._store.manifest(repository, descriptor.digest, self._work))
            if kind is None or entry.get("artifactType") == kind:
                entries.append(entry)
        headers: Headers = (("OCI-Filters-Applied", "artifactType"),) if kind is not None else ()
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return json_response(document, headers=headers, media_type=OCI_INDEX)

    def _get_upload(self, request: ServerRequest, repository: str, session: str) -> ServerResponse:
        """Answer GET for an upload session: return its location and the range of bytes received so far."""
        if self._pushes is None:
            raise HttpError(404, "BLOB_UPLOAD_UNKNOWN", "this registry is read-only")
        return self._pushes.handle(request, repository, session)


def _parse_digest(text: str) -> Digest:
    """Parse a digest. Raises HttpError (DIGEST_INVALID)."""
    try:
        return Digest.parse(text)
    except Refused as error:
        raise HttpError(400, "DIGEST_INVALID", error.what) from error
