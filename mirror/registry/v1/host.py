"""The v1 side of a host: a client of the old protocol, and what makes its images new.

Imported when v1 is first asked for anything, which most registries never give a reason for.
"""

from __future__ import annotations

from mirror.limits import Limits
from mirror.oci.strictjson import Value
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.convert.layer_cache import Scratch
from mirror.registry.http.cookies import Cookies
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.registry.v1 import parsing
from mirror.registry.v1.auth import V1Authorizer
from mirror.registry.v1.client import V1Client
from mirror.registry.v1.image_conversion import Ancestor, V1Transform
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy


class V1Side:
    """Implements `fallback_state.Old`. Thread-safe. Making it contacts nobody."""

    def __init__(
        self,
        settings: HostSettings,
        credentials: CredentialSource,
        limits: Limits,
        scratch: Scratch[Ancestor],
        policy: Policy | None,
    ) -> None:
        authorizer = V1Authorizer(settings, credentials)
        session = Session(settings, limits, authorizer=authorizer, cookies=Cookies(), policy=policy)
        self._client = V1Client(session, authorizer)
        self._scratch = scratch
        self._exact = settings.v1_checksums == "require"

    def speaks(self, repository: str, work: Work, *, ask_index: bool) -> bool:
        return self._client.speaks(repository, work, ask_index=ask_index)

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        return self._client.tags(repository, work)

    def withhold(self, repository: str) -> None:
        self._client.withhold(repository)

    def image_id(self, listed: Value, what: str) -> str:
        return parsing.check_id(listed, what)

    def transform(self, repository: str, image_id: str) -> V1Transform:
        return V1Transform(self._client, self._scratch, repository, image_id, exact=self._exact)

    def close(self) -> None:
        self._client.close()
