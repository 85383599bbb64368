"""The rules for URLs: to which hosts requests and credentials may be sent (docs/trust.md).

* The credentials of a registry are sent only to its origin and its token service, and to the endpoints of a v1 index
  that the configuration lists. Other hosts that a server names, such as in a redirect or an upload Location, receive no
  credentials.
* A URL in a response over https must not use http.
* A host that a server names must not have an internal address, unless the host that named it has an internal address of
  the same kind or the configuration lists the named host.

If a URL violates a rule, Refused is raised and no request is sent to the URL.
"""

from __future__ import annotations

import copy
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

__all__ = ["Destination", "Origin", "UrlPolicy", "with_query"]

log = logging.getLogger("mirror.http")

_DOCKER_HUB = Origin("https", "registry-1.docker.io", 443)


class Destination(Struct, frozen=True):
    """A URL that has passed the checks of the URL policy, so that a request may be sent to it.

    `target` is the path and query exactly as sent. `credentials` says whether the registry's credentials may be sent.
    If `named_by_server` is true, the host's address is checked when a connection is opened or reused. `named_by` is the
    origin that named the host. `refusal_code` is the error code if the address is rejected. If `anonymous` is true, a
    redirect never leads to a destination with credentials, not even to the registry. If `hide_path` is true, the path
    is a secret, and messages do not show it."""

    origin: Origin
    target: str
    credentials: bool = False
    named_by_server: bool = False
    named_by: Origin | None = None
    refusal_code: str = "unsafe_redirect"
    anonymous: bool = False
    hide_path: bool = False

    @property
    def path(self) -> str:
        """The path without the query, which may contain a signature. The path is `/***` if it is secret."""
        return self.shown_target.partition("?")[0]

    @property
    def shown_target(self) -> str:
        """The target for logs, or `/***` if the path is secret."""
        return "/***" if self.hide_path else self.target

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"

    def __repr__(self) -> str:
        return f"Destination({self})"


def with_query(destination: Destination, key: str, value: str) -> Destination:
    """Return the destination with `key=value` at the end of its query. Existing values of `key` are removed."""
    path, _, query = destination.target.partition("?")
    kept = [part for part in query.split("&") if part and part.partition("=")[0] != key]
    kept.append(f"{key}={quote(value, safe='')}")
    return replace(destination, target=f"{path}?{'&'.join(kept)}")


