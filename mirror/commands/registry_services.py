"""Services of registry providers, which create and list repositories, and issue passwords."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mirror.limits import Limits
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.auth.expiring_logins import ExpiringLogin
from mirror.registry.catalog import Catalog
from mirror.registry.ecr import EcrService
from mirror.registry.http.host_settings import EcrRepositorySettings, HarborProjectSettings, HostSettings
from mirror.registry.missing_repositories import MissingRepositories, RepositoryCreator


class Closable(Protocol):
    """An object that must be closed after use."""

    def close(self) -> None:
        """Close the object."""
        ...


class RegistryServices:
    """The provider services that a configuration needs, by registry host. The constructor opens no connections."""

    def __init__(self, settings: Mapping[str, HostSettings], limits: Limits) -> None:
        self._limits = limits
        self._ecr = {
            host: EcrService(host, _ecr_settings(one))
            for host, one in settings.items()
            if one.login == "ecr" or isinstance(one.create, EcrRepositorySettings)
        }
        self._opened: list[Closable] = [*self._ecr.values()]
        self.logins = {
            host: ExpiringLogin(self._ecr[host], limits.clock) for host, one in settings.items() if one.login == "ecr"
        }

    def catalog(self, host: str) -> Catalog | None:
        """Return the catalog that lists a host's repositories through a service, or None if no service is used."""
        service = self._ecr.get(host)
        return service if service is not None and host in self.logins and service.lists_repositories else None

    def missing_repositories(
        self, settings: HostSettings, credentials: CredentialSource, on_created: Callable[[str], None]
    ) -> MissingRepositories:
        """Return the object that creates missing repositories on a host. on_created: see `MissingRepositories`."""
        return MissingRepositories(settings.host, self._creator(settings, credentials), on_created)

    def _creator(self, settings: HostSettings, credentials: CredentialSource) -> RepositoryCreator | None:
        """Return the service that creates repositories on a host, or None if the configuration does not allow this."""
        if isinstance(settings.create, EcrRepositorySettings):
            return self._ecr[settings.host]
        if not isinstance(settings.create, HarborProjectSettings):
            return None
        from mirror.registry.harbor import HarborService  # noqa: PLC0415 (rarely needed)

        service = HarborService(settings, settings.create, credentials, self._limits)
        self._opened.append(service)
        return service

    def close(self) -> None:
        """Close the services, and their idle connections."""
        for service in self._opened:
            service.close()


def _ecr_settings(settings: HostSettings) -> EcrRepositorySettings:
    """Return the settings for new repositories on ECR, or default settings if the key `create` is missing."""
    return settings.create if isinstance(settings.create, EcrRepositorySettings) else EcrRepositorySettings()
