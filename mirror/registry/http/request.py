"""An HTTP request to a registry."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.registry.http.url_policy import Destination
from mirror.util.structs import RedactedStruct, Struct, replace


class StreamedBody(Struct, frozen=True):
    """A request body that can be read only once. If `length` (in bytes) is None, the body is sent in chunks."""

    body: Iterable[bytes | memoryview]
    length: int | None


class Request(RedactedStruct, frozen=True):
    """An HTTP request. Statistics count requests by method and by `kind`, such as `manifest` or `blob`."""

    HIDDEN = ("headers", "body")

    method: str
    kind: str
    destination: Destination
    headers: tuple[tuple[str, str], ...] = ()  # may contain Authorization
    body: bytes | StreamedBody = b""

    def with_destination(self, destination: Destination) -> Request:
        """Return a copy of the request with a different destination."""
        return replace(self, destination=destination)

    def with_header(self, name: str, value: str | None) -> Request:
        """Return a copy of the request with an additional first header, or the request itself if `value` is None."""
        return self if value is None else replace(self, headers=((name, value), *self.headers))

    def __str__(self) -> str:
        return f"{self.method} {self.destination}"
