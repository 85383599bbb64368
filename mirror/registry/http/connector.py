"""Opening connections: name, TCP, proxy, TLS, and a look at who is at the other end before a byte is said.

The connect timeout of a registry bounds all of it together. Nothing of the environment is consulted: no netrc, no
proxies, no CA bundles.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from time import monotonic

from mirror.errors import MirrorError, RemoteError, Unreachable
from mirror.registry.http.connection import Connection, Pace
from mirror.registry.http.dialer import LACKING, AbortableSockets, Dialer
from mirror.registry.http.framing import read_head
from mirror.registry.http.headers import request_head
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.lookups import AddressInfo, Lookups, Resolve, system_resolve
from mirror.registry.http.protocol import ResponseParser
from mirror.registry.http.proxy import Proxies, Proxy
from mirror.registry.http.tls import Handshakes
from mirror.registry.http.url_policy import Destination, Trust
from mirror.util.cancellation import Stop
from mirror.util.config_key import registry_key
from mirror.util.files import local_error

_LEAST = 0.001  # seconds: a timeout of 0 is none


class Connector:
    """Opens connections for one registry: to itself, its token service, and hosts that it leads to. Thread-safe."""

    def __init__(self, settings: HostSettings, trust: Trust, *, resolve: Resolve = system_resolve) -> None:
        self.proxies = Proxies(settings)
        self._settings = settings
        self._trust = trust
        self.lookups = Lookups(resolve)
        self._handshakes: Handshakes | None = None  # made twice is harmless

    def open(self, destination: Destination, stop: Stop) -> Connection:
        """Raises Unreachable, NetworkError, RemoteError (tls_error), Refused (tls_error, unsafe_*), LocalError,
        Cancelled."""
        attempt = _Attempt(self, destination, stop)
        with stop.callback_on_stop(attempt.sockets.abort):
            try:
                connection = attempt.run()
            except MirrorError:
                stop.raise_if_requested()
                raise
            except OSError as error:
                # All others were told: this machine lacks something.
                raise local_error("open a connection to", destination.origin.netloc, error) from error
            finally:
                attempt.sockets.close()
        if stop.is_requested:
            connection.close()
            stop.raise_if_requested()
        return connection

    @property
    def settings(self) -> HostSettings:
        return self._settings

    def handshakes(self) -> Handshakes:
        """Made for the first host that is asked by https."""
        if self._handshakes is None:
            self._handshakes = Handshakes(self._settings.tls, self._settings.host)
        return self._handshakes

    def check(self, destination: Destination, address: str) -> None:
        """Raises Refused if `destination` may not be at `address`. The address of a proxy may be any."""
        if self.proxies.proxy_for(destination.origin) is None:
            self._trust.check_peer(destination, address)


class _Attempt:
    """One connection in the making."""

    def __init__(self, connector: Connector, destination: Destination, stop: Stop) -> None:
        self.destination = destination
        self.name = destination.origin.netloc
        self.sockets = AbortableSockets()
        self._connector = connector
        self._stop = stop
        self._timeout = connector.settings.connect_timeout
        self._until = monotonic() + self._timeout
        self._peer: str | None = None
        self._proxy = connector.proxies.proxy_for(self.destination.origin)

    def run(self) -> Connection:
        origin, proxy = self.destination.origin, self._proxy
        secure = origin.scheme == "https"
        # Before anybody is connected to: it may fail.
        context = self._connector.handshakes().context(own=self.destination.credentials) if secure else None
        if proxy is None:
            sock = self._tcp(origin.host, origin.port)
        elif proxy.is_socks:
            sock = self._through_socks(proxy)
        elif proxy.is_tls:
            return self._through_tls(proxy, context)
        else:
            sock = self._tcp(proxy.host, proxy.port)
            if secure:
                self._tunnel(Connection(sock, self._proxy_name), proxy)
        if context is None:
            return Connection(sock, self.name, self._peer)
        return self._connector.handshakes().connection(sock, context, origin.host, subject=self.name, peer=self._peer)

    @property
    def _proxy_name(self) -> str:
        return f"the proxy for {self.name}"

    def _through_tls(self, proxy: Proxy, context: ssl.SSLContext | None) -> Connection:
        """context: of the host; None: it is contacted by http, and the proxy forwards requests."""
        handshakes = self._connector.handshakes()
        proxy_context = handshakes.context(own=False)  # before a connection is open: it may fail
        sock = self._tcp(proxy.host, proxy.port)
        outer = handshakes.connection(sock, proxy_context, proxy.host, subject=self._proxy_name, peer=None)
        if context is None:
            return outer
        self._tunnel(outer, proxy)
        return handshakes.connection_inside(outer, context, self.destination.origin.host, subject=self.name)

    def _through_socks(self, proxy: Proxy) -> socket.socket:
        last: OSError = ConnectionError(0, "it has no address")
        for family, _, _, _, address in self._addresses(proxy.host, proxy.port):
            try:
                sock = proxy.socks_socket(address, family, self.destination.origin, self._left())
            except OSError as error:
                last = error
                self._stop.raise_if_requested()
            else:
                return self._abortable(sock)
        raise self._unreachable(proxy.host, proxy.port, last) from last

    def _tcp(self, host: str, port: int) -> socket.socket:
        """A connection to the first of the host's addresses that takes one. Raises Unreachable, Refused."""
        addresses = self._addresses(host, port)
        dialer = Dialer(self.sockets, self._check, until=self._until, stop=self._stop)
        try:
            sock, peer = dialer.connect(addresses)
        except OSError as error:
            if error.errno in LACKING:
                raise
            raise self._unreachable(host, port, error) from error
        self._peer = None if self._proxy else peer
        return self._abortable(sock)

    def _addresses(self, host: str, port: int) -> Sequence[AddressInfo]:
        try:
            return self._connector.lookups.find(host, port, until=self._until, stop=self._stop)
        except (OSError, UnicodeError) as error:
            raise self._nameless(host, error) from error

    def _left(self) -> float:
        """Seconds of the connect timeout that are left."""
        return max(_LEAST, self._until - monotonic())

    def _abortable(self, sock: socket.socket) -> socket.socket:
        """A connected socket, from here on within reach of a stop."""
        try:
            # A second handle: the handshake takes the first out of its object.
            self.sockets.add(sock.dup())
            self._stop.raise_if_requested()  # after `add`: a stop from here on shuts it
            sock.settimeout(self._left())
        except BaseException:
            sock.close()
            raise
        return sock

    def _check(self, address: str) -> None:
        self._connector.check(self.destination, address)

    def _nameless(self, host: str, error: OSError | UnicodeError) -> Unreachable:
        hint = "check the name, and this machine's DNS"
        if isinstance(error, TimeoutError):
            return Unreachable(
                f"{host}: its name cannot be resolved within {self._timeout:g} s", code="timeout", hint=hint
            )
        reason = getattr(error, "strerror", None) or "not a usable name"
        return Unreachable(f"{host}: its name cannot be resolved: {reason}", hint=hint)

    def _unreachable(self, host: str, port: int, error: OSError) -> Unreachable:
        proxied = self._proxy is not None
        what = f"{self.name}: its proxy {host}:{port}" if proxied else self.name
        hint = (
            f"check {registry_key(self._connector.settings.host, 'proxy')}"
            if proxied
            else "check the host, port and network"
        )
        if isinstance(error, TimeoutError):
            return Unreachable(
                f"{what} does not take a connection within {self._timeout:g} s", code="timeout", hint=hint
            )
        return Unreachable(f"{what} cannot be reached: {error.strerror}", hint=hint)

    def _tunnel(self, wire: Connection, proxy: Proxy) -> None:
        """CONNECT through the proxy, which `wire` leads to; closed on errors. Raises NetworkError, RemoteError,
        AuthError."""
        try:
            self._connect_through(wire, proxy)
        except BaseException:
            wire.close()
            raise

    def _connect_through(self, wire: Connection, proxy: Proxy) -> None:
        origin = self.destination.origin
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        fields = [("Host", f"{host}:{origin.port}")]
        if proxy.authorization:
            fields.append(("Proxy-Authorization", proxy.authorization))
        subject = self._proxy_name
        wire.begin(self._stop, Pace(self._timeout, self._until), subject)
        wire.send(request_head("CONNECT", f"{host}:{origin.port}", fields))
        parser = ResponseParser("CONNECT", subject, small=False)
        head = read_head(wire, parser)
        wire.set_timeout(self._left())
        if head.status == 407:
            raise proxy.login_refused(self.name)
        if not 200 <= head.status < 300 or parser.surplus:
            raise RemoteError(
                f"{self.name}: the proxy answers CONNECT with {head.status}",
                status=head.status,
                retryable=head.status >= 500,
            )
