"""Opens connections: name lookup, TCP, proxy and TLS, with a check of the peer's address before any byte is sent.

All these steps together must finish within the registry's connect timeout. Netrc files are not read, and environment
variables that name proxies or CA bundles are ignored.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from time import monotonic

from mirror.errors import MirrorError, RemoteError, Unreachable
from mirror.registry.http.connection import Connection, Timeouts
from mirror.registry.http.dialer import RESOURCE_ERRORS, AbortableSockets, Dialer
from mirror.registry.http.framing import read_head
from mirror.registry.http.headers import request_head
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.lookups import AddressInfo, HostLookups, Resolver, system_resolve
from mirror.registry.http.protocol import ResponseParser
from mirror.registry.http.proxy import Proxies, Proxy
from mirror.registry.http.tls import TlsClient
from mirror.registry.http.url_policy import Destination, UrlPolicy
from mirror.util.cancellation import Stop
from mirror.util.config_key import registry_key
from mirror.util.files import local_error

_MIN_TIMEOUT = 0.001  # seconds; a timeout of 0 would make the socket non-blocking


class Connector:
    """A factory for connections to a registry, its token service and the hosts that they name. Thread-safe."""

    def __init__(self, settings: HostSettings, url_policy: UrlPolicy, *, resolve: Resolver = system_resolve) -> None:
        self.proxies = Proxies(settings)
        self._settings = settings
        self._url_policy = url_policy
        self.lookups = HostLookups(resolve)
        self._tls_client: TlsClient | None = None  # if two threads create one, either may be used

    def open(self, destination: Destination, stop: Stop) -> Connection:
        """Open a connection to the host of `destination`.

        Raises Unreachable, NetworkError, RemoteError (tls_error), Refused (tls_error, unsafe_*), AuthError (the proxy
        rejects the login), LocalError, Cancelled."""
        attempt = _ConnectionAttempt(self, destination, stop)
        with stop.callback_on_stop(attempt.sockets.abort):
            try:
                connection = attempt.connect()
            except MirrorError:
                stop.raise_if_requested()
                raise
            except OSError as error:
                # This machine lacks a resource, such as file descriptors. Other errors have already been translated.
                raise local_error("open a connection to", destination.origin.netloc, error) from error
            finally:
                attempt.sockets.close()
        if stop.is_requested:
            connection.close()
            stop.raise_if_requested()
        return connection

    @property
    def settings(self) -> HostSettings:
        """The settings of the registry."""
        return self._settings

    def tls_client(self) -> TlsClient:
        """Return the TLS client for this registry, which is created on first use."""
        if self._tls_client is None:
            self._tls_client = TlsClient(self._settings.tls, self._settings.host)
        return self._tls_client

    def check_address(self, destination: Destination, address: str) -> None:
        """Raise Refused if the URL policy forbids the IP address `address` for `destination`.

        Behind a proxy, the address of the destination is unknown, so nothing is checked."""
        if self.proxies.proxy_for(destination.origin) is None:
            self._url_policy.check_peer(destination, address)


class _ConnectionAttempt:
    """An attempt to open one connection. `sockets` contains the sockets to shut down on a stop request."""

    def __init__(self, connector: Connector, destination: Destination, stop: Stop) -> None:
        self.destination = destination
        self.name = destination.origin.netloc
        self.sockets = AbortableSockets()
        self._connector = connector
        self._stop = stop
        self._timeout = connector.settings.connect_timeout
        self._deadline = monotonic() + self._timeout
        self._peer: str | None = None
        self._proxy = connector.proxies.proxy_for(self.destination.origin)

    def connect(self) -> Connection:
        """Connect to the destination, directly or through the configured proxy, and with TLS if its scheme is https.

        Raises the errors of `Connector.open`, except that a lack of resources on this machine is raised as OSError."""
        origin, proxy = self.destination.origin, self._proxy
        secure = origin.scheme == "https"
        # Created before any connection is opened, because loading the certificates may fail.
        context = self._connector.tls_client().context(for_registry=self.destination.credentials) if secure else None
        if proxy is None:
            sock = self._connect_tcp(origin.host, origin.port)
        elif proxy.is_socks:
            sock = self._connect_through_socks(proxy)
        elif proxy.is_tls:
            return self._connect_through_tls(proxy, context)
        else:
            sock = self._connect_tcp(proxy.host, proxy.port)
            if secure:
                self._open_tunnel(Connection(sock, self._proxy_name), proxy)
        if context is None:
            return Connection(sock, self.name, self._peer)
        return self._connector.tls_client().connect(sock, context, origin.host, subject=self.name, peer=self._peer)

    @property
    def _proxy_name(self) -> str:
        """The name of the proxy in error messages."""
        return f"the proxy for {self.name}"

    def _connect_through_tls(self, proxy: Proxy, context: ssl.SSLContext | None) -> Connection:
        """Connect to the host through an https proxy. `context` is the TLS context for the host.

        If `context` is None, the host uses plain http. The connection then ends at the proxy, which forwards requests.
        """
        tls_client = self._connector.tls_client()
        proxy_context = tls_client.context(for_registry=False)  # may fail, so it is created before any connection
        sock = self._connect_tcp(proxy.host, proxy.port)
        outer = tls_client.connect(sock, proxy_context, proxy.host, subject=self._proxy_name, peer=None)
        if context is None:
            return outer
        self._open_tunnel(outer, proxy)
        return tls_client.connect_inside(outer, context, self.destination.origin.host, subject=self.name)

    def _connect_through_socks(self, proxy: Proxy) -> socket.socket:
        """Return a socket that is connected to the host through a SOCKS proxy. Tries the proxy's addresses in order."""
        last: OSError = ConnectionError(0, "it has no address")
        for family, _, _, _, address in self._addresses(proxy.host, proxy.port):
            try:
                sock = proxy.connect_socks(address, family, self.destination.origin, self._remaining())
            except OSError as error:
                last = error
                self._stop.raise_if_requested()
            else:
                return self._make_abortable(sock)
        raise self._connect_error(proxy.host, proxy.port, last) from last

    def _connect_tcp(self, host: str, port: int) -> socket.socket:
        """Return a socket that is connected to one of the host's addresses. Raises Unreachable, Refused, Cancelled."""
        addresses = self._addresses(host, port)
        dialer = Dialer(self.sockets, self._check_address, deadline=self._deadline, stop=self._stop)
        try:
            sock, peer = dialer.connect(addresses)
        except OSError as error:
            if error.errno in RESOURCE_ERRORS:
                raise
            raise self._connect_error(host, port, error) from error
        self._peer = None if self._proxy else peer
        return self._make_abortable(sock)

    def _addresses(self, host: str, port: int) -> Sequence[AddressInfo]:
        """Look up and return the addresses of a host. Raises Unreachable if the lookup fails, or Cancelled."""
        try:
            return self._connector.lookups.addresses(host, port, deadline=self._deadline, stop=self._stop)
        except (OSError, UnicodeError) as error:
            raise self._lookup_error(host, error) from error

    def _remaining(self) -> float:
        """Return how many seconds of the connect timeout remain, but at least _MIN_TIMEOUT."""
        return max(_MIN_TIMEOUT, self._deadline - monotonic())

    def _make_abortable(self, sock: socket.socket) -> socket.socket:
        """Register a connected socket, so that a stop request shuts it down, and return it. Closes it on errors."""
        try:
            # A duplicate is registered, because the TLS handshake detaches the descriptor from its socket object.
            self.sockets.add(sock.dup())
            self._stop.raise_if_requested()  # a stop after `add` shuts the socket down
            sock.settimeout(self._remaining())
        except BaseException:
            sock.close()
            raise
        return sock

    def _check_address(self, address: str) -> None:
        """Raise Refused if the URL policy forbids the IP address `address` for the destination."""
        self._connector.check_address(self.destination, address)

    def _lookup_error(self, host: str, error: OSError | UnicodeError) -> Unreachable:
        """Return the error for a host name that could not be resolved."""
        hint = "check the name and the DNS settings of this machine"
        if isinstance(error, TimeoutError):
            return Unreachable(
                f"{host}: the host name was not resolved within {self._timeout:g} s", code="timeout", hint=hint
            )
        reason = getattr(error, "strerror", None) or "it is not a valid host name"
        return Unreachable(f"{host}: the host name cannot be resolved: {reason}", hint=hint)

    def _connect_error(self, host: str, port: int, error: OSError) -> Unreachable:
        """Return the error for a host or proxy that accepted no connection at any of its addresses."""
        proxied = self._proxy is not None
        what = f"{self.name}: its proxy {host}:{port}" if proxied else self.name
        hint = (
            f"check {registry_key(self._connector.settings.host, 'proxy')}"
            if proxied
            else "check the host, the port and the network"
        )
        if isinstance(error, TimeoutError):
            return Unreachable(
                f"{what} did not accept a connection within {self._timeout:g} s", code="timeout", hint=hint
            )
        return Unreachable(f"{what} cannot be reached: {error.strerror}", hint=hint)

    def _open_tunnel(self, connection: Connection, proxy: Proxy) -> None:
        """Open a tunnel to the host through the proxy at the other end of `connection`. Closes `connection` on errors.

        Raises NetworkError, RemoteError, AuthError. Source: RFC 9110, "CONNECT"."""
        try:
            self._send_connect(connection, proxy)
        except BaseException:
            connection.close()
            raise

    def _send_connect(self, connection: Connection, proxy: Proxy) -> None:
        """Send a CONNECT request for the host to the proxy, and check the response."""
        origin = self.destination.origin
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        fields = [("Host", f"{host}:{origin.port}")]
        if proxy.authorization:
            fields.append(("Proxy-Authorization", proxy.authorization))
        subject = self._proxy_name
        connection.start_exchange(self._stop, Timeouts(self._timeout, self._deadline), subject)
        connection.send(request_head("CONNECT", f"{host}:{origin.port}", fields))
        parser = ResponseParser("CONNECT", subject, small=False)
        head = read_head(connection, parser)
        connection.set_timeout(self._remaining())
        if head.status == 407:
            raise proxy.login_error(self.name)
        if not 200 <= head.status < 300 or parser.has_surplus:
            raise RemoteError(
                f"{self.name}: the proxy responded to CONNECT with {head.status}",
                status=head.status,
                retryable=head.status >= 500,
            )
