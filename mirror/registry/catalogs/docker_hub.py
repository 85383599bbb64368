"""Lists the repositories in a namespace on Docker Hub.

Source: Docker Hub API reference, https://docs.docker.com/reference/api/hub/latest/: "List repositories in a namespace"
and "Create access token". The responses to anonymous requests list only public repositories.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from mirror.errors import AuthError, NotFound
from mirror.registry.auth.credentials import Credential
from mirror.registry.catalogs.api import ONE_BY_ONE, PAGE_SIZE, ApiClient, Page, PageResponse, RegistryAccess
from mirror.registry.http.url_policy import Destination, Origin
from mirror.util.cancellation import Work

# A fixed host: it belongs to Docker Hub, and receives the credentials for docker.io (docs/trust.md).
API = Destination(Origin("https", "hub.docker.com", 443), "/", credentials=True)
_HINT = "use the password of the account, or a personal access token, for docker.io"


class DockerHubCatalog:
    """The catalog of Docker Hub. Thread-safe."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access

    def list_repositories(self, prefix: str, work: Work) -> Iterator[str]:
        """Yield the repositories in the namespace that `prefix` names.

        Raises NotFound if the namespace does not exist, or if `prefix` is not the name of a namespace and a slash."""
        namespace, _, rest = prefix.partition("/")
        if not namespace or rest:
            hint = "write docker.io/namespace/*"
            raise NotFound("docker.io lists repositories only by namespace", hint=hint)

        def read_page(response: PageResponse) -> Page:
            """Parse a page. `results` contains the names, and `next` the URL of the next page, or null."""
            names = [f"{namespace}/{name}" for name in response.texts("name", list_key="results")]
            return Page(names, None if response.field("next") is None else response.next_page())

        credential = self._access.find_credential(prefix, work)
        with self._access.open_api(credential, _HINT, api=API) as api:
            if credential is not None:
                _log_in(api, credential, work)
            path = f"/v2/namespaces/{namespace}/repositories"
            try:
                yield from api.list_names(path, {"page_size": PAGE_SIZE, "page": "1"}, read_page, work)
            except NotFound as error:
                error.hint = f"check the namespace; if hub.docker.com does not list it, {ONE_BY_ONE}"
                raise


def _log_in(api: ApiClient, credential: Credential, work: Work) -> None:
    """Exchange the user name and password for an access token, which is valid for ten minutes."""
    document = {"identifier": credential.username or "", "secret": api.password_of(credential)}
    token = api.post("/v2/auth/token", json.dumps(document).encode(), work).get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token or not token:
        raise AuthError(f"{api.name} sent no usable token", hint=_HINT)
    api.send_token(token)
