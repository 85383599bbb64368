"""Who may name a host, and what such a host is given (docs/decisions.md).

Hosts that the operator named may get credentials, for exactly that origin. Hosts that a server named (in a
redirect, an upload Location, a Link, a realm) get none, never a weaker scheme, and must not be at an internal
address unless the host that named them is at one too. Each refusal is a `Refused`; then no request is sent.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from mirror.errors import Refused, RemoteError, printable
from mirror.oci.reference import DOCKER_HUB
from mirror.registry.http import ip_addresses, url
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.ip_addresses import AddressKind
from mirror.registry.http.url import BadUrl, Origin
from mirror.util.config_key import registry_key
from mirror.util.structs import Struct, replace

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

__all__ = ["Destination", "Origin", "Trust", "with_query"]

log = logging.getLogger("mirror.http")

_HUB = Origin("https", "registry-1.docker.io", 443)


class Destination(Struct, frozen=True):
    """Where one request goes, after the rules have agreed.

    target: path and query exactly as sent. credentials: whether the registry's may go along.
    server_named: the address rule holds. named_by: the origin that named it. refusal: the code if that rule refuses."""

    origin: Origin
    target: str
    credentials: bool = False
    server_named: bool = False
    named_by: Origin | None = None
    refusal: str = "unsafe_redirect"

    @property
    def path(self) -> str:
        """Without the query, which may hold a signature."""
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"

    def __repr__(self) -> str:
        return f"Destination({self})"


def with_query(destination: Destination, key: str, value: str) -> Destination:
    """The same with `key=value` at the end of its query, once; the rest of the query stays as it is."""
    path, _, query = destination.target.partition("?")
    kept = [part for part in query.split("&") if part and part.partition("=")[0] != key]
    kept.append(f"{key}={quote(value, safe='')}")
    return replace(destination, target=f"{path}?{'&'.join(kept)}")


class Trust:
    """The rules for one registry. Thread-safe: what it learns (at what kind of address hosts are) only grows."""

    def __init__(self, settings: HostSettings) -> None:
        self._host = settings.host
        self._token_realms = frozenset(host.lower() for host in settings.token_realms)
        self._allow_hosts = frozenset(host.lower() for host in settings.allow_hosts)
        self.api = self._api(settings)
        self.endpoints: set[Origin] = set()  # of `endpoint`: may get tokens of the registry as it does
        self._kinds: dict[Origin, AddressKind] = {}

    @staticmethod
    def _api(settings: HostSettings) -> Origin:
        if settings.host == DOCKER_HUB:
            return _HUB
        return Origin.parse(f"{'http' if settings.plain_http else 'https'}://{settings.host}")

    def own(self, target: str) -> Destination:
        """A path (and query) of the registry itself, made by us of checked names."""
        if not target.startswith("/") or not target.isascii() or not target.isprintable() or " " in target:
            raise Refused(f"not a path to ask for: {printable(target, 80)}", code="unsafe_path")
        return Destination(self.api, target, credentials=True)

    def redirect(self, location: str, base: Destination) -> Destination:
        """Where a GET or HEAD of `base` was redirected to. Raises Refused (unsafe_redirect)."""
        return self._led(location, base, code="unsafe_redirect", what="redirect")

    def upload_location(self, location: str, base: Destination) -> Destination:
        """The next URL of an upload, from a response of `base`. Raises Refused (unsafe_location), RemoteError (empty).

        http for a host that we speak https with is a proxy's usual mistake, and is read as https."""
        if not location:
            raise RemoteError(f"{base}: an upload's Location is empty", retryable=True)
        origin, target = _joined(location, base, "unsafe_location", "upload location")
        ours = base.origin
        if (origin.scheme, ours.scheme, origin.host) == ("http", "https", ours.host) and origin.port in (80, ours.port):
            log.warning("%s names upload locations by http; https is used", ours.netloc)
            origin = ours
        return self._judged(origin, target, base, code="unsafe_location", what="upload location")

    def link(self, location: str, base: Destination) -> Destination:
        """The next page of the listing `base`: the same listing of the same origin. Raises Refused (unsafe_link)."""
        origin, target = _joined(location, base, "unsafe_link", "link to the next page")
        if origin != base.origin:
            raise _refusal("unsafe_link", "link to the next page", base, f"leads to another origin, {origin}")
        if not unquote(target.partition("?")[0]).endswith(unquote(base.path)):
            raise _refusal("unsafe_link", "link to the next page", base, "leads to another listing")
        return replace(base, target=target)

    def realm(self, location: str) -> Destination:
        """The token service that a challenge of the registry names. Raises Refused (unsafe_realm).

        It gets the registry's credentials: so it is of the same origin, or https (at the usual port or the
        registry's) and of the same registrable domain, or one of `token-realms`."""
        own = Destination(self.api, "/", credentials=True)
        origin, target = _joined(location, own, "unsafe_realm", "token service")
        found = Destination(origin, target, credentials=True, named_by=self.api, refusal="unsafe_realm")
        if origin == self.api:
            return found
        if origin.scheme == "http" and self.api.scheme == "https":
            raise _refusal("unsafe_realm", "token service", own, f"would be asked without encryption: {origin}")
        if _listed(origin, self._token_realms):
            return found
        if origin.scheme == "https" and origin.port in (443, self.api.port) and _same_domain(origin, self.api):
            found = replace(found, server_named=True)
            self._check_literal(found)
            return found
        raise _refusal(
            "unsafe_realm",
            "token service",
            own,
            f"{origin} is not of the registry's domain",
            hint="if it may have this registry's credentials, "
            f'add "{origin.netloc}" to {registry_key(self._host, "token-realms")}',
        )

    def endpoint(self, host: str) -> Destination:
        """The root of a host that a v1 index names for its images (X-Docker-Endpoints). Raises Refused.

        It gets the index's token: so it is the index itself, or one of `token-realms` or `allow-hosts`; and it is
        asked with the index's scheme."""
        own = Destination(self.api, "/", credentials=True)
        try:
            origin = Origin.parse(f"{self.api.scheme}://{host}")
        except BadUrl as error:
            raise _refusal("unsafe_location", "endpoint", own, str(error)) from None
        if origin != self.api:
            if not (_listed(origin, self._token_realms) or _listed(origin, self._allow_hosts)):
                hint = f'if its images are there, add "{origin.netloc}" to {registry_key(self._host, "allow-hosts")}'
                raise _refusal("unsafe_location", "endpoint", own, f"{origin} is another host", hint=hint)
            self.endpoints.add(origin)
        return Destination(origin, "/", credentials=True, named_by=self.api, refusal="unsafe_location")

    def token_redirect(self, location: str, base: Destination) -> Destination:
        """Where a token service redirected to: the same origin only. Raises Refused (unsafe_realm)."""
        origin, target = _joined(location, base, "unsafe_realm", "redirect of the token service")
        if origin != base.origin:
            raise _refusal("unsafe_realm", "redirect of the token service", base, f"leads to another origin, {origin}")
        return replace(base, target=target)

    def check_peer(self, destination: Destination, address: str) -> None:
        """Whether `destination` may be at `address`, told before a byte is sent. Raises Refused.

        Learns at what kind of address the origin is, for the hosts that it names in turn."""
        try:
            kind = ip_addresses.kind_of(address)
        except ValueError:
            kind = AddressKind.NOWHERE
        if destination.server_named:
            self._check_kind(destination, kind)
        self._kinds[destination.origin] = kind

    def _led(self, location: str, base: Destination, *, code: str, what: str) -> Destination:
        origin, target = _joined(location, base, code, what)
        return self._judged(origin, target, base, code=code, what=what)

    def _judged(self, origin: Origin, target: str, base: Destination, *, code: str, what: str) -> Destination:
        if origin == self.api:
            return Destination(origin, target, credentials=True)
        if origin.scheme == "http" and base.origin.scheme == "https":
            raise _refusal(code, what, base, f"leads from https to {origin}")
        if origin == base.origin:
            return replace(base, target=target, refusal=code)
        led = Destination(origin, target, server_named=True, named_by=base.origin, refusal=code)
        self._check_literal(led)
        return led

    def _check_literal(self, destination: Destination) -> None:
        """An address written in the URL needs no connection to be judged (and behind a proxy, there is no other)."""
        if ip_addresses.is_literal(destination.origin.host):
            self._check_kind(destination, ip_addresses.kind_of(destination.origin.host))

    def _check_kind(self, destination: Destination, kind: AddressKind) -> None:
        origin = destination.origin
        if kind is AddressKind.PUBLIC or origin.host in self._allow_hosts or _listed(origin, self._allow_hosts):
            return
        namer = destination.named_by
        if kind is not AddressKind.NOWHERE and namer is not None and self._kind_of(namer) is kind:
            return
        raise Refused(
            f"{namer or self.api} leads to {origin}, which is at a {kind.value} address",
            hint=f'if that is right, add "{origin.netloc}" to {registry_key(self._host, "allow-hosts")}',
            code=destination.refusal,
        )

    def _kind_of(self, origin: Origin) -> AddressKind | None:
        if origin in self._kinds:
            return self._kinds[origin]
        return ip_addresses.kind_of(origin.host) if ip_addresses.is_literal(origin.host) else None


def _joined(location: str, base: Destination, code: str, what: str) -> tuple[Origin, str]:
    try:
        return url.join(base.origin, base.target, location)
    except BadUrl as error:
        raise _refusal(code, what, base, str(error)) from None


def _refusal(code: str, what: str, base: Destination, why: str, hint: str = "") -> Refused:
    return Refused(f"{base}: unsafe {what}: {why}", code=code, hint=hint)


def _listed(origin: Origin, hosts: frozenset[str]) -> bool:
    exact = f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
    return origin.netloc in hosts or exact in hosts


def _same_domain(one: Origin, other: Origin) -> bool:
    """Whether both belong to one owner: the label below a public suffix, and all before it, is one's own."""
    if ip_addresses.is_literal(one.host) or ip_addresses.is_literal(other.host):
        return False
    domain: str | None = _suffixes().privatesuffix(one.host)
    return domain is not None and domain == _suffixes().privatesuffix(other.host)


@functools.cache
def _suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList  # noqa: PLC0415 (with its list 50 ms, for realms at another host)

    return PublicSuffixList()
