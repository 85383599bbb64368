"""The stores of a run: a client for each registry host in the configuration, and the layouts and bundles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mirror.commands.disk_stores import BundleStores, LayoutStores
from mirror.commands.registry_services import RegistryServices
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
from mirror.selection.repository_rules import can_match
from mirror.selection.tag_templates import TagTemplate
from mirror.store import Source, Target
from mirror.sync.plan_model import MirrorEntry, TargetEntry
from mirror.sync.small_blobs import SmallBlobSource
from mirror.transfer.blob_locations import BlobLocations, LocationHints
from mirror.transfer.routes import Routes

DEFAULT_PARALLEL = 8  # parallel requests to a host


class DiskStores(Protocol):
    """The stores on disk of a configuration: its layouts, or its bundles. Each is a source, a target, or both."""

    hosts: list[str]

    @property
    def sources(self) -> Mapping[str, Source]:
        """The stores from which mirrors read, by host name."""
        ...

    @property
    def targets(self) -> Mapping[str, Target]:
        """The stores to which mirrors write, by host name."""
        ...

    def incomplete_sources(self) -> list[tuple[str, MirrorError]]:
        """Return the sources that lack images from their own inventory, each with an error.

        Only sources that were read are checked."""
        ...

    def close(self) -> None:
        """Close the stores. Raises LocalError."""
        ...


class Stores:
    """All stores of a run: registries, layouts and bundles. The context manager closes them when its block exits.

    registries: the stores that are targets, by host name.
    The constructor sends no requests. It raises ConfigError, also for an invalid Docker configuration file. spool: the
    directory for data from conversions and pipes. base: an inventory to use instead of those in the configuration.
    writes: if False, converted layers are only measured, not stored. repair: whether to recreate damaged bundles.
    memory: records which repositories responded over v2 in earlier runs."""

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
        self._services = RegistryServices(config.registries, limits)
        self._credentials = CredentialSource(config.registries, on_secret=redactor.add, services=self._services.logins)
        named = [one for mirror in config.mirrors for one in (mirror.source, *mirror.targets)]
        hosts = list(dict.fromkeys(one.host for one in named))
        registries = [host for host in hosts if is_registry(host)]
        self._credentials.check_docker_files(one for one in named if is_registry(one.host))
        self._authorizers: dict[str, HostAuthorizer] = {}
        uses = [(mirror.wildcard, one.host) for mirror in config.mirrors for one in (mirror.source, *mirror.targets)]
        listed = {host for wildcard, host in uses if wildcard}
        self._v2 = {host: self._open_registry(host, lists_repositories=host in listed) for host in registries}
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

    def _open_registry(self, host: str, *, lists_repositories: bool) -> RegistryV2:
        """Create the client for a registry host. lists_repositories: whether its repositories may be listed."""
        settings = self._config.settings_for(host)
        self._limits.configure(host, settings.parallel or DEFAULT_PARALLEL, settings.rate, settings.bandwidth)
        session = Session(settings, self._limits)
        session.authorizer = authorizer = self._authorizers[host] = HostAuthorizer(
            settings, self._credentials, session.send_one_off, session.url_policy.check_realm, self._limits.clock
        )
        missing = self._services.missing_repositories(settings, self._credentials, authorizer.discard_grants)
        if not lists_repositories:
            return RegistryV2(session, missing=missing)
        catalog = self._services.catalog(host)
        if catalog is None:
            from mirror.registry.catalogs.registry_catalog import RegistryCatalog  # noqa: PLC0415 (only for wildcards)

            catalog = RegistryCatalog(session, self._credentials, authorizer.trials, self._limits.clock)
        return RegistryV2(session, catalog=catalog, missing=missing)

    def __enter__(self) -> Stores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for registry in self._v2.values():
            registry.close()
        self._sources.close()
        self._services.close()
        for stores in self._on_disk:
            stores.close()

    def delete_leftovers(self) -> None:
        """Delete converted layers that a killed run left behind. The caller must hold the lock of the run."""
        self._sources.delete_leftovers()

    def mark_host_down(self, error: MirrorError) -> None:
        """Mark the host of an error as down if the error shows that the host is unavailable.

        error: the last error of a transfer that failed. Its host may be one to which a registry redirects requests.
        Such a host has no client of its own, so any client may mark it."""
        registry = self._v2.get(error.host) or next(iter(self._v2.values()), None)
        if error.host and registry is not None:
            registry.mark_down_if_unreachable(error)

    def incomplete_sources(self) -> list[tuple[str, MirrorError]]:
        """Return the sources that lack images from their own inventory, each with an error.

        Only sources that were read are checked."""
        return [one for stores in self._on_disk for one in stores.incomplete_sources()]

    def entries(self) -> list[MirrorEntry]:
        """Return the mirrors of the configuration as entries for the planner."""
        return [
            MirrorEntry(
                source=self._source(mirror),
                repository=mirror.source.path,
                rules=mirror.tags,
                targets=tuple(map(self._target, mirror.targets, mirror.tag_templates)),
                # Docker Hub's quota counts GET requests for manifests, but not HEAD requests.
                heads_first=mirror.source.host == DOCKER_HUB,
                schema1=mirror.schema1 != "fail",
                converts_schema1=mirror.schema1 == "convert",
                foreign_layers=mirror.foreign_layers,
                wildcard=mirror.wildcard,
                repository_rules=mirror.repositories,
                platforms=mirror.platforms,
                signature_policy=mirror.signature_policy,
                number=number,
                attachments=mirror.attachments,
            )
            for number, mirror in enumerate(self._config.mirrors)
        ]

    def _source(self, mirror: MirrorConfig) -> Source:
        """Return the store that a mirror reads from: a registry, a layout or a bundle."""
        host = mirror.source.host
        if not is_registry(host):
            return self._local[host]
        settings = self._config.settings_for(host)
        source = self._sources.open(
            self._v2[host],
            self._authorizers[host],
            settings,
            v1=mirror.v1 or settings.v1,
            convert_schema1=mirror.schema1 == "convert",
        )
        # The selection of tags or platforms reads configs. Copies of the selected images must not read them again.
        reads_configs = (mirror.tags.newest and mirror.tags.by_created) or mirror.platforms is not None
        return SmallBlobSource(source) if reads_configs else source

    def _target(self, repository: Repository, tags: TagTemplate) -> TargetEntry:
        """Return a target of a mirror as an entry for the planner."""
        settings = self._config.settings_for(repository.host)
        return TargetEntry(
            self.registries[repository.host], Repository(repository.host, repository.path), settings.exclusive, tags
        )

    def blob_locations(self, hints: LocationHints) -> BlobLocations:
        """Return the object that tracks which repositories have which blobs. hints: the locations from earlier runs."""

        def login_path(repository: Repository) -> str:
            """Return the path prefix whose credentials apply to a repository."""
            return self._config.settings_for(repository.host).login_path(repository.path)

        return BlobLocations(hints, self._mountable_repositories(), self._wildcards(), login_path)

    def _mountable_repositories(self) -> dict[str, set[str]]:
        """Return the paths of the repositories from which blobs may be mounted, by host.

        These are the sources and targets in the configuration, without the repositories that match a wildcard."""
        named: defaultdict[str, set[str]] = defaultdict(set)
        for mirror in self._config.mirrors:
            if not mirror.wildcard:
                for repository in (mirror.source, *mirror.targets):
                    named[repository.host].add(repository.path)
        return dict(named)

    def _wildcards(self) -> dict[str, list[Callable[[str], bool]]]:
        """Return functions that tell whether a path matches a wildcard source or target, by host."""
        named: defaultdict[str, list[Callable[[str], bool]]] = defaultdict(list)
        for mirror in self._config.mirrors:
            if mirror.wildcard:
                source = f"{mirror.source.path}/{MATCHED}" if mirror.source.path else MATCHED
                for host, template in ((mirror.source.host, source), *((one.host, one.path) for one in mirror.targets)):
                    named[host].append(partial(can_match, template=template, rules=mirror.repositories))
        return dict(named)

    def routes(self, entries: Iterable[MirrorEntry]) -> Routes:
        """Return the rules that decide when a blob is written to the spool, and when a mount is tried.

        Blobs from stores on disk are not written to the spool, since they can be read repeatedly."""
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
        """Return the maximum number of parallel requests to each host."""
        return {host: self._limits.host(host).parallel for host in (*self.registries, *self._local)}


def _open_disk_stores(
    config: Config, hosts: Iterable[str], spool: Path, base: Path | None, *, repair: bool
) -> list[DiskStores]:
    """Open the layouts and bundles of the configuration. Raises ConfigError.

    Bundles come last in the list, since they must be closed last."""
    local = [host for host in hosts if not is_registry(host)]
    found: list[DiskStores] = []
    if not all(is_bundle(host) for host in local):
        found.append(LayoutStores(config))
    if base is not None or any(is_bundle(host) for host in local):
        found.append(BundleStores(config, spool, base, repair=repair))
    return found
