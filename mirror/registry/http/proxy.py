"""Decides which hosts of a registry are contacted through its proxy, and connects through SOCKS proxies."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import unquote, urlsplit

from mirror.errors import AuthError, ConfigError
from mirror.registry.http.headers import basic_authorization
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.ip_addresses import is_ip_address
from mirror.registry.http.url import Origin
from mirror.util.config_key import registry_key

_PORTS = {"http": 3128, "https": 443, "socks5h": 1080}


class Proxy:
    """The proxy through which a registry is contacted. `key` is the registry's name in the configuration.

    `authorization` is the value of the Proxy-Authorization header, which is sent only to the proxy. It is empty if the
    URL of the proxy contains no user name."""

    def __init__(self, text: str, key: str) -> None:
        """Parse `text`, a URL of the form `SCHEME://[user:password@]host[:port]`.

        The scheme is http, https or socks5h. Raises ConfigError if the URL is invalid."""
        parts = urlsplit(text)
        try:
            port = _PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
        except ValueError:
            port = 0
        if parts.scheme not in _PORTS or not parts.hostname or not port:
            schemes = ", ".join(f"{scheme}://HOST:PORT" for scheme in _PORTS)
            text = f"the URL of the proxy must have one of these forms: {schemes}"
            raise ConfigError(text, hint=f"correct {registry_key(key, 'proxy')}")
        self.key = key
        self.host = parts.hostname
        self.port = port
        self.is_tls = parts.scheme == "https"
        self.is_socks = parts.scheme == "socks5h"
        self.authorization = ""
        self._login: tuple[str, str] | None = None
        if parts.username is not None:
            self._login = unquote(parts.username), unquote(parts.password or "")
            self.authorization = basic_authorization(*self._login)

    def login_error(self, name: str) -> AuthError:
        """Return the error for a login that the proxy rejected. `name` is the host to connect to through the proxy."""
        hint = f"set the user name and password in {registry_key(self.key, 'proxy')}"
        return AuthError(f"{name}: the proxy requires a valid login", code="auth_failed", status=407, hint=hint)

    def connect_socks(self, address: tuple[Any, ...], family: int, origin: Origin, seconds: float) -> socket.socket:
        """Return a socket that is connected to `origin` through the SOCKS proxy at `address`.

        The proxy resolves the host name. `seconds` is the timeout. Raises AuthError if the proxy rejects the login,
        TimeoutError, and an OSError whose `strerror` is the reason for any other failure."""
        import socks  # noqa: PLC0415 (installed by the extra `socks`)

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
                raise self.login_error(origin.netloc) from error
            if isinstance(cause, TimeoutError):
                raise TimeoutError from error
            raise ConnectionError(0, getattr(cause, "strerror", None) or str(cause)) from error
        except BaseException:
            sock.close()
            raise
        return socket.socket(fileno=sock.detach())


class Proxies:
    """The proxy settings of one registry: its proxy, if there is one, and the hosts that are contacted directly."""

    def __init__(self, settings: HostSettings) -> None:
        """Read the proxy and the `no-proxy` hosts from `settings`. Raises ConfigError if the proxy URL is invalid."""
        self._proxy = Proxy(settings.proxy, settings.host) if settings.proxy else None
        self._direct = [_split_host(host) for host in settings.no_proxy]

    def proxy_for(self, origin: Origin) -> Proxy | None:
        """Return the proxy through which `origin` is contacted, or None if it is contacted directly."""
        return None if any(_no_proxy_applies(host, port, origin) for host, port in self._direct) else self._proxy

    def forward_proxy_for(self, origin: Origin) -> Proxy | None:
        """Return the proxy that forwards plain http requests to `origin`, or None if there is none.

        Such requests have absolute URLs. For https, the proxy opens a tunnel instead."""
        proxy = self.proxy_for(origin) if origin.scheme == "http" else None
        return proxy if proxy and not proxy.is_socks else None


def _split_host(text: str) -> tuple[str, int | None]:
    """Split `host[:port]` into the lowercase host and the port. Return None as the port if it is missing."""
    parts = urlsplit(f"//{text}")
    return (parts.hostname or "").lower(), parts.port


def _no_proxy_applies(host: str, port: int | None, origin: Origin) -> bool:
    """Return whether a `no-proxy` entry for `host` applies to `origin`. It applies to the host and its subdomains."""
    if port is not None and port != origin.port:
        return False
    return origin.host == host or (origin.host.endswith(f".{host}") and not is_ip_address(host))
