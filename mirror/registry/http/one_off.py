"""Single calls to other services by requests, token services first.

requests writes requests, reads responses and keeps connections. It gets them from our connector, so that addresses are
checked, TLS is as the operator set it, and a stop or a deadline reaches every wait. Importing it takes 0.1 s: import
this module where it is needed.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from time import monotonic
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from mirror.errors import NetworkError, Refused, RemoteError
from mirror.limits import HostLimits
from mirror.registry.http.client import Exchange, Request, Response
from mirror.registry.http.connection import Connection, Pace
from mirror.registry.http.connector import Connector
from mirror.registry.http.framing import TooBig
from mirror.registry.http.headers import Headers
from mirror.registry.http.pool import MOST_IDLE
from mirror.registry.http.protocol import MAX_HEAD
from mirror.registry.http.status_errors import REDIRECTS
from mirror.registry.http.url_policy import Trust
from mirror.util.cancellation import Work
from mirror.util.structs import replace

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LARGEST = 64 << 10  # bytes of a response
_MOST_HOPS = 5
_KEPT = 8  # idle connections to an origin


class OneOffs:
    """The calls of one registry's session. Any thread. Close it."""

    def __init__(
        self, exchange: Exchange, connector: Connector, trust: Trust, *, user_agent: str, idle: float, deadline: float
    ) -> None:
        """idle: seconds that one wait may last; deadline: seconds for a whole exchange."""
        self._exchange = exchange
        self._connector = connector
        self._trust = trust
        self._idle = idle
        self._deadline = deadline
        self._session = requests.Session()
        self._session.trust_env = False  # no netrc, no proxies, no CA bundle of the environment
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.headers.clear()
        self._session.headers.update({"User-Agent": user_agent, "Accept-Encoding": "identity"})
        adapter = _Adapter()
        for scheme in ("http", "https"):
            self._session.mount(f"{scheme}://", adapter)

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    def perform(
        self,
        request: Request,
        work: Work,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
    ) -> tuple[Request, Response]:
        """Send `request` with `params` added to its query, `form` as its body, and a login. A GET is redirected within
        its origin. -> the last request as it was sent, and its response, whatever its status.

        Raises NetworkError, RemoteError (bad_response), TooBig, Refused (unsafe_realm), Cancelled."""
        if (basic or form) and not request.destination.credentials:
            raise Refused(f"{request}: credentials do not go there", code="unsafe_realm")
        for _ in range(_MOST_HOPS + 1):
            prepared = self._prepared(request, params, form, basic)
            response = self._exchange.in_turn(request, work, partial(self._send, prepared, request, work))
            if response.status not in REDIRECTS:
                return _as_sent(request, prepared), response
            location = response.headers.one("location")
            if request.method != "GET" or not location:
                raise RemoteError(f"{request}: {response.status}: redirect not usable", status=response.status)
            request, params = request.to(self._trust.token_redirect(location, response.destination)), ()
        raise Refused(f"{request}: more than {_MOST_HOPS} redirects", code="unsafe_realm")

    def _prepared(
        self,
        request: Request,
        params: Sequence[tuple[str, str]],
        form: Mapping[str, str] | None,
        basic: tuple[str, str] | None,
    ) -> requests.PreparedRequest:
        origin = request.destination.origin
        proxy = self._connector.proxies.forwarder_for(origin)
        headers = {"Host": origin.netloc, **dict(request.headers)}
        if proxy is not None and proxy.authorization:
            headers["Proxy-Authorization"] = proxy.authorization
        return self._session.prepare_request(
            requests.Request(
                request.method,
                f"{origin}{request.destination.target}",
                headers=headers,
                params=list(params),
                data=None if form is None else dict(form),
                # In UTF-8: requests would encode it in Latin-1.
                auth=None if basic is None else (basic[0].encode("utf-8"), basic[1].encode("utf-8")),
            )
        )

    def _send(self, prepared: requests.PreparedRequest, request: Request, work: Work) -> Response:
        """Send it. A GET on a kept connection that the peer was just closing is sent once more, on a new one."""
        pace = Pace(self._idle, monotonic() + self._deadline)
        call = _Call(self._connector, self._exchange.host(request.destination), request, work, pace)
        try:
            return self._send_once(prepared, call, work)
        except NetworkError as error:
            if request.method != "GET" or not call.met_end_of_kept or error.code not in ("net_error", "truncated"):
                raise
        call.keeps = False
        return self._send_once(prepared, call, work)

    def _send_once(self, prepared: requests.PreparedRequest, call: _Call, work: Work) -> Response:
        request = call.request
        with work.stop.callback_on_stop(call.abort):
            _current.call = call
            try:
                with self._session.send(prepared, allow_redirects=False, stream=True) as response:
                    return _read(response, request)
            except requests.RequestException as error:
                work.stop.raise_if_requested()
                if call.ended:
                    raise NetworkError(f"{request}: the response was cut off", code="truncated") from error
                raise RemoteError(f"{request}: the response is malformed", retryable=True) from error
            finally:
                _current.call = None


