"""A client for docker's v1 protocol. It only reads.

Sources: docker's registry API v1 and hub-registry specification, and the behaviour of docker 1.10. Deviations of real
servers are noted where they matter, and listed in docs/old-registries.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound, Refused, RemoteError, Unreachable
from mirror.oci.strictjson import Value
from mirror.registry.blobs import NO_RANGE_STATUSES
from mirror.registry.http.url_policy import Destination
from mirror.registry.session import Response, ResponseStream, Session, TooBig
from mirror.registry.v1 import parsing
from mirror.registry.v1.auth import ENDPOINT, IMAGES, INDEX, V1Authorizer, v1_scopes
from mirror.registry.v1.layer_reader import LayerReader
from mirror.registry.v1.parsing import ImageJson
from mirror.util.cancellation import Work
from mirror.util.single_flight import SingleFlight
from mirror.util.structs import Struct, replace

MAX_LIST_BYTES = 16 << 20  # tags, or images, of a repository
MAX_JSON_BYTES = 8 << 20  # of an image
MAX_ANCESTRY_BYTES = 64 << 10

T = TypeVar("T")


class _IndexedRepository(Struct, frozen=True):
    """The response of the index about one repository.

    hosts: the hosts of its tags and images, in the order of requests. is_index: whether the response was
    that of an index."""

    hosts: tuple[Destination, ...]
    is_index: bool  # it answered as an index does


class V1Client:
    """A client of one v1 registry. Thread-safe; closes its session when closed. Raises only MirrorErrors."""

    def __init__(self, session: Session, authorizer: V1Authorizer) -> None:
        self._session = session
        self._authorizer = authorizer
        authorizer.renew = self._request_index
        self.host = session.settings.host
        self._lock = threading.Lock()
        self._answers_ping: bool | None = None  # None: no ping was sent yet
        self._indexes: dict[str, _IndexedRepository | MirrorError] = {}
        self._pings: SingleFlight[str, bool] = SingleFlight(f"a ping of {self.host}")
        self._index_loads: SingleFlight[str, _IndexedRepository] = SingleFlight(f"the index of {self.host}")

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def withhold_credentials(self, repository: str) -> None:
        """Send no credentials for this repository, because v2 rejected them."""
        self._authorizer.withhold_credentials(repository)

    def is_v1_registry(self, repository: str, work: Work, *, ask_index: bool = True) -> bool:
        """Return whether the host is a v1 registry.

        It is one if it answers the ping of v1 or, with `ask_index`, the request for the images of the repository.
        Raises errors that leave this open: NetworkError, and RemoteError for 5xx."""
        if self._ping(work) or not ask_index:
            return bool(self._answers_ping)
        try:
            return self._get_index(repository, work).is_index
        except (NotFound, Refused):
            return False

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Return a map from tag to image id, both unchecked. Raises NotFound, also if the repository has no tags."""
        self._ping(work)
        hosts = self._get_index(repository, work).hosts
        names = [repository] if "/" in repository else [repository, f"library/{repository}"]
        error: MirrorError | None = None
        for name in names:
            try:
                tags = self._get_tags(hosts, name, repository, work)
            except NotFound as missing:
                error = missing
                continue
            if tags:
                return tags
        raise error or NotFound(f"{self.host}/{repository} has no tags (v1)", status=404)

    def ancestry(self, repository: str, image_id: str, work: Work) -> tuple[str, ...]:
        """Return the ids of the image and its ancestors, the base last. Raises Refused (v1_invalid)."""
        response = self._get_image_part(repository, image_id, "ancestry", MAX_ANCESTRY_BYTES, work)
        return parsing.parse_ancestry(response.body, image_id, self._describe(image_id, "ancestry"))

    def image(self, repository: str, image_id: str, work: Work) -> ImageJson:
        """Return the JSON of one image. Raises Refused (v1_invalid)."""
        response = self._get_image_part(repository, image_id, "json", MAX_JSON_BYTES, work)
        return parsing.parse_image(response, image_id, self._describe(image_id, "json"))

    def open_layer(self, repository: str, image: ImageJson, work: Work, *, exact: bool) -> LayerReader:
        """Open the stored bytes of an image's layer; use with `with`.

        exact: a layer that does not match its checksum is an error."""
        hosts = self._get_index(repository, work).hosts
        what = self._describe(image.id, "layer")

        def open_at(offset: int, size: int | None) -> ResponseStream:
            """Open the whole layer (size is None), or the bytes from `offset` to the last of `size` bytes."""
            # docker-registry handles a range without an end incorrectly.
            headers = () if size is None else (("Range", f"bytes={offset}-{size - 1}"),)
            return self._request_from_any(
                hosts,
                lambda host: self._session.stream(
                    replace(host, target=f"/v1/images/{image.id}/layer"),
                    work,
                    kind="v1-layer",
                    scopes=v1_scopes(self._scope_kind(host), repository),
                    headers=headers,
                    expect={200, 416} if size is None else {200, 206, *NO_RANGE_STATUSES},
                ),
            )

        return LayerReader(open_at, image.size, what, checked=exact and bool(image.checksums))

    # ---- detection

    def _ping(self, work: Work) -> bool:
        """Return whether the host answers the ping of v1. Sends it once.

        False also if the host requires credentials for the ping."""
        if self._answers_ping is None:
            self._pings.share("", lambda: self._send_ping(work), work.stop)
        return bool(self._answers_ping)

    def _send_ping(self, work: Work) -> bool:
        """Send the ping, and store whether the host answers it."""
        if self._answers_ping is not None:
            return self._answers_ping
        try:
            response = self._session.call("GET", "/v1/_ping", work, kind="v1-ping", expect={200, 404, 405, 410, 501})
        except (AuthError, Refused) as error:
            if isinstance(error, Refused) and error.code != "unsafe_redirect":
                raise
            ping = None
        else:
            ping = parsing.parse_ping(response)
        if ping is not None:
            self._authorizer.standalone = ping.standalone
        self._answers_ping = ping is not None
        return self._answers_ping

    # ---- a repository's index

    def _get_index(self, repository: str, work: Work) -> _IndexedRepository:
        """Return the response of the index about a repository. Sends the request once.

        Refusals are stored and raised again; errors that may pass are not stored."""
        known = self._indexes.get(repository)
        if known is None:
            return self._index_loads.share(repository, lambda: self._load_index(repository, work), work.stop)
        if isinstance(known, MirrorError):
            raise known.with_subject(f"{self.host}/{repository}")
        return known

    def _load_index(self, repository: str, work: Work) -> _IndexedRepository:
        """Request the index of a repository, and store the response or the refusal."""
        known = self._indexes.get(repository)
        if isinstance(known, _IndexedRepository):
            return known
        try:
            index = self._request_index(repository, work)
        except MirrorError as error:
            if isinstance(error, AuthError | Refused):
                self._indexes[repository] = error
            raise
        self._indexes[repository] = index
        return index

    def _request_index(self, repository: str, work: Work) -> _IndexedRepository:
        """Request the index of a repository, and store its token."""
        response = self._session.call(
            "GET",
            f"/v1/repositories/{repository}/images",
            work,
            kind="v1-index",
            scopes=v1_scopes(INDEX, repository),
            headers=(("X-Docker-Token", "true"),),
            # A registry with a separate index does not have this route; its tag list then decides.
            expect={200, 404, 405, 501},
            limit=MAX_LIST_BYTES,
        )
        if response.status != 200:
            return _IndexedRepository((self._session.url_policy.destination("/"),), is_index=False)
        self._authorizer.store_token(repository, parsing.parse_token(response.headers))
        endpoints = parsing.parse_endpoints(response.headers)
        hosts = dict.fromkeys(self._session.url_policy.check_endpoint(host) for host in endpoints)
        return _IndexedRepository(
            tuple(hosts) or (self._session.url_policy.destination("/"),), parsing.is_index(response)
        )

    # ---- tags and images

    def _get_tags(self, hosts: tuple[Destination, ...], name: str, repository: str, work: Work) -> dict[str, Value]:
        """Request the tags of the repository `name` from its hosts."""
        path = f"/v1/repositories/{name}/tags"

        def request_from(host: Destination) -> dict[str, Value]:
            scopes = v1_scopes(self._scope_kind(host), repository)
            where = replace(host, target=path)
            response = self._session.call(
                "GET", where, work, kind="v1-tags", scopes=scopes, expect={200}, limit=MAX_LIST_BYTES
            )
            return parsing.parse_tags(response.body, f"the list at {self.host}{path}")

        return self._request_from_any(hosts, request_from)

    def _get_image_part(self, repository: str, image_id: str, part: str, limit: int, work: Work) -> Response:
        """Request one part of an image (`ancestry` or `json`), of at most `limit` bytes."""
        what = self._describe(parsing.check_id(image_id, f"{self.host}/{repository}"), part)
        hosts = self._get_index(repository, work).hosts

        def request_from(host: Destination) -> Response:
            where = replace(host, target=f"/v1/images/{image_id}/{part}")
            scopes = v1_scopes(self._scope_kind(host), repository)
            return self._session.call("GET", where, work, kind=f"v1-{part}", scopes=scopes, expect={200}, limit=limit)

        try:
            return self._request_from_any(hosts, request_from)
        except NetworkError as error:
            if not isinstance(error, Unreachable):
                # The Node server does not respond if it does not have the parent of the image.
                error.hint = (
                    error.hint
                    or "the image may be incomplete on the registry: some servers do not respond in this case"
                )
            raise
        except NotFound as error:
            raise NotFound(f"{what} is missing, although a tag refers to it: {error.what}", status=404) from error
        except RemoteError as error:
            if isinstance(error, TooBig):
                raise parsing.invalid_error(what, f"the response has more than {limit} bytes") from error
            raise

    def _request_from_any(self, hosts: tuple[Destination, ...], request_from: Callable[[Destination], T]) -> T:
        """Return the first usable response of `hosts`.

        A response 404, a refusal of credentials and a network error are final: the next host gets no request."""
        for host in hosts[:-1]:
            try:
                return request_from(host)
            except (NotFound, AuthError, NetworkError):
                raise
            except RemoteError:
                continue
        return request_from(hosts[-1])

    def _scope_kind(self, host: Destination) -> str:
        """Return the kind of scope for a request to `host`: the registry itself or another endpoint."""
        return IMAGES if host.origin == self._session.url_policy.api else ENDPOINT

    def _describe(self, image_id: str, part: str) -> str:
        """Return the subject of error messages about a part of an image."""
        return f"{self.host}/v1/images/{image_id}/{part}"
