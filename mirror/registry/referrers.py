"""Lists the referrers of a manifest with the referrers API of a registry.

Source: distribution-spec v1.1.1, "Listing Referrers". A registry with this API responds with 200 even if there are no
referrers. A registry that rejects the path does not have the API, so no further list is requested for the same
repository in this run. This does not apply if the response says that the repository or the manifest does not exist.
Each repository is treated separately, because some repositories on a host may be caches of another registry, which may
lack the API. If a repository has listed referrers before, it has the API, so a later rejection is an error.

Requests never contain the filter `artifactType`, because some registries silently ignore it, and because one request
without a filter serves all types.
"""

from __future__ import annotations

from functools import partial

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import MAX_BYTES, OCI_INDEX, manifest_too_big_error, parse_manifest
from mirror.registry.auth.authorizer import Scope
from mirror.registry.http.status_errors import parse_error_document
from mirror.registry.http.url_policy import Destination
from mirror.registry.listings import MAX_EMPTY_PAGES, next_link
from mirror.registry.session import Response, Session, TooBig
from mirror.util.cancellation import Work
from mirror.util.single_flight import SingleFlight

MAX_REFERRERS = 10_000  # of one manifest
MAX_PAGES = 1_000
_LONGEST_EMPTY_LIST = 1024  # bytes
_HINT = "to copy the image without its signatures and other artifacts, set `referrers: false` for this mirror"
# The statuses with which registries without the API reject the path, as tested or reported.
_NO_API = frozenset({400, 404, 405, 501})
# With these codes, the response concerns one repository or manifest, so it says nothing about the registry.
_ABOUT_CONTENT = frozenset({"NAME_UNKNOWN", "MANIFEST_UNKNOWN"})


class ReferrersApi:
    """A client for the referrers API of one registry. Remembers which repositories support the API. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._first_requests: SingleFlight[str, None] = SingleFlight("the first request for a list of referrers")
        self._exists: dict[str, bool] = {}  # whether each repository has the API; no entry while it is unknown
        self._listed: set[str] = set()  # the repositories that have listed referrers

    def record_support(self, repository: str) -> None:
        """Record that a repository supports the API: the response to a push contained the header OCI-Subject."""
        self._exists[repository] = True

    def read_list(
        self, repository: str, digest: Digest, scopes: tuple[Scope, ...], work: Work
    ) -> list[Descriptor] | None:
        """Return the referrers of a manifest, or None if the repository does not support the API.

        Until this is known for the repository, only one request is sent at a time, and other callers wait. Raises
        Refused (too_many, unsafe_link, manifest_invalid) for an invalid list, and the errors of the registry."""
        while repository not in self._exists:
            results: list[list[Descriptor] | None] = []
            errors: list[MirrorError] = []

            def ask(results: list[list[Descriptor] | None], errors: list[MirrorError]) -> None:
                """Request the list for this caller, and add it to `results`, or its error to `errors`."""
                try:
                    results.append(self._request(repository, digest, scopes, work))
                except MirrorError as error:
                    errors.append(error)
                    raise

            try:
                self._first_requests.share(repository, partial(ask, results, errors), work.stop)
            except MirrorError:
                work.stop.raise_if_requested()
                if errors:  # otherwise the request of another caller failed, which concerns another list
                    raise
            if results:
                return results[0]
        return self._request(repository, digest, scopes, work) if self._exists[repository] else None

    def _request(
        self, repository: str, digest: Digest, scopes: tuple[Scope, ...], work: Work
    ) -> list[Descriptor] | None:
        """Request all pages of a list of referrers. Return None if the repository does not have the API."""
        path = f"/v2/{repository}/referrers/{digest}"
        what = f"the list of referrers of {self._session.settings.host}/{repository}@{digest}"
        destination = self._session.url_policy.destination(path)
        found: dict[Digest, Descriptor] = {}
        requested: set[str] = set()
        empty_pages = 0
        while True:
            requested.add(destination.target)
            may_lack_api = len(requested) == 1 and repository not in self._listed
            response = self._get(destination, what, scopes, work, may_lack_api=may_lack_api)
            if response.status != 200:
                if parse_error_document(response.body)[0] not in _ABOUT_CONTENT:
                    self._exists.setdefault(repository, False)  # if a response to a push has shown the API, it is kept
                return None
            page = _parse_page(response, what)
            found |= {one.digest: one for one in page}
            if len(found) > MAX_REFERRERS:
                raise Refused(f"{what} has more than {MAX_REFERRERS} entries", hint=_HINT, code="too_many")
            self._exists[repository] = True
            self._listed.add(repository)
            link = next_link(response.headers.get_all("link"))
            if link is None:
                return list(found.values())
            destination = self._session.url_policy.check_next_link(link, response.destination)
            if destination.target.partition("?")[0] != path:
                raise Refused(f"{what}: the link to the next page points to a different list", code="unsafe_link")
            empty_pages = 0 if page else empty_pages + 1
            if destination.target in requested or len(requested) >= MAX_PAGES or empty_pages > MAX_EMPTY_PAGES:
                raise Refused(
                    f"{what}: the list has too many pages, or its links form a loop", hint=_HINT, code="too_many"
                )

    def _get(
        self, destination: Destination, what: str, scopes: tuple[Scope, ...], work: Work, *, may_lack_api: bool
    ) -> Response:
        """Request one page. If `may_lack_api` is true, also return the responses of registries without the API."""
        try:
            return self._session.call(
                "GET",
                destination,
                work,
                kind="referrers",
                scopes=scopes,
                headers=(("Accept", OCI_INDEX),),
                expect={200, *_NO_API} if may_lack_api else {200},
                limit=MAX_BYTES,
            )
        except TooBig as error:
            raise manifest_too_big_error(what) from error
        except RemoteError as error:
            error.hint = error.hint or _HINT
            raise


def _parse_page(response: Response, what: str) -> tuple[Descriptor, ...]:
    """Return the referrers on one page. Raises RemoteError if it is not an index, Refused if an entry is invalid."""
    if len(response.body) <= _LONGEST_EMPTY_LIST and _is_empty(response.body, what):
        return ()
    content_type = response.headers.get("content-type") or ""
    index = parse_manifest(response.body, content_type, what=what)
    if index.media_type != OCI_INDEX:
        raise RemoteError(f"{what} is not an OCI index, but a {index.media_type}", hint=_HINT, status=response.status)
    if index.blobs:
        raise Refused(
            f"{what} names {index.blobs[0].digest}, but {index.blobs[0].media_type} is not the type of a manifest",
            hint=_HINT,
            code="manifest_invalid",
        )
    return index.children


def _is_empty(body: bytes, what: str) -> bool:
    """Return whether `manifests` in `body` is null, which some registries send instead of an empty list."""
    try:
        document = strictjson.parse(body, what=what)
    except Refused:
        return False  # the caller finds the same error
    return (
        isinstance(document, dict) and document.get("mediaType") == OCI_INDEX and document.get("manifests", 0) is None
    )