def _read(response: requests.Response, request: Request) -> Response:
    status, raw = response.status_code, response.raw
    headers = Headers(raw.headers.iteritems())
    if not raw.chunked and raw.length_remaining is None and "close" not in headers.listed("connection"):
        raise RemoteError(f"{request}: a response does not say how long it is")
    body = bytearray()
    for piece in response.iter_content(_LARGEST + 1):
        body += piece
        if len(body) > _LARGEST:
            if status < 400:
                raise TooBig(f"{request}: a response is bigger than {_LARGEST} bytes", status=status)
            return Response(status, headers, b"", request.destination)
    return Response(status, headers, bytes(body), request.destination)


def _as_sent(request: Request, prepared: requests.PreparedRequest) -> Request:
    """With the query and headers that were sent: a message about the response must hide what it repeats of them."""
    destination = replace(request.destination, target=prepared.path_url)
    return replace(request, destination=destination, headers=tuple(prepared.headers.items()))


class _Call:
    """One call, from the request to the end of its response.

    ended: the peer ended the connection. keeps: a kept connection may be used."""

    def __init__(self, connector: Connector, host: HostLimits, request: Request, work: Work, pace: Pace) -> None:
        self.request = request
        self.whole_url = connector.proxies.forwarder_for(request.destination.origin) is not None
        self.ended = False
        self.keeps = True
        self._connector = connector
        self._host = host
        self._work = work
        self._pace = pace
        self._connection: Connection | None = None
        self._kept = False

    def open(self) -> Connection:
        """A new connection. Raises as `Connector.open` does."""
        return self._connector.open(self.request.destination, self._work.stop)

    def begin(self, connection: Connection) -> None:
        """Use `connection`, new or kept. Raises Refused."""
        destination = self.request.destination
        if destination.server_named and connection.peer is not None:
            self._connector.check(destination, connection.peer)
        self._kept = connection.reused
        connection.begin(self._work.stop, self._pace, self.request)
        self._connection = connection

    @property
    def met_end_of_kept(self) -> bool:
        """Whether a kept connection was used, and not a byte of a response came."""
        return self._kept and self._connection is not None and not self._connection.heard

    def note_sent(self) -> None:
        """Count the request."""
        self._host.count_request(f"{self.request.method} {self.request.kind}")

    def abort(self) -> None:
        """Wake the thread that waits for the response. Any thread."""
        if self._connection is not None:
            self._connection.abort()


class _Current(threading.local):
    call: _Call | None = None


_current = _Current()


def _calling() -> _Call:
    call = _current.call
    if call is None:
        raise RuntimeError("a connection is used outside of a call")
    return call


class _Adapter(HTTPAdapter):
    def __init__(self) -> None:
        super().__init__(max_retries=0)
        self._lock = threading.Lock()
        self._pools: dict[object, _Pool] = {}

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """The pool of the origin; kept apart where our client certificate is shown."""
        destination = _calling().request.destination
        key = (destination.origin, destination.credentials)
        with self._lock:
            if key not in self._pools:
                self._pools[key] = _Pool(destination.origin.host, destination.origin.port, maxsize=_KEPT)
            return self._pools[key]

    def cert_verify(self, *_: Any) -> None:
        """The connector does it."""

    def request_url(self, request: requests.PreparedRequest, _: Any) -> str:
        return str(request.url) if _calling().whole_url else request.path_url

    def close(self) -> None:
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()


class _Connected(HTTPConnection):
    """An HTTP connection over one that our connector opens, with TLS or without."""

    sock: _Socket | None

    def request(self, *arguments: Any, **options: Any) -> None:
        call = _calling()
        sock = self.sock = self.sock or _Socket(call.open())
        call.begin(sock.connection)
        super().request(*arguments, **options)
        call.note_sent()

    @property
    def is_connected(self) -> bool:
        sock = self.sock
        if sock is None or not _calling().keeps or monotonic() > sock.idle_since + MOST_IDLE:
            return False
        return not sock.connection.stale()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connected


class _Socket:
    """A connection of ours as a socket: closed when its last user, the connection or a response, closes it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.idle_since = monotonic()
        self._users = 1

    def sendall(self, data: bytes) -> None:
        self.connection.send(data)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        self._users += 1
        return io.BufferedReader(_Received(self.connection, self.close))

    def settimeout(self, seconds: float | None) -> None:
        """The connection has bounds of its own."""

    def close(self) -> None:
        self.idle_since = monotonic()
        self._users -= 1
        if not self._users:
            self.connection.close()


class _Received(io.RawIOBase):
    """The bytes of a response. http.client takes an end inside the head for the head's; here it is an error."""

    def __init__(self, connection: Connection, close: Callable[[], None]) -> None:
        self._connection = connection
        self._close = close
        self._head: bytearray | None = bytearray()  # None: it is whole

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        count = self._connection.receive_into(view)
        if not count:
            _calling().ended = True
        if self._head is not None:
            self._head += view[:count]
            if b"\n\r\n" in self._head or b"\n\n" in self._head:
                self._head = None
            elif not count:
                raise NetworkError(f"{self._connection.subject}: the connection ended inside a head", code="truncated")
            elif len(self._head) > MAX_HEAD:
                raise RemoteError(f"{self._connection.subject}: the head of a response is too big")
        return count

    def close(self) -> None:
        if not self.closed:
            self._connection.end()
            self._close()
        super().close()
