"""Access to a host over v1: lists its tags and converts its images.

This module is imported only when v1 is first used, which is rare.
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
    """Access to one host over v1. Implements `fallback_state.V1Backend`. Thread-safe. Creating it sends no requests."""

    def __init__(
        self,
        settings: HostSettings,
        credentials: CredentialSource,
        limits: Limits,
        cache: LayerCache[Ancestor],
        policy: Policy | None,
    ) -> None:
        authorizer = V1Authorizer(settings, credentials, limits.clock)
        session = Session(settings, limits, authorizer=authorizer, cookies=CookieJar(), policy=policy)
        self._client = V1Client(session, authorizer)
        self._cache = cache
        self._exact = settings.v1_checksums == "require"

    def is_v1_registry(self, repository: str, work: Work, *, ask_index: bool) -> bool:
        """Return whether the host behaves like a v1 registry. Raises the same errors as V1Client.is_v1_registry."""
        return self._client.is_v1_registry(repository, work, ask_index=ask_index)

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Return the image id for each tag in a repository. Neither tags nor ids are validated."""
        return self._client.tags(repository, work)

    def withhold_credentials(self, repository: str) -> None:
        """Stop sending credentials for this repository over v1, because they were rejected over v2."""
        self._client.withhold_credentials(repository)

    def image_id(self, listed_id: Value, what: str) -> str:
        """Return `listed_id`, an entry in a tag list, as an image id. Raises Refused if it is not a valid id."""
        return parsing.check_id(listed_id, what)

    def transform(self, repository: str, image_id: str) -> V1Transform:
        """Return a transform that converts the image to schema 2."""
        return V1Transform(self._client, self._cache, repository, image_id, exact=self._exact)

    def close(self) -> None:
        """Close the v1 client."""
        self._client.close()
