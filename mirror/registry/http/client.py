"""One request on the wire and the response to it: turn taken at the host, connection had, whole head read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from time import monotonic
from types import TracebackType
from typing import TypeVar

from mirror.errors import MirrorError, NetworkError, Refused, RemoteError
from mirror.limits import HostLimits, Limits
from mirror.registry.http.connection import Connection, Pace
from mirror.registry.http.connector import Connector
from mirror.registry.http.framing import Body, read_beginning, read_head, read_small
from mirror.registry.http.headers import Head, Headers, request_head
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.pool import Pool
from mirror.registry.http.protocol import ResponseParser
from mirror.registry.http.request_body import send_body
from mirror.registry.http.url_policy import Destination, Trust
from mirror.util.cancellation import Work
from mirror.util.structs import RedactedStruct, Struct, replace

log = logging.getLogger("mirror.http")

_AT_ONCE = 64 << 10  # bytes: a body up to this goes out with its head, without a look for an early response
_ERROR_BODY = 64 << 10  # bytes
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_SAFE = frozenset({"GET", "HEAD"})


class Upload(Struct, frozen=True):
    """A body that can be had once. length: bytes; None: sent in chunks."""

    body: Iterable[bytes | memoryview]
    length: int | None


class Request(RedactedStruct, frozen=True):
    """kind: the noun under which it is counted, `manifest`."""

    HIDDEN = ("headers", "body")

    method: str
    kind: str
    destination: Destination
    headers: tuple[tuple[str, str], ...] = ()  # Authorization may be among them
    body: bytes | Upload = b""

    def to(self, destination: Destination) -> Request:
        return replace(self, destination=destination)

    def __str__(self) -> str:
        return f"{self.method} {self.destination}"


class Response(Struct, frozen=True):
    """A whole response. destination: of the last request, after redirects."""

    status: int
    headers: Headers
    body: bytes
    destination: Destination


class Stream(AbstractContextManager["Stream"]):
    """A response whose head has come, its body still to be read. Closed before the end, its connection is cut."""

    def __init__(
        self,
        request: Request,
        head: Head,
        body: Body,
        *,
        exchange: Exchange,
        connection: Connection,
        registered: AbstractContextManager[None],
        sent: bool,
    ) -> None:
        """sent: all of the request went out before its response came."""
        self.status = head.status
        self.headers = head.headers
        self.request = request
        self._exchange = exchange
        self._connection = connection
        self._head = head
        self._body = body
        self._registered = registered  # so that a stop reaches the connection
        self._sent = sent
        self._open = True
        self._beginning: bytes | None = None

    @property
    def destination(self) -> Destination:
        return self.request.destination

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer`; -> how many bytes; 0 only at the proven end.

        Raises NetworkError (truncated, too_slow, net_error), RemoteError (malformed chunks), Cancelled."""
        if not buffer.nbytes:
            return 0
        try:
            return self._body.readinto(buffer)
        except MirrorError as error:
            self._exchange.name(error, self.request.destination)
            raise

    def read(self, limit: int) -> Response:
        """All of it, and close. Raises TooBig besides."""
        with self:
            try:
                body = read_small(self._body, self._head, limit, self.request)
            except MirrorError as error:
                self._exchange.name(error, self.request.destination)
                raise
        return Response(self.status, self.headers, body, self.request.destination)

    def beginning(self) -> bytes:
        """What can be had of a small body that is only for people; again the same when asked again."""
        if self._beginning is None:
            self._beginning = read_beginning(self._body, self._head, _ERROR_BODY, self.request)
        return self._beginning

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._registered.__exit__(None, None, None)
        self._exchange.release(self._connection, self.request.destination, keep=self._sent and self._body.reusable)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


A = TypeVar("A", Response, Stream)


