"""Lists the container images of an organization or user on GitHub's registry, ghcr.io.

Source: GitHub REST API, "REST API endpoints for packages", https://docs.github.com/en/rest/packages/packages: "List
packages for an organization" and "List packages for a user". Both require a personal access token (classic) with the
scope `read:packages`, even for public packages.
"""

from __future__ import annotations

from collections.abc import Iterator

from mirror.errors import AuthError, NotFound
from mirror.registry.catalogs.api import ONE_BY_ONE, PAGE_SIZE, Page, PageResponse, RegistryAccess
from mirror.registry.http.url_policy import Destination, Origin
from mirror.util.cancellation import Work

# A fixed host: it belongs to GitHub, and receives the credentials for ghcr.io (docs/trust.md).
API = Destination(Origin("https", "api.github.com", 443), "/", credentials=True)
_HEADERS = (("Accept", "application/vnd.github+json"), ("X-GitHub-Api-Version", "2022-11-28"))
_HINT = (
    f"as the password for ghcr.io, set a personal access token (classic) with the scope read:packages; or {ONE_BY_ONE}"
)


class GhcrCatalog:
    """The catalog of ghcr.io. Thread-safe."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access

    def list_repositories(self, prefix: str, work: Work) -> Iterator[str]:
        """Yield the container images of the organization or user that is the first part of `prefix`.

        Raises AuthError if no credentials are configured, NotFound if there is no such organization or user."""
        owner = prefix.partition("/")[0]
        if not owner:
            raise NotFound("ghcr.io lists repositories only by owner", hint="write ghcr.io/owner/*")

        def read_page(response: PageResponse) -> Page:
            """Parse a page, which is a list of packages. If another page follows, the headers contain a Link."""
            # The URL in the Link contains the owner's number instead of its name, so it is not used: pages are counted.
            names = [f"{owner}/{name}" for name in response.texts("name")]
            return Page(names, response.next_page() if response.has_next_link else None)

        credential = self._access.find_credential(prefix, work)
        if credential is None:
            raise AuthError("ghcr.io lists repositories only with credentials", hint=_HINT, code="auth_failed")
        query = {"package_type": "container", "per_page": PAGE_SIZE, "page": "1"}
        with self._access.open_api(credential, _HINT, api=API) as api:
            api.authorize(scheme="Bearer")
            try:
                yield from api.list_names(f"/orgs/{owner}/packages", query, read_page, work, headers=_HEADERS)
                return
            except NotFound:
                pass  # it is not an organization
            try:
                yield from api.list_names(f"/users/{owner}/packages", query, read_page, work, headers=_HEADERS)
            except NotFound as error:
                error.hint = f"check the owner and the permissions of the token; or {ONE_BY_ONE}"
                raise
