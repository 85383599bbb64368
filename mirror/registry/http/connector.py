"""Opening connections: name, TCP, proxy, TLS, and a look at who is at the other end before a byte is said.

The connect timeout of a registry bounds all of it together. Nothing of the environment is consulted: no netrc, no
proxies, no CA bundles.
"""

from __future__ import annotations

import base64
import socket
from time import monotonic
from urllib.parse import unquote, urlsplit

from mirror.errors import AuthError, ConfigError, MirrorError, RemoteError, Unreachable
from mirror.registry.http.connection import Connection, Pace
from mirror.registry.http.dialer import LACKING, AbortableSockets, Dialer
from mirror.registry.http.framing import read_head
from mirror.registry.http.headers import request_head
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.lookups import Lookups, Resolve, system_resolve
from mirror.registry.http.protocol import AnswerParser
from mirror.registry.http.tls import Handshakes
from mirror.registry.http.url_policy import Destination, Trust
from mirror.util.cancellation import Stop
from mirror.util.config_key import registry_key
from mirror.util.files import local_error

_LEAST = 0.001  # seconds: a timeout of 0 is none


class Proxy:
    """`http://[user:password@]host[:port]`. authorization: for the proxy, never for anybody else."""

    def __init__(self, text: str, key: str) -> None:
        parts = urlsplit(text)
        try:
            port = parts.port or 3128
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise ConfigError("the proxy must be http://HOST:PORT", hint=f"see {registry_key(key, 'proxy')}")
        self.host = parts.hostname
        self.port = port
        self.authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.authorization = "Basic " + base64.b64encode(pair.encode()).decode("ascii")


class Connector:
    """Opens connections for one registry: to itself, its token service, and hosts that it leads to. Thread-safe."""

    def __init__(self, settings: HostSettings, trust: Trust, *, resolve: Resolve = system_resolve) -> None:
        self.proxy = Proxy(settings.proxy, settings.host) if settings.proxy else None
        self._settings = settings
        self._trust = trust
        self.lookups = Lookups(resolve)
        self._handshakes: Handshakes | None = None  # made twice is harmless

    def open(self, destination: Destination, stop: Stop) -> Connection:
        """Raises Unreachable, NetworkError, RemoteError (tls_error), Refused (tls_error, unsafe_*), LocalError,
        Cancelled."""
        attempt = _Attempt(self, destination, stop)
        with stop.calls(attempt.sockets.abort):
            try:
                connection = attempt.run()
            except MirrorError:
                stop.check()
                raise
            except OSError as error:
                # All others were told: this machine lacks something.
                raise local_error("open a connection to", destination.origin.netloc, error) from error
            finally:
                attempt.sockets.close()
        if stop.requested:
            connection.close()
            stop.check()
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
        if self.proxy is None:
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

    def run(self) -> Connection:
        origin = self.destination.origin
        if origin.scheme == "http":
            return Connection(self._dial(), self.name, self._peer)
        handshakes = self._connector.handshakes()
        context = handshakes.context(own=self.destination.credentials)  # before anybody is connected to: it may fail
        return handshakes.connection(self._tunnelled(), context, origin.host, subject=self.name, peer=self._peer)

    def _dial(self) -> socket.socket:
        proxy, origin = self._connector.proxy, self.destination.origin
        return self._tcp(proxy.host, proxy.port) if proxy else self._tcp(origin.host, origin.port)

    def _tunnelled(self) -> socket.socket:
        sock = self._dial()
        try:
            if self._connector.proxy is not None:
                self._tunnel(sock, self._connector.proxy)
        except BaseException:
            sock.close()
            raise
        return sock

    def _tcp(self, host: str, port: int) -> socket.socket:
        """A connection to the first of the host's addresses that takes one. Raises Unreachable, Refused."""
        try:
            addresses = self._connector.lookups.find(host, port, until=self._until, stop=self._stop)
        except (OSError, UnicodeError) as error:
            raise self._nameless(host, error) from error
        dialer = Dialer(self.sockets, self._check, until=self._until, stop=self._stop)
        try:
            sock, peer = dialer.connect(addresses)
        except OSError as error:
            if error.errno in LACKING:
                raise
            raise self._unreachable(host, port, error) from error
        self._peer = None if self._connector.proxy else peer
        try:
            # A second handle: the handshake takes the first out of its object.
            self.sockets.add(sock.dup())
            self._stop.check()  # after `add`: a stop from here on shuts it
            sock.settimeout(max(_LEAST, self._until - monotonic()))
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
        proxied = self._connector.proxy is not None
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

    def _tunnel(self, sock: socket.socket, proxy: Proxy) -> None:
        """CONNECT through the proxy. Raises NetworkError, RemoteError, AuthError."""
        origin = self.destination.origin
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        fields = [("Host", f"{host}:{origin.port}")]
        if proxy.authorization:
            fields.append(("Proxy-Authorization", proxy.authorization))
        subject = f"the proxy for {self.name}"
        wire = Connection(sock, subject)
        wire.begin(self._stop, Pace(self._timeout, self._until), subject)
        wire.send(request_head("CONNECT", f"{host}:{origin.port}", fields))
        parser = AnswerParser("CONNECT", subject, small=False)
        head = read_head(wire, parser)
        sock.settimeout(max(_LEAST, self._until - monotonic()))
        if head.status == 407:
            raise _proxy_login(self.name, self._connector.settings.host)
        if not 200 <= head.status < 300 or parser.surplus:
            raise RemoteError(
                f"{self.name}: the proxy answers CONNECT with {head.status}",
                status=head.status,
                retryable=head.status >= 500,
            )


def _proxy_login(name: str, key: str) -> AuthError:
    hint = f"set user and password in {registry_key(key, 'proxy')}"
    return AuthError(f"{name}: the proxy wants a login", code="auth_failed", status=407, hint=hint)
