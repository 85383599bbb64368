"""Lists the Docker repositories in an Artifactory repository.

The host serves several Artifactory repositories. The first part of the path of a Docker repository is the key of the
Artifactory repository. Source: JFrog's REST API documentation, "List Docker Repositories"
(`GET /api/docker/{repo-key}/v2/_catalog`, with `n` and `last`).
"""

from __future__ import annotations

from collections.abc import Iterator

from mirror.errors import NotFound
from mirror.registry.catalogs.api import ONE_BY_ONE, Page, PageResponse, RegistryAccess
from mirror.registry.listings import PAGE_SIZE
from mirror.util.cancellation import Work

PING = "/artifactory/api/system/ping"
_HINT = f"the account needs read access to the repository in Artifactory; otherwise, {ONE_BY_ONE}"


class ArtifactoryCatalog:
    """The catalog of Artifactory. Thread-safe."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access

    def list_repositories(self, prefix: str, work: Work) -> Iterator[str]:
        """Yield the Docker repositories in the Artifactory repository whose key is the first part of `prefix`.

        Raises NotFound if there is no such repository."""
        key = prefix.partition("/")[0]
        if not key:
            hint = f"write {self._access.host}/repository-key/*"
            raise NotFound(
                f"{self._access.host} lists repositories only below the key of an Artifactory repository", hint=hint
            )

        def read_page(response: PageResponse) -> Page:
            """Parse a page. Only a page without new names is the end of the list, because any page may be short."""
            names = response.strings("repositories")
            is_last = not names or names[-1] == response.query.get("last")
            return Page([f"{key}/{name}" for name in names], None if is_last else {**response.query, "last": names[-1]})

        with self._access.open_api(self._access.find_credential(prefix, work), _HINT) as api:
            api.authorize(scheme="Basic")
            path = f"/artifactory/api/docker/{key}/v2/_catalog"
            yield from api.list_names(path, {"n": str(PAGE_SIZE)}, read_page, work)
