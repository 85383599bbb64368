"""Sends requests to a registry, with authorization, redirects, retries and limits.

There is one session per registry, and any thread may use it. Each method blocks until it is done, and raises Cancelled
when its `work` is stopped. All errors are MirrorErrors. A response status that is not in `expect` is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mirror import __version__
from mirror.errors import AuthError, MirrorError, Refused, RemoteError
from mirror.limits import HostLimits, Limits
from mirror.registry.auth.authorizer import Anonymous, Authorizer, Scope
from mirror.registry.http import status_errors
from mirror.registry.http.client import HttpClient, Response, ResponseStream
from mirror.registry.http.connector import Connector
from mirror.registry.http.framing import TooBig
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.lookups import Resolver, system_resolve
from mirror.registry.http.request import Request, StreamedBody
from mirror.registry.http.url_policy import Destination, UrlPolicy
from mirror.registry.retries import Retries, mark_exhausted
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy
from mirror.util.single_flight import LazyValue

if TYPE_CHECKING:
    from mirror.registry.http.cookies import CookieJar
    from mirror.registry.http.one_off import OneOffClient

__all__ = ["Anonymous", "Authorizer", "Response", "ResponseStream", "Scope", "Session", "TooBig"]

MAX_REDIRECTS = 5
_MAX_SMALL_BODY = 64 << 10  # bytes; the default limit of a response body
_REDIRECTED_METHODS = frozenset({"GET", "HEAD"})


class Session:
    """An HTTP session with one registry and the hosts it redirects to. Use it in a `with` block, or call `close`."""

    def __init__(
        self,
        settings: HostSettings,
        limits: Limits,
        *,
        authorizer: Authorizer | None = None,
        policy: Policy | None = None,
        user_agent: str = f"mirror/{__version__}",
        deadline: float = 120.0,
        resolve: Resolver = system_resolve,
        cookies: CookieJar | None = None,
        url_policy: UrlPolicy | None = None,
    ) -> None:
        """Create a session. `deadline` limits a small request, in seconds. If `cookies` is None, none are stored."""
        self.settings, self._limits, self._resolve = settings, limits, resolve
        self.url_policy = url_policy or UrlPolicy(settings)
        self.host: HostLimits = limits.host(self.url_policy.name)
        self.authorizer: Authorizer = authorizer or Anonymous()
        self.speaks_v2 = False  # the registry has sent a header with the v2 API version
        self._cookies = cookies
        self._policy = policy or Policy()
        self._connector = Connector(settings, self.url_policy, resolve=resolve)
        self._user_agent, self._deadline = user_agent, deadline
        self._client = HttpClient(
            settings, self.url_policy, limits, self._connector, user_agent=user_agent, deadline=deadline
        )
        self._retries = Retries(limits, self._policy, self.url_policy.name)
        self._one_off: LazyValue[OneOffClient] = LazyValue(lambda work: self._create_one_off_client())

    def open_api(self, url_policy: UrlPolicy, authorizer: Authorizer) -> Session:
        """Return a session for another API of the same registry, with the same settings. Close it after use."""
        return Session(
            self.settings,
            self._limits,
            authorizer=authorizer,
            policy=self._policy,
            user_agent=self._user_agent,
            deadline=self._deadline,
            resolve=self._resolve,
            url_policy=url_policy,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections. A connection that is in use is closed together with its response."""
        self._client.close()
        if one_off := self._one_off.value_if_created():
            one_off.close()

    def call(
        self,
        method: str,
        destination: str | Destination,
        work: Work,
        *,
        kind: str,
        scopes: tuple[Scope, ...] = (),
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        expect: Collection[int],
        limit: int = _MAX_SMALL_BODY,
    ) -> Response:
        """Send a small request, with retries if `work` allows them, and return the response.

        `destination` is a path on the registry, or a Destination that `url_policy` has accepted. `kind` names the
        request in statistics. GET and HEAD requests follow redirects, so the response may come from another host (see
        its `destination`). Raises TooBig if the response body is longer than `limit` bytes."""
        request = Request(method, kind, self._to_destination(destination), tuple(headers), body)
        send = partial(self._send_following_redirects, request, scopes, work, expect, streamed=False)
        return self._retries.run(lambda: send().read(limit), request, work)

    def stream(
        self,
        destination: str | Destination,
        work: Work,
        *,
        kind: str,
        scopes: tuple[Scope, ...] = (),
        headers: Sequence[tuple[str, str]] = (),
        expect: Collection[int] = (200, 206),
    ) -> ResponseStream:
        """Send a GET request, and return the response as a stream, for use in a `with` block. Does not retry."""
        request = Request("GET", kind, self._to_destination(destination), tuple(headers))
        stream = self._send_following_redirects(request, scopes, work, expect, streamed=True)
        coding = stream.headers.tokens("content-encoding")
        if coding and coding != ["identity"]:
            stream.close()
            text = f"{request}: the response has an unsupported content encoding: {', '.join(coding)}"
            raise RemoteError(text, status=stream.status)
        return stream

    def upload(
        self,
        method: str,
        destination: Destination,
        work: Work,
        *,
        kind: str,
        scopes: tuple[Scope, ...] = (),
        headers: Sequence[tuple[str, str]] = (),
        length: int | None,
        body: Iterable[bytes | memoryview],
        expect: Collection[int],
        limit: int = _MAX_SMALL_BODY,
    ) -> Response:
        """Send a request with a streamed body, without retries. If `length` (in bytes) is None, the body is chunked.

        If `body` raises, the connection is closed, so that the registry does not see a complete body. No more bytes are
        sent after an early response. After a 401, raises an AuthError, which is retryable if a retry can help."""
        request = Request(method, kind, destination, tuple(headers), StreamedBody(body, length))
        if not self._is_registry(destination):
            stream = self._client.send(request, work)
        else:
            stream, sent = self._send_authorized(request, scopes, work)
            reason = self._read_reason(stream, request, scopes, work, sent)
            if stream.status == 401 or status_errors.is_token_expired(stream.status, reason):
                error = self._handle_challenge(stream, scopes, sent, work)
                error.retryable = True
                raise error
            self._report_status(stream.status, scopes)
        if stream.status not in expect:
            raise self._read_error(stream, scopes)
        return stream.read(limit)

    def send_one_off(
        self,
        method: str,
        destination: Destination,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
        work: Work,
        kind: str = "token",
    ) -> Response:
        """Send a request to a token service that `url_policy.check_realm` has accepted, and return the response.

        The statuses 408, 425, 429 and 5xx are retried as in `call`. If they persist, they are raised as errors."""
        request = Request(method, kind, destination, (("Accept", "application/json"),))

        def attempt() -> Response:
            sent, response = self._one_off.get(work).send(request, work, params=params, form=form, basic=basic)
            if response.status in (408, 425, 429) or response.status >= 500:
                error = self._error_of(sent, response, response.body)
                self._retries.react_to_error(error, sent, self._client.limits_of(sent.destination).name)
                raise error
            return response

        return self._retries.run(attempt, request, work)

    def _create_one_off_client(self) -> OneOffClient:
        """Create the client for requests to token services."""
        from mirror.registry.http.one_off import OneOffClient  # noqa: PLC0415 (importing requests takes 0.1 s)

        options = {"idle": self.settings.idle_timeout, "deadline": self._deadline}
        return OneOffClient(self._client, self._connector, self.url_policy, user_agent=self._user_agent, **options)

    def error_for(self, response: Response, method: str, kind: str) -> MirrorError:
        """Return the error for a response whose status is expected, but which the caller rejects."""
        return self._error_of(Request(method, kind, response.destination), response, response.body)

    def mark_down_if_unreachable(self, error: MirrorError) -> None:
        """Mark the host as down if `error`, the last error of a transfer, shows that the host is unavailable."""
        self._retries.mark_down_if_unreachable(error)

    def _to_destination(self, path: str | Destination) -> Destination:
        """Return the destination for a path on the registry. A Destination is returned unchanged."""
        return path if isinstance(path, Destination) else self.url_policy.destination(path)

    def _send_following_redirects(
        self, request: Request, scopes: tuple[Scope, ...], work: Work, expect: Collection[int], *, streamed: bool
    ) -> ResponseStream:
        """Send a request, follow redirects to allowed URLs, and return the first response with an expected status."""
        for _ in range(MAX_REDIRECTS + 1):
            stream = self._send_with_renewal(request, scopes, work, streamed)
            if stream.status in expect:
                return stream
            if stream.status not in status_errors.REDIRECTS or request.method not in _REDIRECTED_METHODS:
                raise self._read_error(stream, scopes)
            with stream:
                stream.read_error_body()
                location = stream.headers.single("location", stream.request)
                if not location:
                    raise RemoteError(f"{stream.request}: the redirect has no Location header", status=stream.status)
                request = request.with_destination(self.url_policy.check_redirect(location, request.destination))
        raise Refused(f"{request}: more than {MAX_REDIRECTS} redirects", code="unsafe_redirect")

    def _send_with_renewal(
        self, request: Request, scopes: tuple[Scope, ...], work: Work, streamed: bool
    ) -> ResponseStream:
        """Send a request. After a 401 or an expired token, renew the credentials and send the request again."""
        if not self._is_registry(request.destination):
            return self._client.send(request, work, streamed=streamed)
        for may_renew in (True, self.settings.create is not None, False):  # a token may be older than its project
            stream, sent = self._send_authorized(request, scopes, work, streamed)
            reason = self._read_reason(stream, request, scopes, work, sent)
            if stream.status == 401 and status_errors.is_project_missing(reason):
                stream.close()
                self.authorizer.record_no_response(scopes)
                raise self._error_of(stream.request, stream, reason)
            if stream.status != 401 and not (may_renew and status_errors.is_token_expired(stream.status, reason)):
                break
            error = self._handle_challenge(stream, scopes, sent, work)
            if not may_renew:
                raise error
        self._report_status(stream.status, scopes)
        return stream

    def _send_authorized(
        self, request: Request, scopes: tuple[Scope, ...], work: Work, streamed: bool = False
    ) -> tuple[ResponseStream, str | None]:
        """Send a request with its `Authorization` header, and return the response and the value of that header."""
        with mark_exhausted:
            sent = self.authorizer.header(scopes, work)
        login_path = self.settings.login_path(scopes[0].repository if scopes else "")
        origin, cookies = request.destination.origin, self._cookies
        try:
            authorized = request.with_header("Authorization", sent)
            if cookies is not None:
                authorized = authorized.with_header("Cookie", cookies.header(origin, login_path))
            stream = self._client.send(authorized, work, streamed=streamed)
        except BaseException:
            self.authorizer.record_no_response(scopes)
            raise
        if not self.speaks_v2:
            self.speaks_v2 = status_errors.has_v2_version(stream.headers.get_all("docker-distribution-api-version"))
        if cookies is not None:
            cookies.store(origin, stream.headers.get_all("set-cookie"), login_path)
        return stream, sent

    def _handle_challenge(
        self, stream: ResponseStream, scopes: tuple[Scope, ...], sent: str | None, work: Work
    ) -> MirrorError:
        """Pass a rejection to the authorizer, and return it as an error. Raises AuthError if the rejection is final."""
        try:
            error = self._read_error(stream, scopes)
        except BaseException:
            self.authorizer.record_no_response(scopes)
            raise
        with mark_exhausted:
            self.authorizer.handle_challenge(scopes, stream.headers.get_all("www-authenticate"), sent, work)
        return error

    def _read_reason(
        self, stream: ResponseStream, request: Request, scopes: tuple[Scope, ...], work: Work, sent: str | None
    ) -> bytes:
        """Return the body of a 403, or of a 401 without a challenge. For other responses, return an empty body.

        A response to a HEAD request has no body. If the reason may be an expired password (ECR) or a missing project
        (Harbor, whose challenge is blank), a GET request is sent to obtain the reason."""
        fields = stream.headers.get_all("www-authenticate")
        if stream.status != 403 and (stream.status != 401 or any(field.strip() for field in fields)):
            return b""
        try:
            reason = stream.read_error_body()
            if request.method != "HEAD" or not (fields if stream.status == 401 else (sent or "").startswith("Basic ")):
                return reason
            stream.close()
            with_body = Request("GET", request.kind, request.destination, request.headers)
            with self._send_authorized(with_body, scopes, work)[0] as again:
                return again.read_error_body() if again.status == stream.status else b""
        except BaseException:
            stream.close()
            self.authorizer.record_no_response(scopes)
            raise

    def _report_status(self, code: int, scopes: tuple[Scope, ...]) -> None:
        """Report a status to the authorizer. A 429 or 5xx may come from a gateway, so it says nothing about access."""
        if code == 429 or code >= 500:
            self.authorizer.record_no_response(scopes)
        elif code != 401:
            self.authorizer.record_accepted(scopes, is_forbidden=code == 403)

    def _is_registry(self, destination: Destination) -> bool:
        """Return whether a destination is the registry itself. Credentials are sent to no other destination."""
        return destination.credentials and destination.origin in {self.url_policy.api, *self.url_policy.endpoints}

    def _read_error(self, stream: ResponseStream, scopes: tuple[Scope, ...]) -> MirrorError:
        """Read and close an error response, apply its effects on the host (such as a pause), and return the error."""
        with stream:
            error = self._error_of(stream.request, stream, stream.read_error_body())
        if isinstance(error, AuthError) and self._is_registry(stream.destination):
            error.account = self.authorizer.account(scopes)
        self._retries.react_to_error(error, stream.request, self._client.limits_of(stream.destination).name)
        return error

    def _error_of(self, request: Request, response: Response | ResponseStream, body: bytes) -> MirrorError:
        """Return the error for a response to `request`, without the secrets that its body may repeat."""
        error = status_errors.error_for(
            str(request),
            response.status,
            response.headers,
            status_errors.redact_body(body, request.headers, request.destination.target),
            host=self._client.limits_of(request.destination).name,
            longest_wait=self._policy.max_retry_after,
            writes=request.method not in _REDIRECTED_METHODS and request.kind != "token",
        )
        error.request_id = response.request_id
        if request.destination.named_by_server and isinstance(error, AuthError):
            # No credentials were sent to this host. If a signed URL has expired, a retry gets a new URL.
            error.code, error.retryable = "auth_denied", response.status == 403
        return error