class UrlPolicy:
    """The rules for the URLs that one registry and its token service return in their responses. Thread-safe."""

    def __init__(self, settings: HostSettings) -> None:
        self._host = self.name = settings.host  # `name`: the name of the API's host in limits, errors and logs
        self._token_realms = frozenset(host.lower() for host in settings.token_realms)
        self._allow_hosts = frozenset(host.lower() for host in settings.allow_hosts)
        self.api = self._api_origin(settings)
        self._root = Destination(self.api, "/", credentials=True)
        self.endpoints: set[Origin] = set()  # accepted by `check_endpoint`; they may receive the registry's tokens
        self._kinds: dict[Origin, AddressKind] = {}  # the kind of the last accepted address of each origin

    @staticmethod
    def _api_origin(settings: HostSettings) -> Origin:
        """Return the origin of the registry's API."""
        if settings.host == DOCKER_HUB:
            return _DOCKER_HUB
        return Origin.parse(f"{'http' if settings.plain_http else 'https'}://{settings.host}")

    def destination(self, target: str) -> Destination:
        """Return the destination for a path, with or without a query, on the registry itself.

        Raises Refused (unsafe_path) if the path contains forbidden characters."""
        if not target.startswith("/") or not target.isascii() or not target.isprintable() or " " in target:
            raise Refused(f"the request path has invalid characters: {printable(target, 80)}", code="unsafe_path")
        return replace(self._root, target=target)

    def with_api(self, api: Destination) -> UrlPolicy:
        """Return the rules for another API of the same registry, on the origin of `api`.

        The API may receive the registry's credentials, so `api` must be a host that is built into this program, or the
        result of `check_realm`."""
        policy = copy.copy(self)
        policy.api, policy._root, policy.endpoints = api.origin, replace(api, target="/"), set()
        policy.name = self._host if api.origin == self.api else api.origin.netloc
        return policy

    def check_redirect(self, location: str, base: Destination) -> Destination:
        """Check the URL to which a GET or HEAD request to `base` is redirected, and return it as a destination.

        Raises Refused (unsafe_redirect) if the URL violates a rule."""
        return self._check_location(location, base, code="unsafe_redirect", what="redirect")

    def check_upload_location(self, location: str, base: Destination) -> Destination:
        """Check the upload Location in a response from `base`, and return it as a destination.

        Some proxies replace https with http in the Location. If the host is the host of `base`, https is restored.
        Raises Refused (unsafe_location), and RemoteError if `location` is empty."""
        if not location:
            raise RemoteError(f"{base}: the upload Location is empty", retryable=True)
        origin, target = _join_location(location, base, "unsafe_location", "upload location")
        ours = base.origin
        if (origin.scheme, ours.scheme, origin.host) == ("http", "https", ours.host) and origin.port in (80, ours.port):
            log.warning("%s returns upload locations with http; https is used instead", ours.netloc)
            origin = ours
        return self._check_target(origin, target, base, code="unsafe_location", what="upload location")

    def check_next_link(self, location: str, base: Destination) -> Destination:
        """Check the Link to the next page of the list at `base`, and return it as a destination.

        The link must lead to the same list on the same origin. Raises Refused (unsafe_link)."""
        origin, target = _join_location(location, base, "unsafe_link", "link to the next page")
        if origin != base.origin:
            why = f"it points to a different origin, {origin}"
            raise _policy_error("unsafe_link", "link to the next page", base, why)
        if not unquote(target.partition("?")[0]).endswith(unquote(base.path)):
            raise _policy_error("unsafe_link", "link to the next page", base, "it points to a different list")
        return replace(base, target=target)

    def check_realm(self, location: str) -> Destination:
        """Check the URL of the token service in a challenge from the registry, and return it as a destination.

        The token service receives the registry's credentials. It must therefore meet one of these conditions: it has
        the origin of the registry, its host is listed in `token-realms`, or it is in the registry's registrable domain
        and uses https on port 443 or on the registry's port. If the registry uses https, the token service must also
        use https. Raises Refused (unsafe_realm)."""
        base = Destination(self.api, "/", credentials=True)
        origin, target = _join_location(location, base, "unsafe_realm", "token service")
        realm = Destination(origin, target, credentials=True, named_by=self.api, refusal_code="unsafe_realm")
        if origin == self.api:
            return realm
        if origin.scheme == "http" and self.api.scheme == "https":
            raise _policy_error("unsafe_realm", "token service", base, f"{origin} does not use https")
        if _is_listed(origin, self._token_realms):
            return realm
        if origin.scheme == "https" and origin.port in (443, self.api.port) and _is_same_domain(origin, self.api):
            realm = replace(realm, named_by_server=True)
            self._check_literal_address(realm)
            return realm
        raise _policy_error(
            "unsafe_realm",
            "token service",
            base,
            f"{origin} is not in the registry's domain",
            hint="if this token service may receive this registry's credentials, "
            f'add "{origin.netloc}" to {registry_key(self._host, "token-realms")}',
        )

    def check_endpoint(self, host: str) -> Destination:
        """Check a host that a v1 index names as the store of its images (X-Docker-Endpoints). Return its root URL.

        The host receives tokens from the index, so it must be the index itself, or be listed in `token-realms` or
        `allow-hosts`. It is contacted with the scheme of the index. Raises Refused (unsafe_location)."""
        base = Destination(self.api, "/", credentials=True)
        try:
            origin = Origin.parse(f"{self.api.scheme}://{host}")
        except BadUrl as error:
            raise _policy_error("unsafe_location", "endpoint", base, str(error)) from None
        if origin != self.api:
            if not (_is_listed(origin, self._token_realms) or _is_listed(origin, self._allow_hosts)):
                key = registry_key(self._host, "allow-hosts")
                hint = f'if this host stores the images of the index, add "{origin.netloc}" to {key}'
                why = f"{origin} is not the host of the index"
                raise _policy_error("unsafe_location", "endpoint", base, why, hint=hint)
            self.endpoints.add(origin)
        return Destination(origin, "/", credentials=True, named_by=self.api, refusal_code="unsafe_location")

    def check_layer_url(self, location: str) -> Destination:
        """Check a URL in the descriptor of a foreign layer, and return it as a destination.

        It must be absolute and use https. It receives no credentials, even if it is on the registry itself. Raises
        Refused (unsafe_location)."""
        base = Destination(self.api, "/")
        origin, target = _join_location(location, base, "unsafe_location", "URL of a foreign layer")
        if not location.lower().startswith("https:"):
            why = f"it is not an https URL, but {printable(location.partition(':')[0], 40)}"
            raise _policy_error("unsafe_location", "URL of a foreign layer", base, why)
        destination = Destination(
            origin, target, named_by_server=True, named_by=self.api, refusal_code="unsafe_location", anonymous=True
        )
        self._check_literal_address(destination)
        return destination

    def check_token_redirect(self, location: str, base: Destination) -> Destination:
        """Check a redirect from a token service, which must stay on the same origin, and return the new destination.

        Raises Refused (unsafe_realm)."""
        origin, target = _join_location(location, base, "unsafe_realm", "redirect of the token service")
        if origin != base.origin:
            raise _policy_error(
                "unsafe_realm", "redirect of the token service", base, f"it points to a different origin, {origin}"
            )
        return replace(base, target=target)

    def check_peer(self, destination: Destination, address: str) -> None:
        """Check the IP address of a peer before any byte is sent to `destination`. Raises Refused.

        Stores the kind of the address. The rule for hosts that the origin of `destination` names depends on this kind.
        """
        try:
            kind = ip_addresses.address_kind(address)
        except ValueError:
            kind = AddressKind.UNUSABLE
        if destination.named_by_server:
            self._check_address_kind(destination, kind)
        self._kinds[destination.origin] = kind

    def _check_location(self, location: str, base: Destination, *, code: str, what: str) -> Destination:
        """Check a URL in a response from `base`, and return it as a destination. Raises Refused.

        `code` and `what` (the kind of URL) are used in errors."""
        origin, target = _join_location(location, base, code, what)
        return self._check_target(origin, target, base, code=code, what=what)

    def _check_target(self, origin: Origin, target: str, base: Destination, *, code: str, what: str) -> Destination:
        """Check a parsed URL in a response from `base`, and return it as a destination. Raises Refused.

        `code` and `what` (the kind of URL) are used in errors."""
        if origin == self.api and not base.anonymous:
            return replace(self._root, target=target)
        if origin.scheme == "http" and base.origin.scheme == "https":
            raise _policy_error(code, what, base, f"it points from https to {origin}")
        if origin == base.origin:
            return replace(base, target=target, refusal_code=code)
        destination = Destination(
            origin, target, named_by_server=True, named_by=base.origin, refusal_code=code, anonymous=base.anonymous
        )
        self._check_literal_address(destination)
        return destination

    def _check_literal_address(self, destination: Destination) -> None:
        """Check the host of `destination` if it is an IP address instead of a name. Raises Refused.

        Behind a proxy, this is the only check of the destination's address."""
        if ip_addresses.is_ip_address(destination.origin.host):
            self._check_address_kind(destination, ip_addresses.address_kind(destination.origin.host))

    def _check_address_kind(self, destination: Destination, kind: AddressKind) -> None:
        """Raise Refused if the URL policy forbids an address of this kind for a `destination` that a server named."""
        origin = destination.origin
        if kind is AddressKind.PUBLIC or origin.host in self._allow_hosts or _is_listed(origin, self._allow_hosts):
            return
        namer = destination.named_by
        if kind is not AddressKind.UNUSABLE and namer is not None and self._known_kind(namer) is kind:
            return
        key = registry_key(self._host, "allow-hosts")
        raise Refused(
            f"{namer or self.api} refers to {origin}, whose address is {kind.value}",
            hint=f'if requests may be sent to this host, add "{origin.netloc}" to {key}',
            code=destination.refusal_code,
        )

    def _known_kind(self, origin: Origin) -> AddressKind | None:
        """Return the kind of the IP address of `origin`, or None if the address is not known."""
        if origin in self._kinds:
            return self._kinds[origin]
        return ip_addresses.address_kind(origin.host) if ip_addresses.is_ip_address(origin.host) else None