class Exchange:
    """Sends single requests for one registry's session. Thread-safe."""

    def __init__(
        self,
        settings: HostSettings,
        trust: Trust,
        limits: Limits,
        connector: Connector,
        *,
        user_agent: str,
        deadline: float,
    ) -> None:
        self._settings = settings
        self._trust = trust
        self._limits = limits
        self._idle = settings.idle_timeout
        self._deadline = deadline
        self._proxies = connector.proxies
        self._common = (("User-Agent", user_agent), ("Accept-Encoding", "identity"))
        self._pool = Pool(connector.open, connector.check, keep=settings.parallel or 8)

    def host(self, destination: Destination) -> HostLimits:
        """The limits of the host that a request goes to."""
        return self._limits.host(self._name(destination))

    def _name(self, destination: Destination) -> str:
        origin = destination.origin
        return self._settings.host if origin == self._trust.api else origin.netloc

    def send(self, request: Request, work: Work, *, streamed: bool = False) -> Stream:
        """Take the host's turn, send, and read the head of the response. streamed: the body may be big or endless.

        A GET or HEAD that met a kept connection which the peer was just closing is sent once more on a new one.
        Raises NetworkError, RemoteError, Refused, Cancelled, and the error of a host that is down."""
        return self.in_turn(request, work, lambda: self._on_some_connection(request, work, streamed))

    def in_turn(self, request: Request, work: Work, run: Callable[[], A]) -> A:
        """Wait until the host may be asked, call `run`, and note what came of it. Raises what `run` raises, Cancelled,
        and the error of a host that is down."""
        destination = request.destination
        limits = self.host(destination)
        probes = limits.check_available(f"{request.method} {request.kind}")
        wait = limits.reserve_start()
        if wait > 0.0 and not work.urgent:
            work.stop.sleep(wait)
            self._limits.add_queued(wait)
        work.stop.raise_if_requested()
        begun = monotonic()
        try:
            response = run()
        except MirrorError as error:
            if log.isEnabledFor(logging.DEBUG):
                self._note(request, error.code, begun)
            self.name(error, destination)
            raise
        limits.record_response(f"{request.method} {request.kind}", response.status, probe=probes)
        if log.isEnabledFor(logging.DEBUG):
            self._note(request, response.status, begun)
        return response

    def name(self, error: MirrorError, destination: Destination) -> None:
        """Note in `error` whose trouble it is."""
        error.host = error.host or self._name(destination)

    def release(self, connection: Connection, destination: Destination, *, keep: bool) -> None:
        if keep:
            self._pool.give(destination, connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it ends."""
        self._pool.close()

    def _on_some_connection(self, request: Request, work: Work, streamed: bool) -> Stream:
        connection = self._pool.take(request.destination, work.stop)
        try:
            return self._on(connection, request, work, streamed)
        except NetworkError as error:
            again = connection.reused and not connection.heard and request.method in _SAFE
            if not again or error.code not in ("net_error", "truncated"):
                raise
        return self._on(self._pool.take(request.destination, work.stop, fresh=True), request, work, streamed)

    def _on(self, connection: Connection, request: Request, work: Work, streamed: bool) -> Stream:
        registered = work.stop.callback_on_stop(connection.abort)
        registered.__enter__()
        try:
            until = monotonic() + (self._idle if streamed else self._deadline)
            connection.begin(work.stop, Pace(self._idle, until), request)
            parser = ResponseParser(request.method, request, small=not streamed)
            complete = self._say(connection, parser, request)
            self.host(request.destination).count_request(f"{request.method} {request.kind}")
            head = read_head(connection, parser)
            work.stop.raise_if_requested()
            if not complete and head.status < 300:
                raise RemoteError(f"{request}: answered {head.status} before it had the body", retryable=True)
            if streamed:
                connection.bound(Pace(self._idle))
            body = Body(connection, parser)
            return Stream(
                request, head, body, exchange=self, connection=connection, registered=registered, sent=complete
            )
        except BaseException:
            registered.__exit__(None, None, None)
            connection.close()
            raise

    def _say(self, connection: Connection, parser: ResponseParser, request: Request) -> bool:
        """Send the request. False: the response came before all of it was sent."""
        body = request.body
        head = self._head(request, body)
        if isinstance(body, bytes):
            if len(body) <= _AT_ONCE:
                connection.send(head + body)
                return True
            connection.send(head)
            return send_body(connection, parser, (body,), len(body))
        connection.send(head)
        connection.bound(Pace(self._idle))
        complete = send_body(connection, parser, body.body, body.length)
        # A registry may move gigabytes about before it answers.
        patience = 2 * self._idle
        connection.bound(Pace(patience, monotonic() + patience))
        return complete

    def _head(self, request: Request, body: bytes | Upload) -> bytes:
        origin, target = request.destination.origin, request.destination.target
        fields = [("Host", origin.netloc), *self._common, *request.headers]
        if isinstance(body, Upload):
            length = body.length
            fields.append(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length)))
        elif body or request.method in _WITH_BODY:
            fields.append(("Content-Length", str(len(body))))
        proxy = self._proxies.forwarder_for(origin)
        if proxy is not None:
            target = f"{origin}{target}"
            if proxy.authorization:
                fields.append(("Proxy-Authorization", proxy.authorization))
        try:
            return request_head(request.method, target, fields)
        except ValueError as error:
            raise Refused(f"{request} cannot be sent: {error}", code="auth_failed") from None

    def _note(self, request: Request, outcome: object, begun: float) -> None:
        log.debug(
            "%s: %s",
            str(request),
            outcome,
            extra={
                "event": "request",
                "method": request.method,
                "kind": request.kind,
                "host": self._name(request.destination),
                "path": request.destination.path,
                "status": outcome,
                "seconds": round(monotonic() - begun, 4),
            },
        )
