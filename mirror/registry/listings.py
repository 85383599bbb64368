"""Reads lists in pages: tags and the catalog.

Sources: distribution-spec v1.1.1, "Listing Tags"; RFC 8288 for Link. The registry's links to next pages are followed on
the same origin only, within limits; a list whose links form a loop is an error. Some registries truncate a list without
a Link ("silent" paging). Therefore a list that may be truncated is continued after its last name but one. If the next
page lacks the last name, the registry does not support `last`; it does not mean that the list has ended.
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
# Numbers of names that indicate a full page. After such a page without a Link, the next one is always requested.
_FULL_PAGE_COUNTS = frozenset({50, 100, 200, 250, 500, PAGE_SIZE})
# The fewest names without a Link after which the next page is requested, if the paging of the registry is unknown.
MIN_SILENT_PAGE = 20
_SIZE_REJECTED = frozenset({400, 413, 416, 422})
_LAST_REJECTED = _SIZE_REJECTED | {404, 405, 501}
# The fewest names of a page that is continued after its last name but one. Shorter pages: after the last name.
_MIN_OVERLAP = 3
MAX_EMPTY_PAGES = 100  # in a row, each with a Link
# GCR and Artifact Registry ignore `n` and send all tags in one page, with 290 bytes per tag: 14 MiB for 50,000 tags.
MAX_PAGE_BYTES = 16 << 20
MAX_PAGES = 10_000
MAX_NAMES = 1_000_000
_HINTS = {
    "tags": "write `tags` as a list of names: they are requested one by one, without this list",
    "repositories": "write one mirror for each repository, without `*`",
}

_LINK = re.compile(r"\s*<([^<>]*)>((?:\s*;\s*[^\s=;,]+\s*(?:=\s*(?:\"(?:[^\"\\]|\\.)*\"|[^\s;,\"]*))?)*)\s*(?:,|$)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,\"]*))", re.IGNORECASE)


class Paging:
    """The paging behaviour of a registry for one kind of list, as observed in this run. Thread-safe.

    Not stored in the state: if "does not page silently" became wrong, names would be lost."""

    def __init__(self) -> None:
        self.size: int | None = PAGE_SIZE  # `n` for the first page; None: omit it, since the registry rejects PAGE_SIZE
        self.next_size: int | None = PAGE_SIZE  # `n` for a page after a name
        self.sends_links = False  # the registry has sent a Link to a next page
        self.supports_last: bool | None = None  # None: unknown
        self.longest_complete = 0  # the most names of a page without a Link that was a complete list
        self.shortest_cut = 0  # the fewest names of a page without a Link that was truncated; 0: there was none

    @property
    def min_to_continue(self) -> int:
        """The fewest names of a page without a Link after which the next page is requested."""
        minimum = MIN_SILENT_PAGE if self.size == PAGE_SIZE else 1
        return min(minimum, self.shortest_cut) if self.shortest_cut else minimum

    def may_continue(self, count: int) -> bool:
        """Return whether a page of `count` names without a Link may be truncated.

        A list that was complete proves only that pages may have that many names. A list of the same length or longer
        may still be truncated, however many complete lists of that length there were."""
        if self.shortest_cut:
            return count >= self.min_to_continue
        if self.sends_links or self.supports_last is False:
            return False
        return count >= max(self.min_to_continue, self.longest_complete)

    def sizes_to_try(self) -> list[int | None]:
        """Return the values of `n` to send with `last`, in order, until one is not rejected."""
        if self.next_size is None:
            return [None]
        return [self.next_size, *(size for size in _SMALLER_SIZES if size < self.next_size), None]


def list_names(session: Session, path: str, key: str, scope: Scope, work: Work, paging: Paging) -> Iterator[str]:
    """Yield each string under `key` of every page once, unchecked; a ListedTag if the page contains its digest.

    Raises NotFound, Refused (too_many, unsafe_link)."""
    return _ListReader(session, path, key, scope, work, paging).names()


class _ListReader:
    """Reads one list page by page."""

    def __init__(self, session: Session, path: str, key: str, scope: Scope, work: Work, paging: Paging) -> None:
        self._session = session
        self._path = path
        self._key = key
        self._scope = scope
        self._work = work
        self._paging = paging
        self._what = f"{session.settings.host}{path}"
        self._seen: set[str] = set()
        self._requested: set[str] = set()  # paths with queries
        self._empty_pages = 0  # in a row
        self._greatest_first = False  # continue unsorted pages after their greatest name first

    def names(self) -> Iterator[str]:
        """Yield the names of all pages."""
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
        """Return the names of a page that were not on an earlier page. Raises Refused (too_many)."""
        new = [name for name in dict.fromkeys(names) if name not in self._seen]
        self._seen.update(new)
        if len(self._seen) > MAX_NAMES:
            raise Refused(f"{self._what} lists more than {MAX_NAMES} names", code="too_many")
        return new

    def _get_first_page(self) -> Response:
        """Request the first page, without a page size if the registry rejects ours."""
        size = self._paging.size
        try:
            return self._get_page(self._page_destination(size))
        except RemoteError as error:
            if size is None or error.status not in _SIZE_REJECTED:
                raise
        response = self._get_page(
            self._page_destination(None)
        )  # use the registry's own page size (Quay: 413 for a large n)
        self._paging.size = None
        if self._paging.next_size == PAGE_SIZE:
            self._paging.next_size = _SMALLER_SIZES[0]
        return response

    def _get_linked_page(self, response: Response, names: Sequence[str], new: Sequence[str]) -> Response | None:
        """Request the next page if the registry links to one. Raises Refused (unsafe_link, too_many)."""
        link = next_link(response.headers.get_all("link"))
        if link is None:
            return None
        destination = self._session.url_policy.check_next_link(link, response.destination)
        if destination.target.partition("?")[0] != self._path:
            raise Refused(f"{self._what}: the link to the next page leads to another list", code="unsafe_link")
        self._empty_pages = 0 if names else self._empty_pages + 1
        if destination.target in self._requested or (names and not new) or self._empty_pages > MAX_EMPTY_PAGES:
            raise Refused(f"{self._what}: the links to next pages form a loop", code="too_many")
        self._paging.sends_links = True
        return self._get_page(destination)

    def _get_unlinked_page(self, names: Sequence[str]) -> Response | None:
        """Request the page after one without a Link; None if the list is complete or cannot be continued."""
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
        """Return the values of `last` to try after a page, in order.

        `last` is a position for some registries and a name to compare with for others, so an unsorted page is continued
        near its last name and near its greatest name. The last name but one is used because some registries answer 404
        if nothing follows; a page that is too short for that is continued after its last name."""
        at = -2 if len(names) >= _MIN_OVERLAP else -1
        ends = (names[at], sorted(names)[at])
        return list(dict.fromkeys(ends[::-1] if self._greatest_first else ends))

    def _handle_rejected_last(self, error: RemoteError, count: int, *, full: bool) -> None:
        """Handle the rejection of `last` after a page of `count` names.

        Raises `error`, unless the registry may reject any `last`, or one that nothing follows."""
        has_next = count >= _MIN_OVERLAP  # the last name itself follows `last`
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
        raise rejected or RemoteError(f"{self._what} cannot be continued after {last!r}")

    def _page_destination(self, size: int | None, last: str = "") -> Destination:
        """Return the URL of a page."""
        query = "&".join(
            part for part in (f"n={size}" if size else "", f"last={quote(last, safe='')}" if last else "") if part
        )
        return self._session.url_policy.destination(f"{self._path}?{query}" if query else self._path)

    def _get_page(self, destination: Destination) -> Response:
        """Request one page. Raises Refused (too_many), NotFound for the first page."""
        if len(self._requested) >= MAX_PAGES:
            raise Refused(f"{self._what} has more than {MAX_PAGES} pages", code="too_many")
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
            # Not a NotFound, which callers would take for an empty list.
            what = f"a later page of the list is missing: {error.what}"
            raise RemoteError(what, code=error.code, status=error.status) from error


def _tag_digests(manifests: Value) -> dict[str, Digest]:
    """Return the digests of tags, from the map of manifests that some registries add to a list of tags (GCR, Artifact
    Registry).

    A tag that occurs at several digests is left out, so that it is requested."""
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
    """Return the names on a page. Raises RemoteError."""
    try:
        document = strictjson.parse(response.body, what=f"the list at {what}", code="bad_response")
    except Refused as error:
        raise RemoteError(error.what, hint=error.hint, status=response.status) from error
    if not isinstance(document, dict):
        raise RemoteError(f"the response of {what} is not a list of {key}")
    names = document.get(key)
    if names is None:
        return []
    if not isinstance(names, list):
        raise RemoteError(f"the response of {what} is not a list of {key}")
    digests = _tag_digests(document.get("manifest"))
    texts = [name if isinstance(name, str) else repr(name) for name in names]
    return [ListedTag(text, digests[text]) if text in digests else text for text in texts] if digests else texts


def next_link(values: Sequence[str]) -> str | None:
    """Return the target of the first link with the relation `next`; None if there is none."""
    for value in values:
        position = 0
        while match := _LINK.match(value, position):
            relations = _REL.search(match[2])
            if relations and "next" in (relations[1] or relations[2] or "").lower().split():
                return match[1]
            position = match.end()
    return None
