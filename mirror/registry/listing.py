"""Lists that come in pages: tags, the catalog.

Source: distribution-spec v1.1.1, "Listing Tags"; RFC 8288 for Link. Pages are followed as the registry links
them, on the same origin only, within bounds; a list that goes round in circles is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from mirror.errors import Refused, RemoteError
from mirror.limits import Work
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag
from mirror.oci.strictjson import Value
from mirror.registry.scopes import Scope
from mirror.registry.session import Answer, Session, TooBig

# ECR refuses n > 1000 (google/go-containerregistry#1091); a registry with smaller pages sends a Link.
PAGE_SIZE = 1000
# Numbers of names that look like a full page where there is no Link.
_FULL = frozenset({50, 100, 200, 250, 500, PAGE_SIZE})
_TOO_MANY_ASKED = frozenset({400, 413, 416, 422})
# GCR and Artifact Registry send all tags in one page, whatever `n` says, with 290 bytes of each: of 50,000, 14 MiB.
MAX_PAGE_BYTES = 16 << 20
MAX_PAGES = 10_000
MAX_NAMES = 1_000_000
_INSTEAD = {
    "tags": "write the `tags` that are wanted as a list: those are asked for one by one, without reading this one",
    "repositories": "write a mirror for each repository that is wanted, without `*`",
}

_LINK = re.compile(r"\s*<([^<>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*(?:\"(?:[^\"\\]|\\.)*\"|[^\s;,\"]*))?)*)\s*(?:,|$)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,\"]*))", re.IGNORECASE)


def listed(session: Session, path: str, key: str, scope: Scope, work: Work) -> Iterator[str]:
    """Every text under `key` of every page, each once, unchecked; a ListedTag where the page tells its digest.

    Raises NotFound, Refused (too_many, unsafe_link)."""
    where = session.trust.own(f"{path}?n={PAGE_SIZE}")
    what = f"{session.settings.host}{path}"
    seen: set[str] = set()
    for _ in range(MAX_PAGES):
        try:
            answer = session.call("GET", where, work, kind=key, scopes=(scope,), expect={200}, limit=MAX_PAGE_BYTES)
        except TooBig as error:
            raise Refused(error.what, hint=_INSTEAD[key], code="too_many", status=error.status) from error
        except RemoteError as error:
            if seen or error.status not in _TOO_MANY_ASKED or where.target == path:
                raise
            where = session.trust.own(path)  # its own page size, then (Quay: 413 for a large n)
            continue
        names = _names(answer, what, key)
        fresh = [name for name in dict.fromkeys(names) if name not in seen]
        seen.update(fresh)
        if len(seen) > MAX_NAMES:
            raise Refused(f"{what} lists more than {MAX_NAMES} names", code="too_many")
        yield from fresh
        following = next_link(answer.headers.all("link"))
        if following is not None:
            if not fresh:
                raise Refused(f"{what}: its pages do not advance", code="too_many")
            where = session.trust.link(following, answer.destination)
            if where.target.partition("?")[0] != path:
                raise Refused(f"{what}: the next page is a list of something else", code="unsafe_link")
        elif len(names) in _FULL and fresh:
            # A full page without a Link: some registries page silently. One that ignores `last` repeats itself.
            where = session.trust.own(f"{path}?n={PAGE_SIZE}&last={quote(names[-1], safe='')}")
        else:
            return
    raise Refused(f"{what} has more than {MAX_PAGES} pages", code="too_many")


def _digests(manifests: Value) -> dict[str, Digest]:
    """Tag -> digest, from the map of manifests that some registries add to a list of tags (GCR, Artifact Registry).

    A tag that stands at several says nothing: it has to be asked for."""
    found: dict[str, Digest] = {}
    again: set[str] = set()
    for text, about in manifests.items() if isinstance(manifests, dict) else ():
        tags = about.get("tag") if isinstance(about, dict) else None
        try:
            digest = Digest.parse(text)
        except Refused:
            continue
        named = {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()
        again |= named & found.keys()
        found.update((tag, digest) for tag in named)
    return {tag: digest for tag, digest in found.items() if tag not in again}


def _names(answer: Answer, what: str, key: str) -> list[str]:
    try:
        document = strictjson.parse(answer.body, what=f"the list at {what}", code="bad_response")
    except Refused as error:
        raise RemoteError(error.what, hint=error.hint, status=answer.status) from error
    if not isinstance(document, dict):
        raise RemoteError(f"{what} answered with something that is no list of {key}")
    names = document.get(key)
    if names is None:
        return []
    if not isinstance(names, list):
        raise RemoteError(f"{what} answered with something that is no list of {key}")
    digests = _digests(document.get("manifest"))
    texts = [name if isinstance(name, str) else repr(name) for name in names]
    return [ListedTag(text, digests[text]) if text in digests else text for text in texts] if digests else texts


def next_link(values: Sequence[str]) -> str | None:
    """The target of the first link with the relation `next`; None if there is none."""
    for value in values:
        position = 0
        while match := _LINK.match(value, position):
            relations = _REL.search(match[2])
            if relations and "next" in (relations[1] or relations[2] or "").lower().split():
                return match[1]
            position = match.end()
    return None
