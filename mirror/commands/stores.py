"""The stores of a run: a client for each registry host of the configuration, and the layouts and bundles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mirror.commands.disk_stores import BundleStores, LayoutStores
from mirror.commands.registry_sources import RegistrySources
from mirror.config import Config, MirrorConfig
from mirror.errors import MirrorError
from mirror.limits import Limits
from mirror.oci.reference import DOCKER_HUB, Repository
from mirror.output.redaction import Redactor
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.client import RegistryV2
from mirror.registry.session import Session
from mirror.registry.v1.fallback_state import V2Memory
from mirror.selection.locations import MATCHED, is_bundle, is_registry
from mirror.store import Source, Target
from mirror.sync.plan_model import MirrorEntry, TargetEntry
from mirror.transfer.routes import Routes

DEFAULT_PARALLEL = 8  # parallel requests to a host


class DiskStores(Protocol):
    """The stores of one kind on disk, by host name. A host is a source, a target, or both."""

    hosts: list[str]

    @property
    def sources(self) -> Mapping[str, Source]:
        """The sources by host name."""
        ...

    @property
    def targets(self) -> Mapping[str, Target]:
        """The targets by host name."""
        ...

    def incomplete_sources(self) -> list[tuple[str, MirrorError]]:
        """Return sources that were read and lack images of their own inventory, with an error for each."""
        ...

    def close(self) -> None:
        """Close the stores. Raises LocalError."""
        ...


class Stores:
    """The stores of a run. The end of the `with` block closes them.

    Opening sends no requests, but reports a broken docker configuration. Raises ConfigError.
    registries: the target stores by host name.
    spool: the directory for data from conversions and pipes. base: an inventory that replaces those of the
    configuration.
    writes: False: conversions are only measured. repair: damaged bundles are created anew. memory: of earlier runs."""

    def __init__(
        self,
        config: Config,
        limits: Limits,
        redactor: Redactor,
        spool: Path,
        base: Path | None = None,
        *,
        writes: bool = True,
        repair: bool = False,
        memory: V2Memory | None = None,
    ) -> None:
        self._config = config
        self._limits = limits
        self._credentials = CredentialSource(config.registries, on_secret=redactor.add)
        hosts = list(dict.fromkeys(one.host for mirror in config.mirrors for one in (mirror.source, *mirror.targets)))
        registries = [host for host in hosts if is_registry(host)]
        self._credentials.check_docker_files(registries)
        self._authorizers: dict[str, HostAuthorizer] = {}
        self._v2 = {host: self._open(host) for host in registries}
        self._on_disk = _open_disk_stores(config, hosts, spool, base, repair=repair)
        self.registries: dict[str, Target] = {host: one.as_target() for host, one in self._v2.items()}
        self._local: dict[str, Source] = {}
        for stores in self._on_disk:
            self.registries |= stores.targets
            self._local |= stores.sources
            for host in stores.hosts:
                limits.configure(host, DEFAULT_PARALLEL)
        scratch = spool / "converted" if writes else None
        self._sources = RegistrySources(self._credentials, limits, scratch, config.spool_max, memory=memory)

    def _open(self, host: str) -> RegistryV2:
        """Create the client of a registry host."""
        settings = self._config.settings_for(host)
        self._limits.configure(host, settings.parallel or DEFAULT_PARALLEL, settings.rate)
        session = Session(settings, self._limits)
        session.authorizer = self._authorizers[host] = HostAuthorizer(
            settings, self._credentials, session.send_one_off, session.url_policy.check_realm, self._limits.clock
        )
        return RegistryV2(session)

    def __enter__(self) -> Stores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for registry in self._v2.values():
            registry.close()
        self._sources.close()
        for stores in self._on_disk:
            stores.close()

    def delete_leftovers(self) -> None:
        """Delete what a killed run left. The caller must hold the lock."""
        self._sources.delete_leftovers()

    def mark_host_down(self, error: MirrorError) -> None:
        """Mark the host of `error`, which persisted through all retries of a transfer, as down.

        The host may be one that a registry redirected to; any client can mark it."""
        registry = self._v2.get(error.host) or next(iter(self._v2.values()), None)
        if error.host and registry is not None:
            registry.note_exhausted(error)

    def incomplete_sources(self) -> list[tuple[str, MirrorError]]:
        """Return sources that were read and lack images of their own inventory, with an error for each."""
        return [one for stores in self._on_disk for one in stores.incomplete_sources()]

    def entries(self) -> list[MirrorEntry]:
        """Return the mirrors of the configuration as entries for the planner."""
        return [
            MirrorEntry(
                source=self._source(mirror),
                repository=mirror.source.path,
                rules=mirror.tags,
                targets=tuple(self._target(target) for target in mirror.targets),
                # Docker Hub's quota counts GETs of manifests, but not HEADs.
                heads_first=mirror.source.host == DOCKER_HUB,
                schema1=mirror.schema1 != "fail",
                wildcard=mirror.wildcard,
            )
            for mirror in self._config.mirrors
        ]

    def _source(self, mirror: MirrorConfig) -> Source:
        """Return the source of a mirror."""
        host = mirror.source.host
        if not is_registry(host):
            return self._local[host]
        settings = self._config.settings_for(host)
        return self._sources.open(
            self._v2[host],
            self._authorizers[host],
            settings,
            v1=mirror.v1 or settings.v1,
            convert_schema1=mirror.schema1 == "convert",
        )

    def _target(self, repository: Repository) -> TargetEntry:
        """Return a target of a mirror for the planner."""
        settings = self._config.settings_for(repository.host)
        return TargetEntry(
            self.registries[repository.host], Repository(repository.host, repository.path), settings.exclusive
        )

    def mountable(self) -> dict[str, set[str]]:
        """Return the repositories that the configuration names, by host. Matches of wildcards are not included."""
        named: defaultdict[str, set[str]] = defaultdict(set)
        for mirror in self._config.mirrors:
            if not mirror.wildcard:
                for repository in (mirror.source, *mirror.targets):
                    named[repository.host].add(repository.path)
        return dict(named)

    def wildcards(self) -> dict[str, list[tuple[str, str]]]:
        """Return the texts before and after each `*` in repositories of the configuration, by host."""
        named: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for mirror in self._config.mirrors:
            if mirror.wildcard:
                prefix = f"{mirror.source.path}/" if mirror.source.path else ""
                named[mirror.source.host].append((prefix, ""))
                for target in mirror.targets:
                    before, _, after = target.path.partition(MATCHED)
                    named[target.host].append((before, after))
        return dict(named)

    def routes(self, entries: Iterable[MirrorEntry]) -> Routes:
        """Return the rules for the use of the spool.

        Blobs of stores on disk do not use it, since they can be read repeatedly."""
        hosts = self.registries
        return Routes(
            (
                (entry.source.host, target.repository.host)
                for entry in entries
                if is_registry(entry.source.host)
                for target in entry.targets
            ),
            mounting={host: self._config.settings_for(host).mount for host in hosts},
            parallel=self.parallel(),
        )

    def parallel(self) -> dict[str, int]:
        """Return the number of parallel requests by host."""
        return {host: self._limits.host(host).parallel for host in (*self.registries, *self._local)}


def _open_disk_stores(
    config: Config, hosts: Iterable[str], spool: Path, base: Path | None, *, repair: bool
) -> list[DiskStores]:
    """Open the layouts and bundles of the configuration. Raises ConfigError.

    Modules of kinds that are not used are not imported. Bundles come last, since they must be closed last."""
    local = [host for host in hosts if not is_registry(host)]
    found: list[DiskStores] = []
    if not all(is_bundle(host) for host in local):
        found.append(LayoutStores(config))
    if base is not None or any(is_bundle(host) for host in local):
        found.append(BundleStores(config, spool, base, repair=repair))
    return found
