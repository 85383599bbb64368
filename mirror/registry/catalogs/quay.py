"""Lists the repositories in a namespace on Quay: on quay.io, or on an installation of Red Hat Quay.

Source: Red Hat Quay API reference, "listRepos" (`GET /api/v1/repository`) and "OAuth 2 access tokens". The API accepts
tokens of an OAuth application, but not the passwords of robot accounts. Docker clients send such a token as the
password of the user `$oauthtoken`. The token service of Quay refuses the scope of `GET /v2/_catalog`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mirror.registry.catalogs.api import Page, PageResponse, RegistryAccess
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Work

log = logging.getLogger("mirror.plan")

OAUTH_USER = "$oauthtoken"
_HINT = (
    f"for private repositories, set the user name to `{OAUTH_USER}` and the password to the token of an OAuth "
    "application with the permission to view repositories; passwords of robot accounts cannot be used"
)


class QuayCatalog:
    """The catalog of Quay. Thread-safe.

    api: the origin of the API; None if the registry itself serves the API."""

    def __init__(self, access: RegistryAccess, api: Destination | None = None) -> None:
        self._access = access
        self._api = api

    def list_repositories(self, prefix: str, work: Work) -> Iterator[str]:
        """Yield the repositories in the namespace that `prefix` names, or all public repositories if it is empty.

        With an OAuth token, the list contains the repositories that the user may see, otherwise only public
        repositories. If the configured credentials are not an OAuth token, a warning is logged."""
        namespace = prefix.partition("/")[0]
        credential = self._access.find_credential(prefix, work)
        if credential is not None and credential.username != OAUTH_USER:
            source = f"{self._access.host}/{prefix}*"
            text = f"{source} contains only public repositories: {self._access.host} does not list private "
            text += f"repositories for {credential.description}; {_HINT}"
            log.warning("only_public_repositories", extra={"source": source, "text": text})
            credential = None
        query = {"namespace": namespace, "public": "true"} if namespace else {"public": "true"}
        with self._access.open_api(credential, _HINT, api=self._api) as api:
            api.authorize(scheme="Bearer")
            yield from api.list_names("/api/v1/repository", query, _read_page, work)


def _read_page(response: PageResponse) -> Page:
    """Parse a page: the list `repositories` and, if another page follows, its token `next_page`."""
    namespaces, names = (response.texts(key, list_key="repositories") for key in ("namespace", "name"))
    token = response.field("next_page")
    following = {**response.query, "next_page": token} if isinstance(token, str) and token else None
    return Page([f"{namespace}/{name}" for namespace, name in zip(namespaces, names, strict=True)], following)
