"""The v1 side of a host: a client for v1, and the conversions of its images.

Imported when v1 is first used, which is rare.
"""

from __future__ import annotations

from mirror.limits import Limits
from mirror.oci.strictjson import Value
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.convert.layer_cache import LayerCache
from mirror.registry.http.cookies import CookieJar
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.registry.v1 import parsing
from mirror.registry.v1.auth import V1Authorizer
from mirror.registry.v1.client import V1Client
from mirror.registry.v1.image_conversion import Ancestor, V1Transform
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy


class V1Host:
    """Implements `fallback_state.V1Backend`. Thread-safe. The constructor contacts nothing."""

    def __init__(
        self,
        settings: HostSettings,
        credentials: CredentialSource,
        limits: Limits,
        cache: LayerCache[Ancestor],
        policy: Policy | None,
    ) -> None:
        authorizer = V1Authorizer(settings, credentials)
        session = Session(settings, limits, authorizer=authorizer, cookies=CookieJar(), policy=policy)
        self._client = V1Client(session, authorizer)
        self._cache = cache
        self._exact = settings.v1_checksums == "require"

    def is_v1_registry(self, repository: str, work: Work, *, ask_index: bool) -> bool:
        """Return whether the host behaves like a v1 registry."""
        return self._client.is_v1_registry(repository, work, ask_index=ask_index)

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Return a map from tag to image id, both unchecked."""
        return self._client.tags(repository, work)

    def withhold_credentials(self, repository: str) -> None:
        """Send no credentials for this repository, because v2 rejected them."""
        self._client.withhold_credentials(repository)

    def image_id(self, listed_id: Value, what: str) -> str:
        """Check the image id that is listed for a tag. Raises Refused."""
        return parsing.check_id(listed_id, what)

    def transform(self, repository: str, image_id: str) -> V1Transform:
        """Return the conversion of one image."""
        return V1Transform(self._client, self._cache, repository, image_id, exact=self._exact)

    def close(self) -> None:
        """Close the v1 client."""
        self._client.close()
