"""A read-only client for Docker's v1 registry protocol.

Sources: Docker's registry API v1 and hub-registry specification, and the behaviour of Docker 1.10.
docs/old-registries.md lists the deviations of real servers. Comments name the deviations that this module handles.
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
from mirror.registry.v1.auth import ENDPOINT, IMAGES, INDEX, LOGIN, V1Authorizer, v1_scopes
from mirror.registry.v1.layer_reader import LayerReader
from mirror.registry.v1.parsing import ImageJson
from mirror.util.cancellation import Work
from mirror.util.single_flight import SingleFlight
from mirror.util.structs import Struct, replace

MAX_LIST_BYTES = 16 << 20  # the limit for a list of tags or images
MAX_JSON_BYTES = 8 << 20  # the limit for the JSON of an image
MAX_ANCESTRY_BYTES = 64 << 10

T = TypeVar("T")


class _IndexedRepository(Struct, frozen=True):
    """The response of a v1 index for one repository.

    hosts: the hosts that serve the repository's tags and images, in the order in which they are tried. is_index:
    whether the response has the form that an index sends."""

    hosts: tuple[Destination, ...]
    is_index: bool


class V1Client:
    """A client for one v1 registry. Thread-safe. All errors are MirrorErrors. Closing the client closes its session."""

    def __init__(self, session: Session, authorizer: V1Authorizer) -> None:
        self._session = session
        self._authorizer = authorizer
        authorizer.renew = self._request_index
        authorizer.log_in = self._log_in
        self.host = session.settings.host
        self._lock = threading.Lock()
        self._answers_ping: bool | None = None  # None if no ping was sent yet
        self._indexes: dict[str, _IndexedRepository | MirrorError] = {}
        self._pings: SingleFlight[str, bool] = SingleFlight(f"the v1 ping of {self.host}")
        self._index_loads: SingleFlight[str, _IndexedRepository] = SingleFlight(f"the v1 index of {self.host}")

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def withhold_credentials(self, repository: str) -> None:
        """Stop sending credentials for this repository over v1, because they were rejected over v2."""
        self._authorizer.withhold_credentials(repository)

    def is_v1_registry(self, repository: str, work: Work, *, ask_index: bool = True) -> bool:
        """Return whether the host answers the v1 ping as a v1 registry does.

        If it does not and `ask_index` is set, return whether the host lists the images of the repository as a v1 index
        does. Raises NetworkError, or RemoteError for a 5xx status, if the result cannot be determined."""
        if self._ping(work) or not ask_index:
            return bool(self._answers_ping)
        try:
            return self._get_index(repository, work).is_index
        except (NotFound, Refused):
            return False

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Return the image id for each tag in a repository. Neither tags nor ids are validated.

        Raises NotFound if there are no tags."""
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
        raise error or NotFound(f"{self.host}/{repository} has no tags over v1", status=404)

    def ancestry(self, repository: str, image_id: str, work: Work) -> tuple[str, ...]:
        """Return the ids of the image and its ancestors, with the base image last.

        Raises Refused (v1_invalid) if the response is not a valid ancestry."""
        response = self._get_image_part(repository, image_id, "ancestry", MAX_ANCESTRY_BYTES, work)
        return parsing.parse_ancestry(response.body, image_id, self._describe(image_id, "ancestry"))

    def image(self, repository: str, image_id: str, work: Work) -> ImageJson:
        """Return the JSON of one image. Raises Refused (v1_invalid) if the response is not valid."""
        response = self._get_image_part(repository, image_id, "json", MAX_JSON_BYTES, work)
        return parsing.parse_image(response, image_id, self._describe(image_id, "json"))

    def open_layer(self, repository: str, image: ImageJson, work: Work, *, exact: bool) -> LayerReader:
        """Open an image's layer for reading, as the registry stores it. Use the result in a `with` block.

        exact: whether the caller treats a layer that does not match its checksum as an error."""
        hosts = self._get_index(repository, work).hosts
        what = self._describe(image.id, "layer")

        def open_at(offset: int, size: int | None) -> ResponseStream:
            """Open the layer at `offset`.

            size: the size of the whole layer in bytes, if it is read from an offset; None to read all of it."""
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
        """Return whether the host answers the v1 ping. The result is cached.

        A host that requires credentials for the ping is treated like a host that does not answer."""
        if self._answers_ping is None:
            self._pings.share("", lambda: self._send_ping(work), work.stop)
        return bool(self._answers_ping)

    def _send_ping(self, work: Work) -> bool:
        """Send the v1 ping, and cache whether the host answers it."""
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
        """Return the response of the v1 index for a repository. It is requested only once for each repository.

        Refusals are cached and raised again. Errors that may be temporary are not cached."""
        known = self._indexes.get(repository)
        if known is None:
            return self._index_loads.share(repository, lambda: self._load_index(repository, work), work.stop)
        if isinstance(known, MirrorError):
            raise known.with_subject(f"{self.host}/{repository}")
        return known

    def _load_index(self, repository: str, work: Work) -> _IndexedRepository:
        """Request a repository from the v1 index, and cache the response or the refusal."""
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
        """Request a repository from the v1 index, and store the token that the response contains."""
        response = self._session.call(
            "GET",
            f"/v1/repositories/{repository}/images",
            work,
            kind="v1-index",
            scopes=v1_scopes(INDEX, repository),
            headers=(("X-Docker-Token", "true"),),
            # A registry with a separate index does not have this route. Its tag list then shows what exists.
            expect={200, 404, 405, 501},
            limit=MAX_LIST_BYTES,
        )
        if response.status != 200:
            return _IndexedRepository((self._session.url_policy.destination("/"),), is_index=False)
        self._authorizer.store_token(repository, parsing.parse_token(response.headers))
        endpoints = parsing.parse_endpoints(response.headers)
        hosts = dict.fromkeys(self._session.url_policy.check_endpoint(host) for host in endpoints)
        return _IndexedRepository(
            tuple(hosts) or (self._session.url_policy.destination("/"),), parsing.is_index_response(response)
        )

    def _log_in(self, repository: str, work: Work) -> int:
        """Send the credentials for a repository with a request that concerns no repository, without retries.

        Return the status of the response: 200 or 401. Other responses are errors. Docker 1.10 sends this request for
        `docker login`."""
        scopes = v1_scopes(LOGIN, repository)
        try:
            response = self._session.call(
                "GET", "/v1/users/", work.without_retries(), kind="v1-login", scopes=scopes, expect={200}
            )
        except AuthError as error:
            return error.status or 0
        return response.status

    # ---- tags and images

    def _get_tags(self, hosts: tuple[Destination, ...], name: str, repository: str, work: Work) -> dict[str, Value]:
        """Request the tags of `name` from the first of `hosts` that responds.

        name: the repository name to request, which may have the prefix `library/`. repository: the name for which the
        credentials are looked up."""
        path = f"/v1/repositories/{name}/tags"

        def request_from(host: Destination) -> dict[str, Value]:
            """Request the tags from one host."""
            scopes = v1_scopes(self._scope_kind(host), repository)
            where = replace(host, target=path)
            response = self._session.call(
                "GET", where, work, kind="v1-tags", scopes=scopes, expect={200}, limit=MAX_LIST_BYTES
            )
            return parsing.parse_tags(response.body, f"the list at {self.host}{path}")

        return self._request_from_any(hosts, request_from)

    def _get_image_part(self, repository: str, image_id: str, part: str, limit: int, work: Work) -> Response:
        """Request one part of an image, `ancestry` or `json`, and return the response.

        Raises Refused (v1_invalid) if the id is invalid, or if the part is larger than `limit` bytes."""
        what = self._describe(parsing.check_id(image_id, f"{self.host}/{repository}"), part)
        hosts = self._get_index(repository, work).hosts

        def request_from(host: Destination) -> Response:
            """Request the part from one host."""
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
                    or "the image may be incomplete on the registry: some v1 servers then send no response at all"
                )
            raise
        except NotFound as error:
            text = f"{what} is missing, although a tag refers to this image: {error.what}"
            raise NotFound(text, status=404) from error
        except RemoteError as error:
            if isinstance(error, TooBig):
                raise parsing.invalid_error(what, f"the response has more than {limit} bytes") from error
            raise

    def _request_from_any(self, hosts: tuple[Destination, ...], request_from: Callable[[Destination], T]) -> T:
        """Call `request_from` for each host until one call succeeds, and return its result.

        After a RemoteError, the next host is tried, unless the error is a NotFound, AuthError or NetworkError."""
        for host in hosts[:-1]:
            try:
                return request_from(host)
            except (NotFound, AuthError, NetworkError):
                raise
            except RemoteError:
                continue
        return request_from(hosts[-1])

    def _scope_kind(self, host: Destination) -> str:
        """Return the kind of scope for a request: IMAGES if `host` is the registry itself, otherwise ENDPOINT."""
        return IMAGES if host.origin == self._session.url_policy.api else ENDPOINT

    def _describe(self, image_id: str, part: str) -> str:
        """Return the name of a part of an image for error messages."""
        return f"{self.host}/v1/images/{image_id}/{part}"
