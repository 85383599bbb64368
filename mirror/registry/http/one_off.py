"""A client for one-off requests to services other than the registry itself, such as token services.

The library `requests` writes the requests, reads the responses and pools the connections. `Connector` opens the
connections, checks addresses and applies the TLS settings. Every wait ends on a stop request or at a deadline.
Importing `requests` takes 0.1 s, so this module is imported only when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from time import monotonic

import requests

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.registry.http.client import HttpClient, Response
from mirror.registry.http.connection import Timeouts
from mirror.registry.http.connector import Connector
from mirror.registry.http.framing import TooBig
from mirror.registry.http.headers import Headers
from mirror.registry.http.request import Request
from mirror.registry.http.requests_adapter import OneOffCall, RequestsAdapter, activate
from mirror.registry.http.status_errors import REDIRECTS
from mirror.registry.http.url_policy import UrlPolicy
from mirror.util.cancellation import Work
from mirror.util.structs import replace

_MAX_BODY = 64 << 10  # bytes of a response
_MAX_REDIRECTS = 5
_HTTP_1_1 = 11  # as urllib3 writes this version


class OneOffClient:
    """A client for the one-off requests that a registry's session sends to token services. Thread-safe.

    It must be closed after use."""

    def __init__(
        self,
        client: HttpClient,
        connector: Connector,
        url_policy: UrlPolicy,
        *,
        user_agent: str,
        idle: float,
        deadline: float,
    ) -> None:
        """Create a client. Each wait lasts at most `idle` seconds, and a whole exchange at most `deadline` seconds."""
        self._client = client
        self._connector = connector
        self._url_policy = url_policy
        self._idle_timeout = idle
        self._deadline = deadline
        self._session = requests.Session()
        self._session.trust_env = False  # ignores netrc, and proxies and CA bundles from environment variables
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.headers.clear()
        self._session.headers.update({"User-Agent": user_agent, "Accept-Encoding": "identity"})
        adapter = RequestsAdapter()
        for scheme in ("http", "https"):
            self._session.mount(f"{scheme}://", adapter)

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def send(
        self,
        request: Request,
        work: Work,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
    ) -> tuple[Request, Response]:
        """Send a request and follow redirects. Return the last request, exactly as sent, and its response.

        The response may have any status except a redirect. `params` are added to the query, `form` is sent as the body,
        and `basic` is a user name and password for Basic authentication. Only redirects of a GET within the same origin
        are followed. Raises NetworkError, RemoteError (bad_response), TooBig, Refused (unsafe_realm), Cancelled."""
        if (basic or form) and not request.destination.credentials:
            raise Refused(f"{request}: credentials must not be sent to this host", code="unsafe_realm")
        for _ in range(_MAX_REDIRECTS + 1):
            prepared = self._prepare(request, params, form, basic)
            response = self._client.run_within_limits(request, work, partial(self._send, prepared, request, work))
            if response.status not in REDIRECTS:
                return _request_as_sent(request, prepared), response
            location = response.headers.single("location", request)
            if request.method != "GET" or not location:
                text = f"{request}: cannot follow the redirect with status {response.status}"
                why = "the request is not a GET, or the redirect has no Location header"
                raise RemoteError(f"{text}: {why}", status=response.status)
            request, params = (
                request.with_destination(self._url_policy.check_token_redirect(location, response.destination)),
                (),
            )
        raise Refused(f"{request}: more than {_MAX_REDIRECTS} redirects", code="unsafe_realm")

    def _prepare(
        self,
        request: Request,
        params: Sequence[tuple[str, str]],
        form: Mapping[str, str] | None,
        basic: tuple[str, str] | None,
    ) -> requests.PreparedRequest:
        """Convert `request` for the library `requests`. Add the credentials for a forward proxy, if there is one."""
        origin = request.destination.origin
        proxy = self._connector.proxies.forward_proxy_for(origin)
        headers = {"Host": origin.netloc, **dict(request.headers)}
        if proxy is not None and proxy.authorization:
            headers["Proxy-Authorization"] = proxy.authorization
        return self._session.prepare_request(
            requests.Request(
                request.method,
                f"{origin}{request.destination.target}",
                headers=headers,
                params=list(params),
                data=dict(form) if form is not None else request.body if isinstance(request.body, bytes) else None,
                # Encoded as UTF-8 here, because `requests` would use Latin-1.
                auth=None if basic is None else (basic[0].encode("utf-8"), basic[1].encode("utf-8")),
            )
        )

    def _send(self, prepared: requests.PreparedRequest, request: Request, work: Work) -> Response:
        """Send a request and read the response. Retry a GET once if the peer has closed an idle connection."""
        timeouts = Timeouts(self._idle_timeout, monotonic() + self._deadline)
        call = OneOffCall(self._connector, self._client.limits_of(request.destination), request, work, timeouts)
        try:
            return self._send_once(prepared, call, work)
        except NetworkError as error:
            if (
                request.method != "GET"
                or not call.kept_connection_was_closed
                or error.code not in ("net_error", "truncated")
            ):
                raise
        call.may_reuse = False
        return self._send_once(prepared, call, work)

    def _send_once(self, prepared: requests.PreparedRequest, call: OneOffCall, work: Work) -> Response:
        """Send the request once, and read the response. Convert exceptions of `requests` to MirrorErrors."""
        request = call.request
        exchange = self._client.start_exchange(_request_as_sent(request, prepared))
        with exchange, work.stop.callback_on_stop(call.abort), activate(call):
            try:
                with self._session.send(prepared, allow_redirects=False, stream=True) as response:
                    exchange.set_response(response.status_code, Headers(response.raw.headers.iteritems()))
                    answer = _read_response(response, request)
            except requests.RequestException as error:
                work.stop.raise_if_requested()
                if call.peer_closed:
                    raise NetworkError(f"{request}: the response is truncated", code="truncated") from error
                raise RemoteError(f"{request}: the response is malformed", retryable=True) from error
            exchange.received = len(answer.body)
            exchange.end()
            return replace(answer, request_id=exchange.id)


def _read_response(response: requests.Response, request: Request) -> Response:
    """Read the body of a response and return the complete response.

    If the body of an error response is too large, an empty body is returned instead. Raises RemoteError
    (bad_response), TooBig."""
    status, raw = response.status_code, response.raw
    headers = Headers(raw.headers.iteritems())
    ends_with_connection = raw.version < _HTTP_1_1 or "close" in headers.tokens("connection")
    if not raw.chunked and raw.length_remaining is None and not ends_with_connection:
        raise RemoteError(f"{request}: the response has no Content-Length and is not chunked")
    body = bytearray()
    for piece in response.iter_content(_MAX_BODY + 1):
        body += piece
        if len(body) > _MAX_BODY:
            if status < 400:
                raise TooBig(f"{request}: the response is larger than {_MAX_BODY} bytes", status=status)
            return Response(status, headers, b"", request.destination)
    return Response(status, headers, bytes(body), request.destination)


def _request_as_sent(request: Request, prepared: requests.PreparedRequest) -> Request:
    """Return `request` with the query and headers that were sent, so that their secrets can be hidden in errors."""
    destination = replace(request.destination, target=prepared.path_url)
    return replace(request, destination=destination, headers=tuple(prepared.headers.items()))
