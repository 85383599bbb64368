"""A client for registries that speak docker's old protocol, v1. It reads; nothing is ever written to one.

Sources: docker's registry API v1 and hub-registry specification, and what docker 1.10 does. What real servers do
otherwise is said where it matters; docs/old-registries.md has the list.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound, Refused, RemoteError, Unreachable
from mirror.oci.strictjson import Value
from mirror.registry.blobs import NO_RANGES
from mirror.registry.http.url_policy import Destination
from mirror.registry.session import Answer, Session, Stream, TooBig
from mirror.registry.v1 import parsing
from mirror.registry.v1.auth import ENDPOINT, IMAGES, INDEX, V1Authorizer, scopes
from mirror.registry.v1.layer_reader import LayerReader
from mirror.registry.v1.parsing import ImageJson
from mirror.util.cancellation import Work
from mirror.util.single_flight import Flights
from mirror.util.structs import Struct, replace

MAX_LIST_BYTES = 16 << 20  # tags, or images, of a repository
MAX_JSON_BYTES = 8 << 20  # of an image
MAX_ANCESTRY_BYTES = 64 << 10

T = TypeVar("T")


class _Opened(Struct, frozen=True):
    """A repository that its index was asked about. hosts: where its tags and images are, in the order to be asked."""

    hosts: tuple[Destination, ...]
    is_index: bool  # it answered as an index does


class V1Client:
    """One host. Thread-safe; closes its session when closed. Raises only MirrorErrors."""

    def __init__(self, session: Session, authorizer: V1Authorizer) -> None:
        self._session = session
        self._authorizer = authorizer
        authorizer.renew = self._ask_index
        self.host = session.settings.host
        self._lock = threading.Lock()
        self._spoken: bool | None = None  # whether it answered a ping; None: not asked yet
        self._opened: dict[str, _Opened | MirrorError] = {}
        self._pings: Flights[str, bool] = Flights(f"a ping of {self.host}")
        self._openings: Flights[str, _Opened] = Flights(f"the index of {self.host}")

    def close(self) -> None:
        self._session.close()

    def withhold(self, repository: str) -> None:
        """No credentials are shown for this repository: v2 refused them."""
        self._authorizer.withhold(repository)

    def speaks(self, repository: str, work: Work, *, ask_index: bool = True) -> bool:
        """Whether it is a v1 registry at all: it answers the ping of one, or, if that may be asked, its list of images.

        Raises what keeps us from knowing: network trouble, 5xx."""
        if self._ping(work) or not ask_index:
            return bool(self._spoken)
        try:
            return self._index(repository, work).is_index
        except (NotFound, Refused):
            return False

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Tag -> image id, both unchecked. Raises NotFound (none at all; some answer so for what is not there)."""
        self._ping(work)
        hosts = self._index(repository, work).hosts
        names = [repository] if "/" in repository else [repository, f"library/{repository}"]
        error: MirrorError | None = None
        for name in names:
            try:
                tags = self._tags(hosts, name, repository, work)
            except NotFound as missing:
                error = missing
                continue
            if tags:
                return tags
        raise error or NotFound(f"{self.host}/{repository} has no tags (v1)", status=404)

    def ancestry(self, repository: str, image_id: str, work: Work) -> tuple[str, ...]:
        """The image and its ancestors, the base last. Raises Refused (v1_invalid)."""
        answer = self._image(repository, image_id, "ancestry", MAX_ANCESTRY_BYTES, work)
        return parsing.chain_of(answer.body, image_id, self._what(image_id, "ancestry"))

    def image(self, repository: str, image_id: str, work: Work) -> ImageJson:
        """The JSON of one image. Raises Refused (v1_invalid)."""
        answer = self._image(repository, image_id, "json", MAX_JSON_BYTES, work)
        return parsing.image_of(answer, image_id, self._what(image_id, "json"))

    def layer(self, repository: str, image: ImageJson, work: Work, *, exact: bool) -> LayerReader:
        """The stored bytes of an image's layer; use with `with`. exact: what does not fit its checksum is refused."""
        hosts = self._index(repository, work).hosts
        what = self._what(image.id, "layer")

        def open_at(offset: int, size: int | None) -> Stream:
            """Whole, or the rest of `size` bytes."""
            # docker-registry gets a range without an end wrong.
            headers = () if size is None else (("Range", f"bytes={offset}-{size - 1}"),)
            return self._on_each(
                hosts,
                lambda host: self._session.stream(
                    replace(host, target=f"/v1/images/{image.id}/layer"),
                    work,
                    kind="v1-layer",
                    scopes=scopes(self._kind(host), repository),
                    headers=headers,
                    expect={200, 416} if size is None else {200, 206, *NO_RANGES},
                ),
            )

        return LayerReader(open_at, image.size, what, checked=exact and bool(image.checksums))

    # ---- is it one?

    def _ping(self, work: Work) -> bool:
        """Asked once. False: it does not answer as a v1 registry does, or wants a login even for that."""
        if self._spoken is None:
            self._pings.share("", lambda: self._ask_ping(work), work.stop)
        return bool(self._spoken)

    def _ask_ping(self, work: Work) -> bool:
        if self._spoken is not None:
            return self._spoken
        try:
            answer = self._session.call("GET", "/v1/_ping", work, kind="v1-ping", expect={200, 404, 405, 410, 501})
        except (AuthError, Refused) as error:
            if isinstance(error, Refused) and error.code != "unsafe_redirect":
                raise
            ping = None
        else:
            ping = parsing.ping_of(answer)
        if ping is not None:
            self._authorizer.standalone = ping.standalone
        self._spoken = ping is not None
        return self._spoken

    # ---- a repository's index

    def _index(self, repository: str, work: Work) -> _Opened:
        """Asked once for each repository. Raises what it raised then, but for what time may mend."""
        known = self._opened.get(repository)
        if known is None:
            return self._openings.share(repository, lambda: self._open(repository, work), work.stop)
        if isinstance(known, MirrorError):
            raise known.about(f"{self.host}/{repository}")
        return known

    def _open(self, repository: str, work: Work) -> _Opened:
        known = self._opened.get(repository)
        if isinstance(known, _Opened):
            return known
        try:
            opened = self._ask_index(repository, work)
        except MirrorError as error:
            if isinstance(error, AuthError | Refused):
                self._opened[repository] = error
            raise
        self._opened[repository] = opened
        return opened

    def _ask_index(self, repository: str, work: Work) -> _Opened:
        answer = self._session.call(
            "GET",
            f"/v1/repositories/{repository}/images",
            work,
            kind="v1-index",
            scopes=scopes(INDEX, repository),
            headers=(("X-Docker-Token", "true"),),
            # A registry beside its index has no such route: then its tags tell.
            expect={200, 404, 405, 501},
            limit=MAX_LIST_BYTES,
        )
        if answer.status != 200:
            return _Opened((self._session.trust.own("/"),), is_index=False)
        self._authorizer.took(repository, parsing.token_of(answer.headers))
        named = parsing.endpoints_of(answer.headers)
        hosts = dict.fromkeys(self._session.trust.endpoint(host) for host in named)
        return _Opened(tuple(hosts) or (self._session.trust.own("/"),), parsing.is_index(answer))

    # ---- tags and images

    def _tags(self, hosts: tuple[Destination, ...], name: str, repository: str, work: Work) -> dict[str, Value]:
        path = f"/v1/repositories/{name}/tags"

        def ask(host: Destination) -> dict[str, Value]:
            about = scopes(self._kind(host), repository)
            where = replace(host, target=path)
            answer = self._session.call(
                "GET", where, work, kind="v1-tags", scopes=about, expect={200}, limit=MAX_LIST_BYTES
            )
            return parsing.tags_of(answer.body, f"the list at {self.host}{path}")

        return self._on_each(hosts, ask)

    def _image(self, repository: str, image_id: str, part: str, limit: int, work: Work) -> Answer:
        what = self._what(parsing.check_id(image_id, f"{self.host}/{repository}"), part)
        hosts = self._index(repository, work).hosts

        def ask(host: Destination) -> Answer:
            where = replace(host, target=f"/v1/images/{image_id}/{part}")
            about = scopes(self._kind(host), repository)
            return self._session.call("GET", where, work, kind=f"v1-{part}", scopes=about, expect={200}, limit=limit)

        try:
            return self._on_each(hosts, ask)
        except NetworkError as error:
            if not isinstance(error, Unreachable):
                # The server in Node does so, and for an image whose parent it lacks.
                error.hint = error.hint or "the image may not be whole there: some servers then do not answer at all"
            raise
        except NotFound as error:
            raise NotFound(f"{what} is missing, although a tag leads to it: {error.what}", status=404) from error
        except RemoteError as error:
            if isinstance(error, TooBig):
                raise parsing.invalid(what, f"more than {limit} bytes") from error
            raise

    def _on_each(self, hosts: tuple[Destination, ...], ask: Callable[[Destination], T]) -> T:
        """The answer of the first host that has one. What is not there, who we are, and a broken line are answers."""
        for host in hosts[:-1]:
            try:
                return ask(host)
            except (NotFound, AuthError, NetworkError):
                raise
            except RemoteError:
                continue
        return ask(hosts[-1])

    def _kind(self, host: Destination) -> str:
        return IMAGES if host.origin == self._session.trust.api else ENDPOINT

    def _what(self, image_id: str, part: str) -> str:
        return f"{self.host}/v1/images/{image_id}/{part}"
