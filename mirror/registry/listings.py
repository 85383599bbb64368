"""Lists that come in pages: tags, the catalog.

Source: distribution-spec v1.1.1, "Listing Tags"; RFC 8288 for Link. Pages are followed as the registry links
them, on the same origin only, within bounds; a list that goes round in circles is refused. Some registries cut a
list without a Link ("silent" pages): a list that may be cut is continued after its last name but one. So an answer
without the last name shows that the registry does not know `last`, and never that the list has ended.
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
from mirror.registry.session import Answer, Session, TooBig
from mirror.util.cancellation import Work

# ECR refuses n > 1000 (google/go-containerregistry#1091); a registry with smaller pages sends a Link.
PAGE_SIZE = 1000
# Smaller page sizes, for a registry that refuses ours, tried in this order.
_SMALLER = (100, 50, 20, 10)
# Numbers of names that look like a full page: after one without a Link, more is asked for in every case.
_FULL = frozenset({50, 100, 200, 250, 500, PAGE_SIZE})
# The fewest names without a Link after which a registry that has not shown how it pages is asked for more.
LEAST_SILENT = 20
_SIZE_REFUSED = frozenset({400, 413, 416, 422})
_LAST_REFUSED = _SIZE_REFUSED | {404, 405, 501}
# The fewest names of a page that is continued after its last name but one: the next page may begin with that name.
_OVERLAPPING = 3
MAX_EMPTY_PAGES = 100  # in a row, each with a Link to the next one
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


class Paging:
    """How a registry pages one kind of list, as found in this run. Any thread.

    Not kept in the state: a note that a registry does not page silently, once it is wrong, would lose names."""

    def __init__(self) -> None:
        self.size: int | None = PAGE_SIZE  # the `n` to begin a list with; None: none, it refuses ours
        self.next_size: int | None = PAGE_SIZE  # the `n` to ask with for what follows a name
        self.links = False  # it has sent a Link to a next page
        self.takes_last: bool | None = None  # None: not known
        self.complete = 0  # the most names of a page without a Link that proved to be all of a list
        self.silent = 0  # the fewest names of a page without a Link that proved not to be all; 0: there was none

    @property
    def least(self) -> int:
        """The fewest names of a page without a Link that are worth asking if there are more."""
        least = LEAST_SILENT if self.size == PAGE_SIZE else 1
        return min(least, self.silent) if self.silent else least

    def may_continue(self, count: int) -> bool:
        """Whether a registry that sent `count` names and no Link may have more.

        A list that was complete proves that pages have at least as many names as it, and no more than that: a list as
        long as it, or longer, may still be cut, however many of that length were complete."""
        if self.silent:
            return count >= self.least
        if self.links or self.takes_last is False:
            return False
        return count >= max(self.least, self.complete)

    def sizes(self) -> list[int | None]:
        """What to give as `n` with `last`, in this order, until one is not refused."""
        if self.next_size is None:
            return [None]
        return [self.next_size, *(size for size in _SMALLER if size < self.next_size), None]


def listed(session: Session, path: str, key: str, scope: Scope, work: Work, paging: Paging) -> Iterator[str]:
    """Every text under `key` of every page, each once, unchecked; a ListedTag where the page tells its digest.

    Raises NotFound, Refused (too_many, unsafe_link)."""
    return _Listing(session, path, key, scope, work, paging).names()


class _Listing:
    """One list, read page by page."""

    def __init__(self, session: Session, path: str, key: str, scope: Scope, work: Work, paging: Paging) -> None:
        self._session = session
        self._path = path
        self._key = key
        self._scope = scope
        self._work = work
        self._paging = paging
        self._what = f"{session.settings.host}{path}"
        self._seen: set[str] = set()
        self._asked: set[str] = set()  # targets of requests
        self._empty = 0  # pages without a name, in a row
        self._greatest_first = False  # unsorted pages continue after their greatest name

    def names(self) -> Iterator[str]:
        answer = self._first()
        while True:
            names = _names(answer, self._what, self._key)
            fresh = self._fresh(names)
            yield from fresh
            following = self._linked(answer, names, fresh)
            if following is not None:
                answer = following
                continue
            if not names:
                return
            more = self._more(names)
            if more is None:
                return
            answer = more

    def _fresh(self, names: Sequence[str]) -> list[str]:
        """Those of a page that were not on an earlier one."""
        fresh = [name for name in dict.fromkeys(names) if name not in self._seen]
        self._seen.update(fresh)
        if len(self._seen) > MAX_NAMES:
            raise Refused(f"{self._what} lists more than {MAX_NAMES} names", code="too_many")
        return fresh

    def _first(self) -> Answer:
        size = self._paging.size
        try:
            return self._get(self._after(size))
        except RemoteError as error:
            if size is None or error.status not in _SIZE_REFUSED:
                raise
        answer = self._get(self._after(None))  # its own page size, then (Quay: 413 for a large n)
        self._paging.size = None
        if self._paging.next_size == PAGE_SIZE:
            self._paging.next_size = _SMALLER[0]
        return answer

    def _linked(self, answer: Answer, names: Sequence[str], fresh: Sequence[str]) -> Answer | None:
        """The next page, where the registry links to one. Raises Refused: unsafe_link, too_many."""
        link = next_link(answer.headers.all("link"))
        if link is None:
            return None
        where = self._session.trust.link(link, answer.destination)
        if where.target.partition("?")[0] != self._path:
            raise Refused(f"{self._what}: the next page is a list of something else", code="unsafe_link")
        self._empty = 0 if names else self._empty + 1
        if where.target in self._asked or (names and not fresh) or self._empty > MAX_EMPTY_PAGES:
            raise Refused(f"{self._what}: its pages do not advance", code="too_many")
        self._paging.links = True
        return self._get(where)

    def _more(self, names: Sequence[str]) -> Answer | None:
        """What follows a page without a Link; None: nothing, or nothing that this registry can be asked for."""
        paging, count = self._paging, len(names)
        full = count in _FULL or count == paging.next_size
        if not full and not paging.may_continue(count):
            return None
        ended, refused = False, None
        for last in self._ends(names):
            try:
                answer = self._following(last)
            except RemoteError as error:
                if error.status not in _LAST_REFUSED:
                    raise
                refused = error
                continue
            found = _names(answer, self._what, self._key)
            fresh = len(set(found) - self._seen)
            if fresh:
                paging.takes_last = True
                paging.silent = min(paging.silent or count, count)
                self._greatest_first ^= fresh * 2 < len(found)
                return answer
            if next_link(answer.headers.all("link")) is not None:
                return answer
            if last != min(names) and set(found) == set(names):
                paging.takes_last = False  # it sends the same page again
                return None
            if found:
                paging.takes_last, ended = True, True
            if found == [names[-1]]:
                break
        if ended:
            paging.complete = max(paging.complete, count)
        elif refused is not None:
            self._note_refusal(refused, count, full=full)
        return None

    def _ends(self, names: Sequence[str]) -> list[str]:
        """The names of a page to continue it after, in this order, until one leads to more.

        `last` is a position to some registries, a name to compare with to others: a page that is not sorted continues
        near its last name or near its greatest one. Each is the one before, which has a name after it in any case:
        some registries answer 404 where nothing follows. A page too short for that is continued after its last name."""
        at = -2 if len(names) >= _OVERLAPPING else -1
        ends = (names[at], sorted(names)[at])
        return list(dict.fromkeys(ends[::-1] if self._greatest_first else ends))

    def _note_refusal(self, error: RemoteError, count: int, *, full: bool) -> None:
        """`last` was refused after a page of `count` names. Raises `error`, unless that may be how the registry answers
        any `last`, or a `last` that nothing follows."""
        certain = count >= _OVERLAPPING  # that a name follows
        if full or (certain and self._paging.takes_last):
            error.hint = error.hint or _INSTEAD[self._key]
            raise error
        if certain:
            self._paging.takes_last = False

    def _following(self, last: str) -> Answer:
        """The page after the name `last`, with the first size that the registry takes."""
        refused: RemoteError | None = None
        for size in self._paging.sizes():
            try:
                answer = self._get(self._after(size, last))
            except RemoteError as error:
                if error.status not in _SIZE_REFUSED:
                    raise
                refused = refused or error
            else:
                self._paging.next_size = size
                return answer
        raise refused or RemoteError(f"{self._what} cannot be continued after {last!r}")

    def _after(self, size: int | None, last: str = "") -> Destination:
        query = "&".join(
            part for part in (f"n={size}" if size else "", f"last={quote(last, safe='')}" if last else "") if part
        )
        return self._session.trust.own(f"{self._path}?{query}" if query else self._path)

    def _get(self, where: Destination) -> Answer:
        if len(self._asked) >= MAX_PAGES:
            raise Refused(f"{self._what} has more than {MAX_PAGES} pages", code="too_many")
        self._asked.add(where.target)
        try:
            return self._session.call(
                "GET", where, self._work, kind=self._key, scopes=(self._scope,), expect={200}, limit=MAX_PAGE_BYTES
            )
        except TooBig as error:
            raise Refused(error.what, hint=_INSTEAD[self._key], code="too_many", status=error.status) from error
        except NotFound as error:
            if not self._seen:
                raise
            # Not "there is no such list", which callers take for an empty one.
            what = f"a later page of a list is missing: {error.what}"
            raise RemoteError(what, code=error.code, status=error.status) from error


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
