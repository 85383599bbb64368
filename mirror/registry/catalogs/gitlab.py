"""Lists the registry repositories of a group or project on GitLab.

Source: GitLab's "Container registry API", https://docs.gitlab.com/api/container_registry/: "List registry repositories"
within a group (which includes its subgroups) and within a project; "REST API", "Pagination" and "Namespaced paths". The
API is on the host of the token service, not on the host of the registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from mirror.errors import NotFound
from mirror.registry.catalogs.api import ONE_BY_ONE, PAGE_SIZE, Page, PageResponse, RegistryAccess
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Work

SERVICE_PATH = "/jwt/auth"  # the end of the path of GitLab's token service
_LEVELS = 2  # the maximum number of parts that follow the project's path in the name of an image
_HINT = (
    "as the password, set an access token (personal, group or project) with the scope read_api, because deploy tokens "
    f"and passwords cannot be used; or {ONE_BY_ONE}"
)


class GitlabCatalog:
    """The catalog of GitLab's registry. Thread-safe.

    service: the URL of the token service, which `check_realm` has accepted."""

    def __init__(self, access: RegistryAccess, service: Destination) -> None:
        self._access = access
        self._api = service
        self._base = f"{service.path.removesuffix(SERVICE_PATH)}/api/v4"

    def list_repositories(self, prefix: str, work: Work) -> Iterator[str]:
        """Yield the repositories of the group or project whose path is `prefix`, or of the project that contains it.

        Raises NotFound if the group or project does not exist, or if the account may not see it."""
        path = prefix.removesuffix("/")
        if not path:
            hint = f"write {self._access.host}/group/*"
            raise NotFound(f"{self._access.host} lists repositories only by group or project", hint=hint)
        parts = path.split("/")
        owners = [("groups", path)]
        owners += [
            ("projects", "/".join(parts[:end])) for end in range(len(parts), max(1, len(parts) - _LEVELS - 1), -1)
        ]
        query = {"per_page": PAGE_SIZE, "page": "1"}
        with self._access.open_api(self._access.find_credential(prefix, work), _HINT, api=self._api) as api:
            api.authorize(scheme="Bearer")
            for kind, owner in owners:
                target = f"{self._base}/{kind}/{quote(owner, safe='')}/registry/repositories"
                try:
                    yield from api.list_names(target, query, _read_page, work)
                    return
                except NotFound:
                    continue
            raise NotFound(
                f"{api.name} has no group or project {path} that this account can see", hint=_HINT, status=404
            )


def _read_page(response: PageResponse) -> Page:
    """Parse a page of repositories. The last page has neither an X-Next-Page header nor a Link to the next page."""
    is_last = not response.headers.get("x-next-page") and not response.has_next_link
    return Page(response.texts("path"), None if is_last else response.next_page())
