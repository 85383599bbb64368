"""Reads paginated lists from a registry: the tags of a repository, and the repositories of the catalog.

Sources: distribution-spec v1.1.1, "Listing Tags"; RFC 8288 for the Link header. Links to next pages are followed only
on the same origin, and only up to a limit. A loop of links is an error.

Some registries truncate a list without sending a Link ("silent" paging). Therefore, if a page may be truncated, the
names after its second-to-last name are requested. If the response lacks the last name, the registry does not support
the query parameter `last`, and the list may be longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from mirror.errors import NotFound, Refused, RemoteError
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag
from mirror.oci.strictjson import Value
from mirror.registry.auth.authorizer import Scope
from mirror.registry.http.url_policy import Destination
from mirror.registry.session import Response, Session, TooBig
from mirror.util.cancellation import Work

# ECR rejects n > 1000 (google/go-containerregistry#1091); a registry with smaller pages sends a Link.
PAGE_SIZE = 1000
# Smaller page sizes for a registry that rejects PAGE_SIZE, in the order in which they are tried.
_SMALLER_SIZES = (100, 50, 20, 10)
# Numbers of names that indicate a full page. If such a page has no Link, the next page is always requested.
_FULL_PAGE_COUNTS = frozenset({50, 100, 200, 250, 500, PAGE_SIZE})
# While it is unknown how a registry paginates, a page without a Link that has fewer names is taken as the last page.
MIN_SILENT_PAGE = 20
_SIZE_REJECTED = frozenset({400, 413, 416, 422})
_LAST_REJECTED = _SIZE_REJECTED | {404, 405, 501}
# A page with at least this many names is continued after its second-to-last name, a shorter page after its last name.
_MIN_OVERLAP = 3
MAX_EMPTY_PAGES = 100  # consecutive empty pages that each have a Link
# GCR and Artifact Registry ignore `n` and send all tags in one page, with 290 bytes per tag: 14 MiB for 50,000 tags.
MAX_PAGE_BYTES = 16 << 20
MAX_PAGES = 10_000
MAX_NAMES = 1_000_000
_HINTS = {
    "tags": "list the tag names under `tags` in the configuration, so that the registry's list is not needed",
    "repositories": "configure one mirror for each repository, without `*`",
}

_LINK = re.compile(r"\s*<([^<>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*(?:\"(?:[^\"\\]|\\.)*\"|[^\s;,\"]*))?)*)\s*(?:,|$)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,\"]*))", re.IGNORECASE)


class Paging:
    """The pagination behaviour of a registry for one kind of list, as observed in this run. Thread-safe.

    These observations are not saved for the next run. If the registry changed its pagination, outdated observations
    could make lists incomplete."""

    def __init__(self) -> None:
        self.size: int | None = PAGE_SIZE  # `n` for the first page; None if the registry rejects `n`
        self.next_size: int | None = PAGE_SIZE  # `n` for a page requested with `last`; None to send no `n`
        self.sends_links = False  # the registry has sent a Link to a next page
        self.supports_last: bool | None = None  # None if unknown
        self.longest_complete = 0  # number of names on the longest page that was a complete list
        self.shortest_cut = 0  # number of names on the shortest silently truncated page; 0 if there was none

    @property
    def min_to_continue(self) -> int:
        """The minimum number of names that a page without a Link must have for the next page to be requested."""
        minimum = MIN_SILENT_PAGE if self.size == PAGE_SIZE else 1
        return min(minimum, self.shortest_cut) if self.shortest_cut else minimum

    def may_continue(self, count: int) -> bool:
        """Return whether a page of `count` names without a Link may be truncated.

        If a page of N names was a complete list, a different page with N or more names may still be truncated."""
        if self.shortest_cut:
            return count >= self.min_to_continue
        if self.sends_links or self.supports_last is False:
            return False
        return count >= max(self.min_to_continue, self.longest_complete)

    def sizes_to_try(self) -> list[int | None]:
        """Return the page sizes to try, in order, as the query parameter `n` of a request with `last`.

        None means a request without `n`."""
        if self.next_size is None:
            return [None]
        return [self.next_size, *(size for size in _SMALLER_SIZES if size < self.next_size), None]


def list_names(session: Session, path: str, key: str, scope: Scope, work: Work, paging: Paging) -> Iterator[str]:
    """Yield the names of a paginated list without duplicates. The names are not validated.

    `key` is the JSON key of the list on each page. A tag is yielded as a ListedTag if the page also has its digest.
    Raises NotFound if the list does not exist, and Refused if it is too long (too_many) or has an unsafe link to a next
    page (unsafe_link)."""
    return _ListReader(session, path, key, scope, work, paging).names()


class _ListReader:
    """A reader for one paginated list. It requests page after page until the list is complete."""

    def __init__(self, session: Session, path: str, key: str, scope: Scope, work: Work, paging: Paging) -> None:
        self._session = session
        self._path = path
        self._key = key
        self._scope = scope
        self._work = work
        self._paging = paging
        self._what = f"{session.settings.host}{path}"
        self._seen: set[str] = set()
        self._requested: set[str] = set()  # the paths of pages, with their queries
        self._empty_pages = 0  # number of consecutive empty pages
        self._greatest_first = False  # for an unsorted page, choose `last` by sort order before choosing by position

    def names(self) -> Iterator[str]:
        """Yield the names from all pages, without duplicates."""
        response = self._get_first_page()
        while True:
            names = _parse_names(response, self._what, self._key)
            new = self._new_names(names)
            yield from new
            linked_page = self._get_linked_page(response, names, new)
            if linked_page is not None:
                response = linked_page
                continue
            if not names:
                return
            unlinked_page = self._get_unlinked_page(names)
            if unlinked_page is None:
                return
            response = unlinked_page

    def _new_names(self, names: Sequence[str]) -> list[str]:
        """Return the names that were not on an earlier page. Raises Refused (too_many) if the list is too long."""
        new = [name for name in dict.fromkeys(names) if name not in self._seen]
        self._seen.update(new)
        if len(self._seen) > MAX_NAMES:
            raise Refused(f"the list at {self._what} has more than {MAX_NAMES} names", code="too_many")
        return new

    def _get_first_page(self) -> Response:
        """Request the first page. If the registry rejects the page size, request the page again without a size."""
        size = self._paging.size
        try:
            return self._get_page(self._page_destination(size))
        except RemoteError as error:
            if size is None or error.status not in _SIZE_REJECTED:
                raise
        # The registry uses its own page size (Quay responds with 413 to a large `n`).
        response = self._get_page(self._page_destination(None))
        self._paging.size = None
        if self._paging.next_size == PAGE_SIZE:
            self._paging.next_size = _SMALLER_SIZES[0]
        return response

    def _get_linked_page(self, response: Response, names: Sequence[str], new: Sequence[str]) -> Response | None:
        """Request the next page if `response` has a link to it; otherwise return None.

        Raises Refused if the link is unsafe (unsafe_link) or the links form a loop (too_many)."""
        link = next_link(response.headers.get_all("link"))
        if link is None:
            return None
        destination = self._session.url_policy.check_next_link(link, response.destination)
        if destination.target.partition("?")[0] != self._path:
            raise Refused(f"{self._what}: the link to the next page points to a different list", code="unsafe_link")
        self._empty_pages = 0 if names else self._empty_pages + 1
        if destination.target in self._requested or (names and not new) or self._empty_pages > MAX_EMPTY_PAGES:
            raise Refused(f"{self._what}: the links to next pages form a loop", code="too_many")
        self._paging.sends_links = True
        return self._get_page(destination)

    def _get_unlinked_page(self, names: Sequence[str]) -> Response | None:
        """Request the page after a page that contained `names` and had no Link header.

        Return None if the list is complete, or if the registry cannot continue it."""
        paging, count = self._paging, len(names)
        full = count in _FULL_PAGE_COUNTS or count == paging.next_size
        if not full and not paging.may_continue(count):
            return None
        has_ended, rejected = False, None
        for last in self._last_candidates(names):
            try:
                response = self._get_page_after(last)
            except RemoteError as error:
                if error.status not in _LAST_REJECTED:
                    raise
                rejected = error
                continue
            next_names = _parse_names(response, self._what, self._key)
            new_count = len(set(next_names) - self._seen)
            if new_count:
                paging.supports_last = True
                paging.shortest_cut = min(paging.shortest_cut or count, count)
                self._greatest_first ^= new_count * 2 < len(next_names)
                return response
            if next_link(response.headers.get_all("link")) is not None:
                return response
            if last != min(names) and set(next_names) == set(names):
                paging.supports_last = False  # the registry sent the same page again
                return None
            if next_names:
                paging.supports_last, has_ended = True, True
            if next_names == [names[-1]]:
                break
        if has_ended:
            paging.longest_complete = max(paging.longest_complete, count)
        elif rejected is not None:
            self._handle_rejected_last(rejected, count, full=full)
        return None

    def _last_candidates(self, names: Sequence[str]) -> list[str]:
        """Return the values of the query parameter `last` to try, in order, for the page after `names`.

        Some registries continue after the position of `last`, others with the names that sort after it. On an unsorted
        page, both the second-to-last and the second-greatest name are tried. The last name itself is not used, because
        some registries respond with 404 if no name follows. Only very short pages are continued after their last
        name."""
        at = -2 if len(names) >= _MIN_OVERLAP else -1
        ends = (names[at], sorted(names)[at])
        return list(dict.fromkeys(ends[::-1] if self._greatest_first else ends))

    def _handle_rejected_last(self, error: RemoteError, count: int, *, full: bool) -> None:
        """Raise `error`, with which the registry rejected the query parameter `last`, if the list may be incomplete.

        The list may be incomplete if the page of `count` names was full, or if the registry supports `last` and a name
        follows it. Otherwise the list is taken as complete."""
        has_next = count >= _MIN_OVERLAP  # at least the last name of the page follows `last`
        if full or (has_next and self._paging.supports_last):
            error.hint = error.hint or _HINTS[self._key]
            raise error
        if has_next:
            self._paging.supports_last = False

    def _get_page_after(self, last: str) -> Response:
        """Request the page after the name `last`, with the first page size that the registry accepts."""
        rejected: RemoteError | None = None
        for size in self._paging.sizes_to_try():
            try:
                response = self._get_page(self._page_destination(size, last))
            except RemoteError as error:
                if error.status not in _SIZE_REJECTED:
                    raise
                rejected = rejected or error
            else:
                self._paging.next_size = size
                return response
        raise rejected or RemoteError(f"{self._what}: the list cannot be continued after {last!r}")

    def _page_destination(self, size: int | None, last: str = "") -> Destination:
        """Return the URL of the page after the name `last`, or of the first page if `last` is empty.

        `size` is the requested number of names per page, or None to let the registry choose."""
        query = "&".join(
            part for part in (f"n={size}" if size else "", f"last={quote(last, safe='')}" if last else "") if part
        )
        return self._session.url_policy.destination(f"{self._path}?{query}" if query else self._path)

    def _get_page(self, destination: Destination) -> Response:
        """Request one page. Raises Refused (too_many) if a limit is exceeded, NotFound if the list does not exist."""
        if len(self._requested) >= MAX_PAGES:
            raise Refused(f"the list at {self._what} has more than {MAX_PAGES} pages", code="too_many")
        self._requested.add(destination.target)
        try:
            return self._session.call(
                "GET",
                destination,
                self._work,
                kind=self._key,
                scopes=(self._scope,),
                expect={200},
                limit=MAX_PAGE_BYTES,
            )
        except TooBig as error:
            raise Refused(error.what, hint=_HINTS[self._key], code="too_many", status=error.status) from error
        except NotFound as error:
            if not self._seen:
                raise
            # Raise RemoteError instead of NotFound, which callers would treat as an empty list.
            what = f"a later page of the list is missing: {error.what}"
            raise RemoteError(what, code=error.code, status=error.status) from error


def _tag_digests(manifests: Value) -> dict[str, Digest]:
    """Return the digest of each tag from the `manifest` object that GCR and Artifact Registry add to a list of tags.

    A tag that occurs under several digests is omitted, so that its digest is requested from the registry."""
    digests: dict[str, Digest] = {}
    ambiguous: set[str] = set()
    for text, entry in manifests.items() if isinstance(manifests, dict) else ():
        tags = entry.get("tag") if isinstance(entry, dict) else None
        try:
            digest = Digest.parse(text)
        except Refused:
            continue
        names = {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()
        ambiguous |= names & digests.keys()
        digests.update((tag, digest) for tag in names)
    return {tag: digest for tag, digest in digests.items() if tag not in ambiguous}


def _parse_names(response: Response, what: str, key: str) -> list[str]:
    """Return the names on a page. Raises RemoteError if the response is not a list of names."""
    try:
        document = strictjson.parse(response.body, what=f"the list at {what}", code="bad_response")
    except Refused as error:
        raise RemoteError(error.what, hint=error.hint, status=response.status) from error
    if not isinstance(document, dict):
        raise RemoteError(f"the response from {what} is not a list of {key}")
    names = document.get(key)
    if names is None:
        return []
    if not isinstance(names, list):
        raise RemoteError(f"the response from {what} is not a list of {key}")
    digests = _tag_digests(document.get("manifest"))
    texts = [name if isinstance(name, str) else repr(name) for name in names]
    return [ListedTag(text, digests[text]) if text in digests else text for text in texts] if digests else texts


def next_link(values: Sequence[str]) -> str | None:
    """Return the URL of the first link with the relation `next` in the Link headers `values`, or None."""
    for value in values:
        position = 0
        while match := _LINK.match(value, position):
            relations = _REL.search(match[2])
            if relations and "next" in (relations[1] or relations[2] or "").lower().split():
                return match[1]
            position = match.end()
    return None
