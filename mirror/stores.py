"""The stores of a run: one client for each registry host that the configuration uses."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from mirror.config import Config
from mirror.errors import MirrorError
from mirror.findings import Entry, TargetEntry
from mirror.limits import Limits
from mirror.oci.reference import DOCKER_HUB, Repository
from mirror.redact import Redactor
from mirror.registry.auth import HostAuthorizer
from mirror.registry.credentials import CredentialSource
from mirror.registry.session import Session
from mirror.registry.v2 import RegistryV2
from mirror.transfer.placement import Place, Routes

DEFAULT_PARALLEL = 8  # requests in flight at a host


class Stores:
    """Use with `with`: closes what it opened. Opening contacts nobody; a broken docker configuration is found here.

    Raises ConfigError."""

    def __init__(self, config: Config, limits: Limits, redactor: Redactor) -> None:
        self._config = config
        self._limits = limits
        self._credentials = CredentialSource(config.registries, on_secret=redactor.add)
        hosts = dict.fromkeys(
            repository.host for mirror in config.mirrors for repository in (mirror.source, *mirror.targets)
        )
        self._credentials.check(hosts)
        self.registries = {host: self._open(host) for host in hosts}

    def _open(self, host: str) -> RegistryV2:
        settings = self._config.settings_for(host)
        self._limits.configure(host, settings.parallel or DEFAULT_PARALLEL, settings.rate)
        session = Session(settings, self._limits)
        session.authorizer = HostAuthorizer(
            settings, self._credentials, session.one_off, session.trust.realm, self._limits.clock
        )
        return RegistryV2(session)

    def __enter__(self) -> Stores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for registry in self.registries.values():
            registry.close()

    def gave_up(self, error: MirrorError) -> None:
        """A transfer failed for good: if its host cannot be reached at all, it counts as down."""
        registry = self.registries.get(error.host)
        if registry is not None:
            registry.gave_up(error)

    def entries(self) -> list[Entry]:
        """The mirrors of the configuration, for a planner."""
        return [
            Entry(
                source=self.registries[mirror.source.host],
                repository=mirror.source.path,
                rules=mirror.tags,
                targets=tuple(self._target(target) for target in mirror.targets),
                # Docker Hub's quota counts manifest GETs, and no HEADs.
                heads_first=mirror.source.host == DOCKER_HUB,
                schema1=mirror.schema1 != "fail",
            )
            for mirror in self._config.mirrors
        ]

    def _target(self, repository: Repository) -> TargetEntry:
        settings = self._config.settings_for(repository.host)
        return TargetEntry(
            self.registries[repository.host], Place(repository.host, repository.path), settings.exclusive
        )

    def mountable(self) -> dict[str, set[str]]:
        """The repositories of each host that the configuration names: only these are mounted from."""
        named: dict[str, set[str]] = {}
        for mirror in self._config.mirrors:
            for repository in (mirror.source, *mirror.targets):
                named.setdefault(repository.host, set()).add(repository.path)
        return named

    def routes(self, entries: Iterable[Entry]) -> Routes:
        """Which blobs go through the spool."""
        hosts = self.registries
        return Routes(
            ((entry.source.host, target.place.host) for entry in entries for target in entry.targets),
            mounting={host: self._config.settings_for(host).mount for host in hosts},
            parallel=self.parallel(),
        )

    def parallel(self) -> dict[str, int]:
        """Requests in flight, by host."""
        return {host: self._limits.host(host).parallel for host in self.registries}
