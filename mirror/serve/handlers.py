"""A registry over a store: the answers of the distribution-spec, v1.1.1. Pulls here, pushes in pushes.py."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

from mirror.errors import LocalError, NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Manifest
from mirror.oci.reference import is_path, is_tag
from mirror.serve.messages import Headers, Problem, Request, Response, Stretch, as_json, page, wanted_range
from mirror.serve.pushes import Pushes
from mirror.store import Source
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

_MOST_REFERRERS = 10_000
_FRESH = 0.5  # seconds for which the names of the repositories are taken for known
_READ = ("GET", "HEAD")
_NO_MANIFEST = ("manifest_invalid", "manifest_ambiguous", "bundle_invalid")  # what is said of other bytes


class _Route(Struct, frozen=True):
    """A kind of path. handler: takes the request and the groups of the pattern; writes: methods of a push."""

    pattern: re.Pattern[str]
    reads: Callable[..., Response] | None
    writes: tuple[str, ...] = ()


class Registry:
    """Answers requests. Any thread; `pushes`: takes what is written, None: nothing is.

    bare: the repository to which names without one belong."""

    def __init__(self, store: Source, work: Work, *, bare: str = "", pushes: Pushes | None = None) -> None:
        self._store = store
        self._work = work
        self._bare = bare
        self._pushes = pushes
        self._names: frozenset[str] = frozenset()
        self._names_at = float("-inf")
        self._routes = (
            _Route(re.compile(r"/v2/?"), self._ping),
            _Route(re.compile(r"/v2/_catalog"), self._catalog),
            _Route(re.compile(r"/v2/(.+)/tags/list"), self._tags),
            _Route(re.compile(r"/v2/(.+)/manifests/([^/]+)"), self._manifest, ("PUT", "DELETE")),
            _Route(re.compile(r"/v2/(.+)/referrers/([^/]+)"), self._referrers),
            _Route(re.compile(r"/v2/(.+)/blobs/uploads/?"), None, ("POST",)),
            _Route(re.compile(r"/v2/(.+)/blobs/uploads/([^/]+)"), self._upload, ("PATCH", "PUT", "DELETE")),
            _Route(re.compile(r"/v2/(.+)/blobs/([^/]+)"), self._blob),
        )

    def answer(self, request: Request) -> Response:
        """Raises NetworkError: the request was cut; Cancelled. Every other failure is an answer."""
        try:
            return self._routed(request)
        except Problem as problem:
            return problem.response()
        except NotFound as error:
            return Problem(404, "MANIFEST_UNKNOWN", error.what).response()
        except (Refused, LocalError) as error:
            return Problem(500, "UNKNOWN", error.what).response()

    def _routed(self, request: Request) -> Response:
        for route in self._routes:
            found = route.pattern.fullmatch(request.path)
            if found is not None:
                if found.lastindex and not is_path(found[1]):
                    raise Problem(400, "NAME_INVALID", "that is no name of a repository")
                if request.method in _READ and route.reads is not None:
                    return route.reads(request, *found.groups())
                if self._pushes is not None and request.method in route.writes:
                    return self._pushes.answer(request, *found.groups())
                raise self._unsupported(route)
        raise Problem(404, "NAME_UNKNOWN", "there is nothing at that path")

    def _unsupported(self, route: _Route) -> Problem:
        able = (*(_READ if route.reads is not None else ()), *(route.writes if self._pushes is not None else ()))
        why = "that cannot be done here" if self._pushes is not None else "this registry is read-only"
        return Problem(405, "UNSUPPORTED", why, (("Allow", ", ".join(able)),))

    # ---- pulls

    def _ping(self, request: Request) -> Response:
        return as_json({})

    def _catalog(self, request: Request) -> Response:
        names, link = page(request, sorted(self._repositories()))
        return as_json({"repositories": names}, headers=link)

    def _repositories(self) -> frozenset[str]:
        found = {name for name in self._store.repositories("", self._work) if isinstance(name, str)}
        if self._bare and self._has_tags(self._bare):
            found.add(self._bare)
        return frozenset(found)

    def _has_tags(self, repository: str) -> bool:
        try:
            return any(True for _ in self._store.tags(repository, self._work))
        except NotFound:
            return False

    def _known(self, repository: str) -> None:
        """Raises Problem: there is no such repository."""
        if repository in self._names or (self._pushes is not None and self._pushes.has(repository)):
            return
        now = time.monotonic()
        if now - self._names_at > _FRESH or not self._names:
            self._names, self._names_at = self._repositories(), now
        if repository not in self._names:
            raise Problem(404, "NAME_UNKNOWN", f"there is no repository {repository}")

    def _tags(self, request: Request, repository: str) -> Response:
        try:
            listed = self._store.tags(repository, self._work)
            tags = sorted(tag for tag in listed if isinstance(tag, str))
        except NotFound as error:
            raise Problem(404, "NAME_UNKNOWN", error.what) from error
        taken, link = page(request, tags)
        return as_json({"name": repository, "tags": taken}, headers=link)

    def _manifest(self, request: Request, repository: str, reference: str) -> Response:
        if ":" in reference:
            _digest(reference)
            self._known(repository)
        elif not is_tag(reference):
            raise Problem(404, "MANIFEST_UNKNOWN", "that is no tag")
        if self._pushes is not None and self._pushes.has_deleted(repository, reference):
            raise Problem(404, "MANIFEST_UNKNOWN", f"{reference} was deleted from {repository}")
        manifest = self._read(repository, reference)
        headers: Headers = (
            ("Content-Type", manifest.media_type),
            ("Docker-Content-Digest", manifest.digest),
            ("ETag", f'"{manifest.digest}"'),
        )
        if request.header("If-None-Match") == f'"{manifest.digest}"':
            return Response(304, headers)
        return Response(200, headers, manifest.body, manifest.size)

    def _read(self, repository: str, reference: str) -> Manifest:
        try:
            return self._store.manifest(repository, reference, self._work)
        except Refused as error:
            # A layout cannot tell before it reads: a layer is no manifest, and asking again does not help.
            if ":" in reference and error.code in _NO_MANIFEST:
                raise Problem(404, "MANIFEST_UNKNOWN", error.what) from error
            raise

    def _blob(self, request: Request, repository: str, text: str) -> Response:
        digest = _digest(text)
        self._known(repository)
        headers: Headers = (
            ("Content-Type", "application/octet-stream"),
            ("Docker-Content-Digest", digest),
            ("ETag", f'"{digest}"'),
            ("Accept-Ranges", "bytes"),
        )
        size = self._size(repository, digest)
        part = wanted_range(request.header("Range"), size)
        start, length = part or (0, size)
        if part is not None:
            headers = (*headers, ("Content-Range", f"bytes {start}-{start + length - 1}/{size}"))
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return Response(status, headers, b"", length)
        reader = self._store.open_blob(repository, Descriptor(digest, size), self._work, offset=start)
        return Response(status, headers, Stretch(reader, length))

    def _size(self, repository: str, digest: Digest) -> int:
        try:
            with self._store.open_blob(repository, Descriptor(digest, None), self._work) as reader:
                return reader.size or 0
        except NotFound as error:
            raise Problem(404, "BLOB_UNKNOWN", error.what) from error

    def _referrers(self, request: Request, repository: str, text: str) -> Response:
        digest, kind = _digest(text), request.value("artifactType")
        entries: list[dict[str, object]] = []
        for descriptor in self._store.referrers(repository, digest, self._work):
            if len(entries) == _MOST_REFERRERS:
                break
            entry = _entry(self._store.manifest(repository, descriptor.digest, self._work))
            if kind is None or entry.get("artifactType") == kind:
                entries.append(entry)
        headers: Headers = (("OCI-Filters-Applied", "artifactType"),) if kind is not None else ()
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return as_json(document, headers=headers, media_type=OCI_INDEX)

    def _upload(self, request: Request, repository: str, session: str) -> Response:
        if self._pushes is None:
            raise Problem(404, "BLOB_UPLOAD_UNKNOWN", "this registry is read-only")
        return self._pushes.answer(request, repository, session)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except Refused as error:
        raise Problem(400, "DIGEST_INVALID", error.what) from error


def _entry(manifest: Manifest) -> dict[str, object]:
    """A descriptor as the referrers API gives it: with the type of the artifact, and its annotations."""
    document = json.loads(manifest.body)
    entry: dict[str, object] = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
    }
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    if isinstance(kind, str):
        entry["artifactType"] = kind
    if isinstance(document.get("annotations"), dict):
        entry["annotations"] = document["annotations"]
    return entry
