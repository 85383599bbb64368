"""Logs HTTP exchanges at level DEBUG: each request, its response, and how long it took.

`--trace-http` writes these records to a file (mirror/output/http_trace.py). Only the header fields on the lists below
are logged, and only the scheme of an `Authorization` field. The values in the queries of URLs are left out, except
those of known keys.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING

from mirror.errors import MirrorError, printable
from mirror.output.redaction import redact_urls
from mirror.registry.http.headers import Headers

if TYPE_CHECKING:
    from mirror.registry.http.request import Request

# The fields of requests and responses that are logged. The ids help the operators of registries to find a request.
REQUEST_FIELDS = frozenset({"accept", "content-range", "content-type", "range"})
RESPONSE_FIELDS = frozenset(
    (
        *("accept-ranges", "age", "cache-control", "connection", "content-encoding", "content-length", "content-range"),
        *("content-type", "date", "docker-content-digest", "docker-distribution-api-version", "etag", "link"),
        *("location", "oci-filters-applied", "oci-subject", "range", "ratelimit-limit", "ratelimit-remaining"),
        *("retry-after", "server", "transfer-encoding", "via", "warning", "www-authenticate"),
        *("cf-ray", "x-amz-cf-id", "x-amz-request-id", "x-amzn-requestid", "x-correlation-id", "x-github-request-id"),
        *("x-ms-correlation-request-id", "x-ms-request-id", "x-request-id"),
    )
)
_LONGEST_VALUE = 500  # characters
_SCHEMES = frozenset({"basic", "bearer", "token"})  # of Authorization fields
_AUTHORIZATION = frozenset({"authorization", "proxy-authorization"})

_numbers = itertools.count(1)
_log = logging.getLogger("mirror.http.exchange")  # mirror/output/http_trace.py uses the same name


class Exchange(AbstractContextManager["Exchange"]):
    """One HTTP exchange (a request and its response), which is logged when it ends. Used by one thread at a time.

    As a context manager, it ends the exchange if the block raises an exception.
    id: the number of the request in this process, or None if exchanges are not logged.
    received: the number of bytes of the response's body that were received."""

    __slots__ = ("_error", "_headers", "_host", "_request", "_started", "_status", "id", "received")

    def __init__(self, request: Request, host: str) -> None:
        """Start an exchange. host: the name of the host in limits and logs."""
        self.id = next(_numbers) if _log.isEnabledFor(logging.DEBUG) else None
        self.received = 0
        self._request: Request | None = request
        self._host = host
        self._started = monotonic()
        self._status: int | None = None
        self._headers: Headers | None = None
        self._error: BaseException | None = None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.end(error)

    def set_response(self, status: int, headers: Headers) -> None:
        """Record the head of the response."""
        self._status, self._headers = status, headers

    def set_error(self, error: BaseException) -> None:
        """Record that the exchange failed. The error gets the id of the request."""
        self._error = error
        if isinstance(error, MirrorError) and error.request_id is None:
            error.request_id = self.id

    def end(self, error: BaseException | None = None) -> None:
        """Log the exchange. Later calls do nothing. error: the error, if the exchange failed."""
        if error is not None:
            self.set_error(error)
        request, self._request = self._request, None
        if self.id is None or request is None:
            return
        failure = self._error
        code = None if failure is None else failure.code if isinstance(failure, MirrorError) else type(failure).__name__
        fields: dict[str, object] = {
            "request_id": self.id,
            "host": self._host,
            "method": request.method,
            "kind": request.kind,
            "url": redact_urls(f"{request.destination.origin}{request.destination.shown_target}"),
            "request_headers": _allowed_fields(request.headers, REQUEST_FIELDS),
            "status": self._status,
            "seconds": round(monotonic() - self._started, 4),
            "received": self.received,
            "code": code,
            "text": f"{request}: {self._status if failure is None else code}",
        }
        if self._headers is not None:
            fields["response_headers"] = _allowed_fields(self._headers, RESPONSE_FIELDS)
        if isinstance(failure, MirrorError):
            fields["error"] = failure.what
        _log.debug("request", extra=fields)


def _allowed_fields(headers: Iterable[tuple[str, str]], allowed: frozenset[str]) -> dict[str, str]:
    """Return the fields that may be logged, by lowercase name. The values of a repeated field are joined."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        if key in _AUTHORIZATION:
            scheme = value.partition(" ")[0].lower()
            found[key] = f"{scheme if scheme in _SCHEMES else 'other'} ***"
        elif key in allowed:
            text = redact_urls(printable(value, _LONGEST_VALUE))
            found[key] = f"{found[key]}, {text}"[:_LONGEST_VALUE] if key in found else text
    return found
