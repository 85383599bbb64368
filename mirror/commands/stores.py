"""The stores of a run: one client for each registry host that the configuration uses, and what it uses on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mirror.commands.disk_stores import Bundles, Layouts
from mirror.commands.registry_sources import Sources
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
from mirror.sync.plan_model import Entry, TargetEntry
from mirror.transfer.blob_locations import Place, Routes

DEFAULT_PARALLEL = 8  # requests in flight at a host


class OnDisk(Protocol):
    """The stores of one kind on disk, by what they are called. A host is among the sources, the targets, or both."""

    hosts: list[str]

    @property
    def sources(self) -> Mapping[str, Source]: ...
    @property
    def targets(self) -> Mapping[str, Target]: ...
    def incomplete(self) -> list[tuple[str, MirrorError]]:
        """Sources that were asked, and say themselves that they lack images: what they are called, and the error."""
        ...

    def close(self) -> None:
        """Raises LocalError."""
        ...


class Stores:
    """Use with `with`: closes what it opened. Opening contacts nobody; a broken docker configuration is found here.

    spool: what is made of sources, or comes through pipes, goes below it; base: an inventory, instead of those that
    the configuration names; copies: else what is made of sources is only measured; repair: damaged bundles are made
    anew; memory: of earlier runs. registries: the targets, by what they are called. Raises ConfigError."""

    def __init__(
        self,
        config: Config,
        limits: Limits,
        redactor: Redactor,
        spool: Path,
        base: Path | None = None,
        *,
        copies: bool = True,
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
        self._on_disk = _on_disk(config, hosts, spool, base, repair=repair)
        self.registries: dict[str, Target] = {host: one.as_target() for host, one in self._v2.items()}
        self._local: dict[str, Source] = {}
        for stores in self._on_disk:
            self.registries |= stores.targets
            self._local |= stores.sources
            for host in stores.hosts:
                limits.configure(host, DEFAULT_PARALLEL)
        scratch = spool / "converted" if copies else None
        self._sources = Sources(self._credentials, limits, scratch, config.spool_max, memory=memory)

    def _open(self, host: str) -> RegistryV2:
        settings = self._config.settings_for(host)
        self._limits.configure(host, settings.parallel or DEFAULT_PARALLEL, settings.rate)
        session = Session(settings, self._limits)
        session.authorizer = self._authorizers[host] = HostAuthorizer(
            settings, self._credentials, session.one_off, session.trust.realm, self._limits.clock
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

    def sweep(self) -> None:
        """Remove what a killed run left. For who holds the lock."""
        self._sources.sweep()

    def gave_up(self, error: MirrorError) -> None:
        """`error` outlived all retries of a transfer. Its host may be one that a registry redirected to: any client can
        note that."""
        registry = self._v2.get(error.host) or next(iter(self._v2.values()), None)
        if error.host and registry is not None:
            registry.note_exhausted(error)

    def incomplete(self) -> list[tuple[str, MirrorError]]:
        """Sources that were asked, and say themselves that they lack images, each with an error that says so."""
        return [one for stores in self._on_disk for one in stores.incomplete()]

    def entries(self) -> list[Entry]:
        """The mirrors of the configuration, for a planner."""
        return [
            Entry(
                source=self._source(mirror),
                repository=mirror.source.path,
                rules=mirror.tags,
                targets=tuple(self._target(target) for target in mirror.targets),
                # Docker Hub's quota counts manifest GETs, and no HEADs.
                heads_first=mirror.source.host == DOCKER_HUB,
                schema1=mirror.schema1 != "fail",
                wildcard=mirror.wildcard,
            )
            for mirror in self._config.mirrors
        ]

    def _source(self, mirror: MirrorConfig) -> Source:
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
        settings = self._config.settings_for(repository.host)
        return TargetEntry(
            self.registries[repository.host], Place(repository.host, repository.path), settings.exclusive
        )

    def mountable(self) -> dict[str, set[str]]:
        """The repositories of each host that the configuration names, without those that only a wildcard matches."""
        named: defaultdict[str, set[str]] = defaultdict(set)
        for mirror in self._config.mirrors:
            if not mirror.wildcard:
                for repository in (mirror.source, *mirror.targets):
                    named[repository.host].add(repository.path)
        return dict(named)

    def wildcards(self) -> dict[str, list[tuple[str, str]]]:
        """What stands before and after the `*` where the configuration names repositories by a pattern, by host."""
        named: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for mirror in self._config.mirrors:
            if mirror.wildcard:
                prefix = f"{mirror.source.path}/" if mirror.source.path else ""
                named[mirror.source.host].append((prefix, ""))
                for target in mirror.targets:
                    before, _, after = target.path.partition(MATCHED)
                    named[target.host].append((before, after))
        return dict(named)

    def routes(self, entries: Iterable[Entry]) -> Routes:
        """Which blobs go through the spool: not those of stores on disk, which can be read as often as one likes."""
        hosts = self.registries
        return Routes(
            (
                (entry.source.host, target.place.host)
                for entry in entries
                if is_registry(entry.source.host)
                for target in entry.targets
            ),
            mounting={host: self._config.settings_for(host).mount for host in hosts},
            parallel=self.parallel(),
        )

    def parallel(self) -> dict[str, int]:
        """Requests in flight, by host."""
        return {host: self._limits.host(host).parallel for host in (*self.registries, *self._local)}


def _on_disk(config: Config, hosts: Iterable[str], spool: Path, base: Path | None, *, repair: bool) -> list[OnDisk]:
    """Layouts and bundles. Bundles come last: they are closed last. Raises ConfigError."""
    local = [host for host in hosts if not is_registry(host)]
    found: list[OnDisk] = []
    if not all(is_bundle(host) for host in local):
        found.append(Layouts(config))
    if base is not None or any(is_bundle(host) for host in local):
        found.append(Bundles(config, spool, base, repair=repair))
    return found