def _join_location(location: str, base: Destination, code: str, what: str) -> tuple[Origin, str]:
    """Resolve a URL in a response from `base` into its origin and target. Raises Refused if the URL is invalid.

    `code` and `what` (the kind of URL) are used in errors."""
    try:
        return url.join(base.origin, base.target, location)
    except BadUrl as error:
        raise _policy_error(code, what, base, str(error)) from None


def _policy_error(code: str, what: str, base: Destination, why: str, hint: str = "") -> Refused:
    """Return the error for a URL in a response from `base` that violates a rule. `what` is the kind of URL."""
    return Refused(f"{base}: unsafe {what}: {why}", code=code, hint=hint)


def _is_listed(origin: Origin, hosts: frozenset[str]) -> bool:
    """Return whether `hosts` contains the host of `origin`. An entry may omit the default port."""
    exact = f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
    return origin.netloc in hosts or exact in hosts


def _is_same_domain(one: Origin, other: Origin) -> bool:
    """Return whether two origins have the same registrable domain, which is a public suffix and one more label."""
    if ip_addresses.is_ip_address(one.host) or ip_addresses.is_ip_address(other.host):
        return False
    domain: str | None = _public_suffixes().privatesuffix(one.host)
    return domain is not None and domain == _public_suffixes().privatesuffix(other.host)


@functools.cache
def _public_suffixes() -> PublicSuffixList:
    """Return the public suffix list, which is loaded on first use."""
    from publicsuffixlist import PublicSuffixList  # noqa: PLC0415 (loading takes 50 ms; needed only for realms on another host)

    return PublicSuffixList()
