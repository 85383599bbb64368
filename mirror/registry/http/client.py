"""The HTTP client for a registry. It sends requests within the limits of each host and reads the responses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from types import TracebackType
from typing import TypeVar

from mirror.errors import MirrorError, NetworkError, Refused, RemoteError
from mirror.limits import HostLimits, Limits
from mirror.registry.http.connection import Connection, Timeouts
from mirror.registry.http.connector import Connector
from mirror.registry.http.exchange_log import Exchange
from mirror.registry.http.framing import ResponseBody, read_error_body, read_head, read_small
from mirror.registry.http.headers import Headers, ResponseHead, request_head
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.pool import ConnectionPool
from mirror.registry.http.protocol import ResponseParser
from mirror.registry.http.quota import parse_quota
from mirror.registry.http.request import Request, StreamedBody
from mirror.registry.http.request_body import send_body
from mirror.registry.http.url_policy import Destination, UrlPolicy
from mirror.util.bandwidth import HostThrottles, Throttle, limit_reads, throttle_body
from mirror.util.cancellation import Work
from mirror.util.files import Sleeper
from mirror.util.structs import Struct

_MAX_UNWATCHED_BODY = 64 << 10  # bytes; a body up to this size is sent without a check for an early response
_MAX_ERROR_BODY = 64 << 10  # bytes; a larger body of an error response is ignored
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Response(Struct, frozen=True):
    """A complete HTTP response. `destination` is the URL from which it was received, after any redirects.

    `request_id` is the id of the request in the log, or None if requests are not logged."""

    status: int
    headers: Headers
    body: bytes
    destination: Destination
    request_id: int | None = None


class ResponseStream(AbstractContextManager["ResponseStream"]):
    """A response whose headers have been received and whose body can still be read. Use it as a context manager.

    If it is closed before the whole body has been read, its connection is closed too."""

    def __init__(
        self,
        request: Request,
        head: ResponseHead,
        body: ResponseBody,
        *,
        client: HttpClient,
        exchange: Exchange,
        connection: Connection,
        stop_callback: AbstractContextManager[None],
        request_complete: bool,
        throttle: Throttle | None,
        sleeper: Sleeper,
    ) -> None:
        """Create a stream for the body of a response. The stream ends `exchange` when it is closed.

        `stop_callback` is a context manager that was already entered. Until `close` exits it, a stop request aborts the
        connection. `request_complete` is true if the whole request was sent before the response was received.
        `throttle` limits how fast `readinto` reads, with waits by `sleeper`."""
        self.status = head.status
        self.headers = head.headers
        self.request = request
        self._client = client
        self._exchange = exchange
        self._connection = connection
        self._head = head
        self._body = body
        self._stop_callback = stop_callback
        self._request_complete = request_complete
        self._throttle = throttle
        self._sleeper = sleeper
        self._open = True
        self._error_body: bytes | None = None

    @property
    def destination(self) -> Destination:
        """The URL to which the request was sent."""
        return self.request.destination

    @property
    def request_id(self) -> int | None:
        """The id of the request in the log, or None if requests are not logged."""
        return self._exchange.id

    def readinto(self, buffer: memoryview) -> int:
        """Read part of the body into `buffer`. Return the number of bytes read, or 0 at the end of the body.

        Also returns 0 if `buffer` is empty. Raises NetworkError (truncated, too_slow, net_error), RemoteError
        (malformed chunks), Cancelled."""
        if not buffer.nbytes:
            return 0
        if self._throttle is not None:
            buffer = limit_reads(buffer, self._throttle)
        try:
            count = self._body.readinto(buffer)
        except MirrorError as error:
            self._add_context(error)
            raise
        self._exchange.received += count
        if self._throttle is not None:
            self._throttle.wait(count, self._sleeper)
        return count

    def read(self, limit: int) -> Response:
        """Read the whole body, close the stream, and return the response.

        Raises TooBig if the body has more than `limit` bytes, and the errors that `readinto` raises."""
        with self:
            try:
                body = read_small(self._body, self._head, limit, self.request)
            except MirrorError as error:
                self._add_context(error)
                raise
            self._exchange.received = len(body)
        return Response(self.status, self.headers, body, self.request.destination, self.request_id)

    def _add_context(self, error: MirrorError) -> None:
        """Add the host and the id of the request to an error that occurred while the body was read."""
        self._client.set_error_host(error, self.request.destination)
        self._exchange.set_error(error)

    def read_error_body(self) -> bytes:
        """Return the body of an error response for use in messages, or an empty body if it cannot be read.

        The body is read by the first call; later calls return the same bytes. Raises Cancelled."""
        if self._error_body is None:
            self._error_body = read_error_body(self._body, self._head, _MAX_ERROR_BODY, self.request)
            self._exchange.received = len(self._error_body)
        return self._error_body

    def close(self) -> None:
        """Return the connection to the pool if the exchange is complete, otherwise close it. Later calls do nothing."""
        if not self._open:
            return
        self._open = False
        self._stop_callback.__exit__(None, None, None)
        self._exchange.end()
        keep = self._request_complete and self._body.is_reusable
        self._client.release(self._connection, self.request.destination, keep=keep)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


A = TypeVar("A", Response, ResponseStream)


class HttpClient:
    """The HTTP client for one registry and for other hosts to which that registry refers. Thread-safe."""

    def __init__(
        self,
        settings: HostSettings,
        url_policy: UrlPolicy,
        limits: Limits,
        connector: Connector,
        *,
        user_agent: str,
        deadline: float,
    ) -> None:
        """Create a client. `deadline` is the maximum duration of an exchange that is not streamed, in seconds."""
        self._name = settings.host
        self._url_policy = url_policy
        self._limits = limits
        self._idle_timeout = settings.idle_timeout
        self._deadline = deadline
        self._proxies = connector.proxies
        self._common_headers = (("User-Agent", user_agent), ("Accept-Encoding", "identity"))
        self._pool = ConnectionPool(connector.open, connector.check_address, keep=settings.parallel or 8)

    def limits_of(self, destination: Destination) -> HostLimits:
        """Return the limits (parallel requests, rate, pauses) for a destination's host."""
        return self._limits.host(self._host_name(destination))

    def _throttles(self) -> HostThrottles | None:
        """Return the bandwidth limits of the registry, which also apply to the hosts to which it redirects."""
        return self._limits.host(self._name).throttles

    def _host_name(self, destination: Destination) -> str:
        """Return the host name for limits, errors and logs. For the registry itself, it is the configured name."""
        origin = destination.origin
        return self._url_policy.name if origin == self._url_policy.api else origin.netloc

    def send(self, request: Request, work: Work, *, streamed: bool = False) -> ResponseStream:
        """Send a request as soon as the limits of the host allow it, and read the response headers.

        If `streamed` is true, the response body may have any size and no deadline, but it must arrive at a minimum
        rate. If the peer has closed the idle connection that was used, a GET or HEAD is sent again on a new connection.
        Raises NetworkError, RemoteError, Refused, Cancelled. While requests to the host are suspended, raises the error
        that caused the suspension, without sending a request."""
        return self.run_within_limits(request, work, lambda: self._send_with_retry(request, work, streamed))

    def run_within_limits(self, request: Request, work: Work, run: Callable[[], A]) -> A:
        """Wait until the limits of the host allow `request`, send it by calling `run`, and record the outcome.

        Returns the response from `run`. Raises the errors of `run`, and Cancelled. While requests to the host are
        suspended, raises the error that caused the suspension, without calling `run`."""
        destination = request.destination
        limits = self.limits_of(destination)
        probes = limits.check_available(f"{request.method} {request.kind}")
        wait = limits.reserve_start()
        if wait > 0.0 and not work.urgent:
            work.stop.sleep(wait)
            self._limits.add_limit_wait(wait)
        work.stop.raise_if_requested()
        try:
            response = run()
        except MirrorError as error:
            self.set_error_host(error, destination)
            raise
        limits.record_response(f"{request.method} {request.kind}", response.status, probe=probes)
        limits.count_response(response.status, parse_quota(response.headers))
        return response

    def set_error_host(self, error: MirrorError, destination: Destination) -> None:
        """Set `error.host` to the host of `destination`, unless the error already names a host."""
        error.host = error.host or self._host_name(destination)

    def release(self, connection: Connection, destination: Destination, *, keep: bool) -> None:
        """Return a connection to the pool, or close it if `keep` is false."""
        if keep:
            self._pool.release(destination, connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close idle connections. A connection in use is closed when its response is closed."""
        self._pool.close()

    def _send_with_retry(self, request: Request, work: Work, streamed: bool) -> ResponseStream:
        """Send a request. Retry a GET or HEAD once if the peer has closed the idle connection that was used."""
        with self.start_exchange(request) as exchange:
            connection = self._pool.acquire(request.destination, work.stop)
            try:
                return self._send_on_connection(connection, request, work, exchange, streamed)
            except NetworkError as error:
                was_closed = connection.reused and not connection.received_any
                retry = was_closed and request.method in _SAFE_METHODS and error.code in ("net_error", "truncated")
                if not retry:
                    raise
                exchange.end(error)
        with self.start_exchange(request) as exchange:
            connection = self._pool.acquire(request.destination, work.stop, fresh=True)
            return self._send_on_connection(connection, request, work, exchange, streamed)

    def start_exchange(self, request: Request) -> Exchange:
        """Return the exchange that logs a request and its response."""
        return Exchange(request, self._host_name(request.destination))

    def _send_on_connection(
        self, connection: Connection, request: Request, work: Work, exchange: Exchange, streamed: bool
    ) -> ResponseStream:
        """Send a request on a connection and read the response headers. Closes the connection on errors."""
        stop_callback = work.stop.callback_on_stop(connection.abort)
        stop_callback.__enter__()
        try:
            deadline = monotonic() + (self._idle_timeout if streamed else self._deadline)
            connection.start_exchange(work.stop, Timeouts(self._idle_timeout, deadline), request)
            parser = ResponseParser(request.method, request, small=not streamed)
            request_complete = self._send_request(connection, parser, request, work.stop)
            self.limits_of(request.destination).count_request(f"{request.method} {request.kind}")
            head = read_head(connection, parser)
            exchange.set_response(head.status, head.headers)
            work.stop.raise_if_requested()
            if not request_complete and head.status < 300:
                text = f"{request}: status {head.status} was received before the whole request body was sent"
                raise RemoteError(text, retryable=True)
            if streamed:
                connection.set_timeouts(Timeouts(self._idle_timeout))
            body = ResponseBody(connection, parser)
            throttles = self._throttles() if streamed else None
            return ResponseStream(
                request,
                head,
                body,
                client=self,
                exchange=exchange,
                connection=connection,
                stop_callback=stop_callback,
                request_complete=request_complete,
                throttle=throttles.read if throttles else None,
                sleeper=work.stop,
            )
        except BaseException:
            stop_callback.__exit__(None, None, None)
            connection.close()
            raise

    def _send_request(self, connection: Connection, parser: ResponseParser, request: Request, sleeper: Sleeper) -> bool:
        """Send a request with its body. Return False if a response was received before the whole body was sent."""
        body = request.body
        head = self._request_head(request, body)
        if isinstance(body, bytes):
            if len(body) <= _MAX_UNWATCHED_BODY:
                connection.send(head + body)
                return True
            connection.send(head)
            return send_body(connection, parser, (body,), len(body))
        connection.send(head)
        connection.set_timeouts(Timeouts(self._idle_timeout))
        throttles = self._throttles()
        pieces = throttle_body(body.body, throttles.write, sleeper) if throttles else body.body
        complete = send_body(connection, parser, pieces, body.length)
        # After an upload, a registry may copy gigabytes before it sends the response.
        seconds = 2 * self._idle_timeout
        connection.set_timeouts(Timeouts(seconds, monotonic() + seconds))
        return complete

    def _request_head(self, request: Request, body: bytes | StreamedBody) -> bytes:
        """Return the request line and headers as bytes. Raises Refused (auth_failed) if a header cannot be sent."""
        origin, target = request.destination.origin, request.destination.target
        fields = [("Host", origin.netloc), *self._common_headers, *request.headers]
        if isinstance(body, StreamedBody):
            length = body.length
            fields.append(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length)))
        elif body or request.method in _BODY_METHODS:
            fields.append(("Content-Length", str(len(body))))
        proxy = self._proxies.forward_proxy_for(origin)
        if proxy is not None:
            target = f"{origin}{target}"
            if proxy.authorization:
                fields.append(("Proxy-Authorization", proxy.authorization))
        try:
            return request_head(request.method, target, fields)
        except ValueError as error:
            raise Refused(f"{request} cannot be sent: {error}", code="auth_failed") from None
