"""Opens registries as sources over v2, with fallback to v1 and conversion of schema 1 manifests if configured so."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.limits import Limits
from mirror.oci.reference import DOCKER_HUB
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.client import RegistryV2
from mirror.registry.convert.layer_cache import DigestOnlyCache, LayerCache
from mirror.registry.http.host_settings import HostSettings, V1Mode
from mirror.registry.v1.fallback_source import FallbackSource
from mirror.registry.v1.fallback_state import ProtocolSelector, V2Memory
from mirror.store import Source
from mirror.util.retry_policy import Policy

if TYPE_CHECKING:
    from mirror.registry.v1.host import V1Host
    from mirror.registry.v1.image_conversion import Ancestor


class RegistrySources:
    """The registries that a run reads from: one source for each host and combination of settings.

    Opening a source sends no requests.

    scratch: a directory for converted layers; if it is None, layers are only measured, not stored. limit: the maximum
    total size of the converted layers of v1 images in bytes, and the same for schema 1 images; None for half of the
    free space. policy: the retry policy for v1. memory: records which repositories responded over v2 in earlier runs.
    Only the opened sources are thread-safe."""

    def __init__(
        self,
        credentials: CredentialSource,
        limits: Limits,
        scratch: Path | None,
        limit: int | None,
        *,
        policy: Policy | None = None,
        memory: V2Memory | None = None,
    ) -> None:
        self._credentials = credentials
        self._limits = limits
        self._policy = policy
        self._memory = memory
        self._ancestors: LayerCache[Ancestor] = LayerCache(scratch / "v1", limit) if scratch else DigestOnlyCache()
        self._layers: LayerCache[None] = LayerCache(scratch / "schema1", limit) if scratch else DigestOnlyCache()
        self._v1_hosts: dict[str, V1Host] = {}
        self._opened: dict[tuple[str, V1Mode, bool], Source] = {}

    def open(
        self,
        registry: RegistryV2,
        authorizer: HostAuthorizer,
        settings: HostSettings,
        *,
        v1: V1Mode,
        convert_schema1: bool,
    ) -> Source:
        """Return the registry as a source. v1: when to fall back to the v1 protocol; ignored for Docker Hub."""
        mode = V1Mode.NEVER if settings.host == DOCKER_HUB else v1
        key = (settings.host, mode, convert_schema1)
        if key not in self._opened:
            source = self._schema1_source(registry) if convert_schema1 else registry
            if mode is not V1Mode.NEVER:
                open_v1 = partial(self._open_v1, settings)
                selector = ProtocolSelector(source, registry, open_v1, mode, authorizer, self._memory)
                source = FallbackSource(source, selector)
            self._opened[key] = source
        return self._opened[key]

    def _schema1_source(self, registry: RegistryV2) -> Source:
        """Return the registry as a source that converts schema 1 manifests."""
        from mirror.registry.convert.schema1 import Schema1Source  # noqa: PLC0415 (rarely needed)

        return Schema1Source(registry, self._layers)

    def _open_v1(self, settings: HostSettings) -> V1Host:
        """Return the v1 client for a host, and create it on first use. Thread-safe."""
        host = self._v1_hosts.get(settings.host)
        if host is None:
            from mirror.registry.v1.host import V1Host  # noqa: PLC0415 (rarely needed: v2 has to fail first)

            opened = V1Host(settings, self._credentials, self._limits, self._ancestors, self._policy)
            host = self._v1_hosts.setdefault(settings.host, opened)
            if host is not opened:
                opened.close()
        return host

    def delete_leftovers(self) -> None:
        """Delete converted layers that a killed run left behind. The caller must hold the lock of the run."""
        self._ancestors.remove_leftovers()
        self._layers.remove_leftovers()

    def close(self) -> None:
        """Close the v1 clients, and delete the converted layers."""
        for host in self._v1_hosts.values():
            host.close()
        self._ancestors.close()
        self._layers.close()
