"""The catalog of a registry: the list of its repositories."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mirror.registry.auth.authorizer import CATALOG
from mirror.registry.listings import Paging, list_names
from mirror.registry.session import Session
from mirror.util.cancellation import Work


class Catalog(Protocol):
    """An interface that lists the repositories of one registry. Implementations are thread-safe."""

    def list_repositories(self, prefix: str, work: Work) -> Iterable[str]:
        """Yield the names of all repositories that begin with `prefix`. The result may also contain other names.

        `prefix` is empty or ends with a slash. The names are not validated. Raises NotFound if the registry has no such
        list, AuthError if access to it is denied, Refused (too_many) if a limit is exceeded."""
        ...


class V2Catalog:
    """The catalog of the v2 API, `GET /v2/_catalog`.

    Source: the distribution project's "HTTP API V2", "Listing Repositories"; the distribution-spec has no such list."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._paging = Paging()

    def list_repositories(self, prefix: str, work: Work) -> Iterable[str]:
        """Yield the names of all repositories in the catalog."""
        return list_names(self._session, "/v2/_catalog", "repositories", CATALOG, work, self._paging)
