"""The v2 protocol for a `Storage`: listings, manifests, referrers. Source: distribution-spec v1.1.1."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tests.registries.exchange import Headers, Reply, Request, error_reply, json_reply
from tests.registries.features import V2_TYPES, Features
from tests.registries.storage import Storage, digest_of
from tests.registries.uploads import Blobs
from tests.support.images import Body
from tests.support.schema1 import MEDIA_TYPE as SCHEMA1
from tests.support.schema1 import payload

_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

Handler = Callable[[Request], Reply]


class Protocol:
    """Carries out requests, one at a time. Thread-safe."""

    def __init__(self, storage: Storage, features: Features) -> None:
        self._storage, self._features = storage, features
        blobs = Blobs(storage, features)
        self._handlers: dict[str, Handler] = {
            "GET ping": lambda _: json_reply(200, {}),
            "HEAD ping": lambda _: json_reply(200, {}),
            "GET catalog": self._catalog,
            "GET tags": self._tags,
            "GET manifest": self._get_manifest,
            "HEAD manifest": self._get_manifest,
            "PUT manifest": self._put_manifest,
            "DELETE manifest": self._delete_manifest,
            "GET referrers": self._referrers,
            "GET blob": blobs.get,
            "HEAD blob": blobs.get,
            "DELETE blob": blobs.delete,
            "POST mount": blobs.mount,
            "POST upload": blobs.begin,
            "PATCH upload": blobs.patch,
            "PUT upload": blobs.commit,
            "GET upload": blobs.status,
            "DELETE upload": blobs.cancel,
        }

    def __call__(self, request: Request) -> Reply:
        handler = self._handlers.get(request.kind)
        if handler is None:
            return error_reply(404, "UNSUPPORTED", f"{request.method} {request.path}")
        if request.repository and not _NAME.fullmatch(request.repository):
            return error_reply(400, "NAME_INVALID", request.repository)
        with self._storage.lock:
            reply = handler(request)
        if self._features.api_version:
            reply = _with(reply, ("Docker-Distribution-Api-Version", "registry/2.0"))
        return reply

    # ---- listings

    def _catalog(self, request: Request) -> Reply:
        return self._page(request, "repositories", sorted(self._storage.repositories), {})

    def _tags(self, request: Request) -> Reply:
        home = self._storage.find(request.repository)
        if home is None or (not home.tags and self._features.empty_is_unknown):
            return error_reply(404, "NAME_UNKNOWN", "repository name not known to registry")
        return self._page(request, "tags", sorted(home.tags), {"name": request.repository})

    def _page(self, request: Request, key: str, entries: list[str], document: dict[str, object]) -> Reply:
        features, query = self._features, request.query
        wanted = int(query["n"][0]) if "n" in query else None
        if wanted is not None and features.max_n is not None and wanted > features.max_n:
            return error_reply(413, "PAGINATION_NUMBER_INVALID", f"n is at most {features.max_n}")
        size = min(limit for limit in (wanted, features.page, len(entries)) if limit is not None)
        last = query.get("last", [""])[0] if not features.opaque_link else _opened(query.get("next_page", [""])[0])
        rest = [entry for entry in entries if entry > last]
        page = rest[:size]
        headers: list[tuple[str, str]] = []
        if features.link and len(rest) > size and page:
            follow = f"next_page={_closed(page[-1])}" if features.opaque_link else f"last={quote(page[-1])}&n={size}"
            path = f"{request.path}?{follow}"
            headers.append(("Link", f'<{features.link_form(path) if features.link_form else path}>; rel="next"'))
        return json_reply(200, {**document, key: page}, *headers)

    # ---- manifests

    def _get_manifest(self, request: Request) -> Reply:
        features = self._features
        found = self._storage.manifest(request.repository, request.reference)
        if found is None:
            known = self._storage.find(request.repository) is not None
            return error_reply(404, "MANIFEST_UNKNOWN" if known else "NAME_UNKNOWN", "manifest unknown")
        if features.quota is not None and request.method == "GET" and not request.ours:
            if features.quota <= 0:
                return Reply(429, (("Content-Type", "text/plain"), *_quota(0)), b"toomanyrequests: pull rate limit\n")
            features.quota -= 1
        digest, body = found
        accepted = ",".join(value for name, value in request.headers if name.lower() == "accept")
        if features.schema1_for and not any(known in accepted for known in V2_TYPES):
            data = features.schema1_for.encode()
            digest, body = digest_of(payload(data)), Body(SCHEMA1, data)
        headers = [("Content-Type", body.media_type), *self._content_digest(digest)]
        headers += _quota(features.quota) if features.quota is not None else []
        return Reply(200, headers, body.data)

    def _put_manifest(self, request: Request) -> Reply:
        try:
            document = json.loads(request.body)
        except ValueError:
            return error_reply(400, "MANIFEST_INVALID", "not JSON")
        hashed = payload(request.body) if document.get("schemaVersion") == 1 else request.body
        by_digest = ":" in request.reference
        digest = digest_of(hashed, request.reference.partition(":")[0] if by_digest else "sha256")
        refused = self._refused_manifest(request, document) or self._refused_reference(request, digest)
        if refused:
            return refused
        home = self._storage.make(request.repository)
        home.manifests[digest] = Body(_media_type(request), request.body)
        if not by_digest:
            home.tags[request.reference] = digest
        subject = (document.get("subject") or {}).get("digest")
        headers = [("Location", f"/v2/{request.repository}/manifests/{digest}"), *self._content_digest(digest)]
        headers += [("OCI-Subject", subject)] if subject and self._features.referrers else []
        return Reply(201, headers)

    def _refused_manifest(self, request: Request, document: dict[str, Any]) -> Reply | None:
        features, media_type = self._features, _media_type(request)
        if len(request.body) > features.max_manifest:
            return error_reply(413, "MANIFEST_INVALID", "manifest too large")
        if features.media_types is not None and media_type not in features.media_types:
            return error_reply(415, "MANIFEST_INVALID", f"manifest type {media_type} is not supported")
        if document.get("mediaType") not in (None, media_type):
            return error_reply(400, "MANIFEST_INVALID", "mediaType is not Content-Type")
        if features.needs_creation and self._storage.find(request.repository) is None:
            return error_reply(404, "NAME_UNKNOWN", "create the repository first")
        subject = (document.get("subject") or {}).get("digest")
        if features.needs_subject and subject and self._storage.manifest(request.repository, subject) is None:
            return error_reply(404, "MANIFEST_UNKNOWN", f"subject unknown to registry: {subject}")
        checked = features.checks_references and not (features.sparse_indexes and "manifests" in document)
        lacks = self._storage.lacking(request.repository, document) if checked else []
        return error_reply(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown to registry: {lacks[0]}") if lacks else None

    def _refused_reference(self, request: Request, digest: str) -> Reply | None:
        tag = request.reference
        if ":" in tag:
            wrong = digest != tag
            return error_reply(400, "DIGEST_INVALID", "digest did not match content") if wrong else None
        if not _TAG.fullmatch(tag):
            return error_reply(400, "TAG_INVALID", "invalid tag")
        home = self._storage.find(request.repository)
        if self._features.immutable_tags and home and tag in home.tags:
            return error_reply(400, "TAG_INVALID", f"tag {tag} is immutable and cannot be overwritten")
        return None

    def _delete_manifest(self, request: Request) -> Reply:
        home = self._storage.find(request.repository)
        by_digest = ":" in request.reference
        if not by_digest and not self._features.tag_delete:
            return error_reply(405, "UNSUPPORTED", "the operation is unsupported")
        if home is None or request.reference not in (home.manifests if by_digest else home.tags):
            return error_reply(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if by_digest:
            del home.manifests[request.reference]
            home.tags = {tag: digest for tag, digest in home.tags.items() if digest != request.reference}
        else:
            del home.tags[request.reference]
        return Reply(202)

    def _referrers(self, request: Request) -> Reply:
        if not self._features.referrers:
            return Reply(404, (("Content-Type", "text/plain; charset=utf-8"),), b"404 page not found\n")
        found = self._storage.referrers(request.repository, request.reference)
        headers: Headers = (("Content-Type", _OCI_INDEX),)
        if kind := request.query.get("artifactType"):
            found = [entry for entry in found if entry.get("artifactType") == kind[0]]
            headers = (*headers, ("OCI-Filters-Applied", "artifactType"))
        if self._features.referrers_page:
            start, size = int(request.query.get("from", ["0"])[0]), self._features.referrers_page
            if len(found) > start + size:
                headers = (*headers, ("Link", f'<{request.path}?from={start + size}>; rel="next"'))
            found = found[start : start + size]
        document = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": found}
        return Reply(200, headers, json.dumps(document).encode())

    def _content_digest(self, digest: str) -> list[tuple[str, str]]:
        return [("Docker-Content-Digest", digest)] if self._features.content_digest else []


def _media_type(request: Request) -> str:
    return (request.header("Content-Type") or "").partition(";")[0]


def _with(reply: Reply, *headers: tuple[str, str]) -> Reply:
    return Reply(reply.status, (*reply.headers, *headers), reply.body, reply.length, reply.reason)


def _quota(left: int) -> list[tuple[str, str]]:
    return [("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", f"{left};w=21600")]


def _closed(entry: str) -> str:
    return base64.urlsafe_b64encode(entry.encode()[::-1]).decode()


def _opened(token: str) -> str:
    return base64.urlsafe_b64decode(token)[::-1].decode()
