"""Proxies: which one a connection takes, and connections through SOCKS."""

from __future__ import annotations

import base64
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

from mirror.errors import AuthError, ConfigError
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.ip_addresses import is_literal
from mirror.registry.http.url import Origin
from mirror.util.config_key import registry_key

_PORTS = {"http": 3128, "https": 443, "socks5h": 1080}


class Proxy:
    """`http://`, `https://` or `socks5h://` and `[user:password@]host[:port]`.

    authorization: for the proxy, never for anybody else; key: the registry's name in the configuration."""

    def __init__(self, text: str, key: str) -> None:
        parts = urlsplit(text)
        try:
            port = _PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or not port:
            schemes = ", ".join(f"{scheme}://HOST:PORT" for scheme in _PORTS)
            raise ConfigError(f"the proxy must be one of {schemes}", hint=f"see {registry_key(key, 'proxy')}")
        self.key = key
        self.host = parts.hostname
        self.port = port
        self.is_tls = parts.scheme == "https"
        self.is_socks = parts.scheme == "socks5h"
        self.authorization = ""
        self._login: tuple[str, str] | None = None
        if parts.username is not None:
            self._login = unquote(parts.username), unquote(parts.password or "")
            self.authorization = "Basic " + base64.b64encode(":".join(self._login).encode()).decode("ascii")

    def login_refused(self, name: str) -> AuthError:
        """The error for `name`, the host that the proxy was to connect to."""
        hint = f"set user and password in {registry_key(self.key, 'proxy')}"
        return AuthError(f"{name}: the proxy wants a login", code="auth_failed", status=407, hint=hint)

    def socks_socket(self, address: tuple[Any, ...], family: int, origin: Origin, seconds: float) -> socket.socket:
        """Connect to the proxy at `address`, and through it to `origin`, whose name the proxy resolves.

        Raises AuthError; OSError with the reason as its `strerror`, TimeoutError."""
        import socks  # noqa: PLC0415 (of the extra `socks`)

        user, password = self._login or (None, None)
        sock = socks.socksocket(family, socket.SOCK_STREAM)
        try:
            sock.set_proxy(socks.SOCKS5, address[0], address[1], True, user, password)
            sock.settimeout(seconds)
            sock.connect((origin.host, origin.port))
        except socks.ProxyError as error:
            sock.close()
            cause = error.socket_err or error
            if isinstance(cause, socks.SOCKS5AuthError):
                raise self.login_refused(origin.netloc) from error
            if isinstance(cause, TimeoutError):
                raise TimeoutError from error
            raise ConnectionError(0, getattr(cause, "strerror", None) or str(cause)) from error
        except BaseException:
            sock.close()
            raise
        return socket.socket(fileno=sock.detach())


class Proxies:
    """The proxy of one registry, and the hosts that are contacted without it."""

    def __init__(self, settings: HostSettings) -> None:
        """Raises ConfigError."""
        self._proxy = Proxy(settings.proxy, settings.host) if settings.proxy else None
        self._direct = [_host_and_port(host) for host in settings.no_proxy]

    def proxy_for(self, origin: Origin) -> Proxy | None:
        """The proxy through which `origin` is contacted; None: it is contacted directly."""
        return None if any(_covers(host, port, origin) for host, port in self._direct) else self._proxy

    def forwarder_for(self, origin: Origin) -> Proxy | None:
        """The proxy that is sent requests to `origin` with their whole URL, as plain http is; None: there is none."""
        proxy = self.proxy_for(origin) if origin.scheme == "http" else None
        return proxy if proxy and not proxy.is_socks else None


def _host_and_port(text: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{text}")
    return (parts.hostname or "").lower(), parts.port


def _covers(host: str, port: int | None, origin: Origin) -> bool:
    if port is not None and port != origin.port:
        return False
    return origin.host == host or (origin.host.endswith(f".{host}") and not is_literal(host))
