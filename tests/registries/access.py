"""The kinds of requests, named as in the report: `HEAD manifest`, `PUT upload`, `POST mount`.

Used for the access logs of real registries, and for the log and the fault rules of the scripted one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

OWN_AGENT = "mirror-tests"  # user agent of the tests' own client; its requests are never counted

_PATHS = re.compile(
    r"/v2/(?P<repository>.+)/(?:"
    r"(?P<tags>tags/list)|manifests/(?P<manifest>[^/]+)|blobs/uploads/?(?P<upload>[^/]*)"
    r"|blobs/(?P<blob>[^/]+)|referrers/(?P<referrers>[^/]+))"
)
_V1_PATHS = re.compile(
    r"/v1/(?:(?P<ping>_ping)|repositories/(?P<repository>.+)/(?P<list>tags|images)|images/(?P<image>[^/]+)/(?P<part>\w+))"
)
_TOKEN_PATHS = ("/token", "/auth/token", "/service/token", "/v2/token")
_ALIASES = {"PUT blob": "PUT upload", "POST blob": "POST upload", "PATCH blob": "PATCH upload"}


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed request target. kind: `METHOD noun`; reference: a tag, a digest, or the id of an upload session."""

    kind: str
    repository: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A line of an access log. path: with its query. size: bytes of the response body."""

    method: str
    path: str
    status: int
    size: int
    kind: str
    repository: str
    reference: str


def canonical(kind: str) -> str:
    """Return the main name of a kind that has several (`PUT blob` is `PUT upload`)."""
    return _ALIASES.get(kind, kind)


def classify(method: str, target: str) -> Target:
    """Parse a request target. Nouns: ping, catalog, tags, manifest, blob, upload, mount, referrers, token, other;
    v1-ping, v1-index, v1-tags, v1-ancestry, v1-json, v1-layer, v1.

    The reference of a commit (`PUT upload`) or a mount is the blob's digest."""
    path, _, query = target.partition("?")
    if found := _PATHS.fullmatch(path):
        return _in_repository(method, found, query)
    if path in ("/v2", "/v2/"):
        return Target(f"{method} ping")
    if path in ("/v2/_catalog", "/v2/_catalog/"):
        return Target(f"{method} catalog")
    if path in _TOKEN_PATHS:
        return Target(f"{method} token")
    if found := _V1_PATHS.fullmatch(path):
        noun = f"v1-{(found['ping'] or found['list'] or found['part']).replace('images', 'index').strip('_')}"
        return Target(f"{method} {noun}", found["repository"] or "", found["image"] or "")
    return Target(f"{method} v1" if path.startswith("/v1/") else f"{method} other")


def _in_repository(method: str, found: re.Match[str], query: str) -> Target:
    repository, noun = found["repository"], str(found.lastgroup)
    reference = "" if noun == "tags" else unquote(found[noun])
    if noun == "upload":
        asked = parse_qs(query)
        mounted, committed = asked.get("mount"), asked.get("digest")
        if method == "POST" and mounted:
            noun, reference = "mount", mounted[0]
        elif committed:
            reference = committed[0]
    return Target(f"{method} {noun}", repository, reference)
