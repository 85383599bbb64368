"""A small client of v2 registries for the tests. It uses no product code, and does not follow redirects or retry.

The user agent of its requests (`access.OWN_AGENT`) excludes them from all counts of the registries' logs.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from tests.registries.access import OWN_AGENT

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
OCTETS = "application/octet-stream"

Authorize = Callable[[tuple[str, ...]], str | None]  # repositories -> value of the Authorization header


def sha256(data: bytes) -> str:
    """Return the digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry(Protocol):
    """The attributes that the test tools need of a registry, real or scripted."""

    name: str

    @property
    def host(self) -> str: ...

    @property
    def url(self) -> str: ...

    def client(self) -> Client: ...


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. headers: names in lower case; of duplicates, the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Unexpected(AssertionError):
    """A registry answered a request of this client with an unexpected status."""


class Client:
    """A keep-alive connection to a registry, for one thread. Use with `with`."""

    def __init__(
        self,
        host: str,
        *,
        tls: ssl.SSLContext | None = None,
        authorize: Authorize | None = None,
        agent: str = OWN_AGENT,
        timeout: float = 30,
    ) -> None:
        self.base = f"http{'s' if tls else ''}://{host}"
        self._agent, self._authorize = agent, authorize
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, timeout=timeout, context=tls)
            if tls
            else http.client.HTTPConnection(host, timeout=timeout)
        )
        self._used = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        repository: str = "",
        also: tuple[str, ...] = (),
        want: tuple[int, ...] = (),
    ) -> Response:
        """Send a request and read the response. path: from the root, or a URL on this host. repository, also: the
        repositories that access is needed to.

        Raises Unexpected unless the status is in `want`."""
        target = path if path.startswith("/") else _origin_form(path)
        sent = {"User-Agent": self._agent, **(headers or {})}
        allowed = self._authorize((repository, *also)) if self._authorize else None
        if allowed:
            sent.setdefault("Authorization", allowed)
        response = self._exchange(method, target, sent, body)
        if want and response.status not in want:
            raise Unexpected(f"{method} {self.base}{target}: {response.status} {response.body[:300]!r}, want {want}")
        return response

    def _exchange(self, method: str, target: str, headers: dict[str, str], body: bytes | None) -> Response:
        try:
            self._connection.request(method, target, body=body, headers=headers)
            response = self._connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()
            if not self._used:
                raise
            self._used = False  # the server had closed the idle connection: retry on a new one
            return self._exchange(method, target, headers, body)
        self._used = True
        data = response.read()
        return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, data)

    # ---- reading

    def tags(self, repository: str) -> list[str]:
        """Return every tag, sorted; empty if the repository does not exist."""
        found: list[str] = []
        path = f"/v2/{repository}/tags/list"
        for response in self._pages(path, repository):
            found += response.json().get("tags") or []
        return sorted(found)

    def repositories(self) -> list[str]:
        """Return the catalog, sorted."""
        found: list[str] = []
        for response in self._pages("/v2/_catalog?n=1000", ""):
            found += response.json().get("repositories") or []
        return sorted(found)

    def _pages(self, path: str, repository: str) -> Iterator[Response]:
        while path:
            response = self.ask("GET", path, repository=repository, want=(200, 404))
            if response.status == 404:
                return
            yield response
            link = response.headers.get("link", "")
            path = urljoin(self.base + path, link[1 : link.index(">")]) if link else ""

    def manifest(self, repository: str, reference: str) -> Response:
        """Return the exact bytes in their stored media type; status 404 if there are none."""
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        return self.ask("GET", f"/v2/{repository}/manifests/{reference}", headers=accept, repository=repository)

    def blob(self, repository: str, digest: str) -> Response:
        return self.ask("GET", f"/v2/{repository}/blobs/{digest}", repository=repository)

    def has_blob(self, repository: str, digest: str) -> bool:
        path = f"/v2/{repository}/blobs/{digest}"
        return self.ask("HEAD", path, repository=repository, want=(200, 404)).status == 200

    # ---- writing

    def put_blob(self, repository: str, data: bytes) -> str:
        """Upload a blob with one POST and one PUT. Return its digest."""
        opened = self.ask("POST", f"/v2/{repository}/blobs/uploads/", repository=repository, want=(202,))
        digest, location = sha256(data), urljoin(self.base, opened.headers["location"])
        location += f"{'&' if '?' in location else '?'}digest={digest}"
        sent = {"Content-Type": OCTETS}
        self.ask("PUT", location, headers=sent, body=data, repository=repository, want=(201,))
        return digest

    def mount(self, repository: str, digest: str, from_repository: str) -> bool:
        path = f"/v2/{repository}/blobs/uploads/?mount={digest}&from={from_repository}"
        response = self.ask("POST", path, repository=repository, also=(from_repository,), want=(201, 202))
        if response.status == 202:
            self.ask("DELETE", urljoin(self.base, response.headers["location"]), repository=repository)
        return response.status == 201

    def put_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> str:
        """Put a manifest. Return the digest that the registry reports."""
        path, sent = f"/v2/{repository}/manifests/{reference}", {"Content-Type": media_type}
        response = self.ask("PUT", path, headers=sent, body=body, repository=repository, want=(201,))
        return response.headers.get("docker-content-digest", sha256(body))

    def delete(self, repository: str, reference: str) -> int:
        """Delete a manifest by digest, or a tag if that is supported. Return the status."""
        return self.ask("DELETE", f"/v2/{repository}/manifests/{reference}", repository=repository).status


def _origin_form(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
