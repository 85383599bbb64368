"""Lists the repositories of a project on Harbor.

Source: Harbor's API definition (api/v2.0/swagger.yaml): "List repositories of the specified project" and "List all
authorized repositories", with Basic authentication, `page` and `page_size`, and a Link to the next page. `GET
/v2/_catalog` is only for administrators of Harbor.
"""

from __future__ import annotations

from collections.abc import Iterator

from mirror.registry.catalogs.api import ONE_BY_ONE, PAGE_SIZE, Page, PageResponse, RegistryAccess
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Work

_HINT = f"the account needs the permission to list repositories of the project; otherwise, {ONE_BY_ONE}"


class HarborCatalog:
    """The catalog of Harbor. Thread-safe.

    api: the origin of the API; None if the registry itself serves the API."""

    def __init__(self, access: RegistryAccess, api: Destination | None = None) -> None:
        self._access = access
        self._api = api

    def list_repositories(self, prefix: str, work: Work) -> Iterator[str]:
        """Yield the repositories in the project that is the first part of `prefix`, or in all projects if it is empty.

        Raises AuthError or NotFound if the account has no access to the project."""
        project = prefix.partition("/")[0]
        path = f"/api/v2.0/projects/{project}/repositories" if project else "/api/v2.0/repositories"
        with self._access.open_api(self._access.find_credential(prefix, work), _HINT, api=self._api) as api:
            api.authorize(scheme="Basic")
            yield from api.list_names(path, {"page": "1", "page_size": PAGE_SIZE}, _read_page, work)


def _read_page(response: PageResponse) -> Page:
    """Parse a page, which is a list of repositories. Their names include the project."""
    return Page(response.texts("name"), response.next_page() if response.has_next_link else None)
