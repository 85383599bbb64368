"""Registry hosts as sources: v2 as it is, or with what old registries and old images need around it."""

from __future__ import annotations

from pathlib import Path

from mirror.backoff import Policy
from mirror.limits import Limits
from mirror.oci.reference import DOCKER_HUB
from mirror.registry.auth import HostAuthorizer
from mirror.registry.cookies import Cookies
from mirror.registry.credentials import CredentialSource
from mirror.registry.fallback import FallbackSource
from mirror.registry.protocols import Protocols
from mirror.registry.schema1 import Schema1Source
from mirror.registry.scratch import Scratch
from mirror.registry.session import Session
from mirror.registry.settings import V1, HostSettings
from mirror.registry.v1 import V1Client
from mirror.registry.v1auth import V1Authorizer
from mirror.registry.v1image import Ancestor
from mirror.registry.v2 import RegistryV2
from mirror.store import Source


class Sources:
    """Opens sources, each once for the same wishes; closes what it opened. Opening contacts nobody.

    scratch: where conversions put what they made, below the spool; limit: of its bytes; policy: of retries, by v1. Not
    thread-safe."""

    def __init__(
        self,
        credentials: CredentialSource,
        limits: Limits,
        scratch: Path,
        limit: int | None,
        *,
        policy: Policy | None = None,
    ) -> None:
        self._credentials = credentials
        self._limits = limits
        self._policy = policy
        self._ancestors: Scratch[Ancestor] = Scratch(scratch / "v1", limit)
        self._layers: Scratch[None] = Scratch(scratch / "schema1", limit)
        self._clients: dict[str, V1Client] = {}
        self._opened: dict[tuple[str, V1, bool], Source] = {}

    def open(
        self, registry: RegistryV2, authorizer: HostAuthorizer, settings: HostSettings, *, v1: V1, convert_schema1: bool
    ) -> Source:
        """The registry as a source. v1: for this use of it; Docker Hub has none, whatever is wished."""
        mode = V1.NEVER if settings.host == DOCKER_HUB else v1
        key = (settings.host, mode, convert_schema1)
        if key not in self._opened:
            source: Source = Schema1Source(registry, self._layers) if convert_schema1 else registry
            if mode is not V1.NEVER:
                client = self._client(settings)
                protocols = Protocols(source, registry, client, mode, authorizer)
                exact = settings.v1_checksums == "require"
                source = FallbackSource(source, client, protocols, self._ancestors, exact=exact)
            self._opened[key] = source
        return self._opened[key]

    def _client(self, settings: HostSettings) -> V1Client:
        client = self._clients.get(settings.host)
        if client is None:
            authorizer = V1Authorizer(settings, self._credentials)
            session = Session(settings, self._limits, authorizer=authorizer, cookies=Cookies(), policy=self._policy)
            client = self._clients[settings.host] = V1Client(session, authorizer)
        return client

    def sweep(self) -> None:
        """Remove what conversions of a killed run left. For who holds the lock."""
        self._ancestors.sweep()
        self._layers.sweep()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._ancestors.close()
        self._layers.close()
