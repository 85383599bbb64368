"""What an authorizer knows of one set of scopes."""

from __future__ import annotations

from mirror.errors import MirrorError
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credentials import Credential
from mirror.registry.auth.token_issuer import AuthScheme, Grant
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import Gate


class ScopeState:
    """What is known of one set of scopes. Written under the authorizer's lock; single attributes are read without
    it."""

    __slots__ = (
        "error", "gate", "grant", "is_authorized", "refusals", "refused_by_registry", "refused_header",
        "requested_scopes", "scheme", "scopes", "suspect_credential",
    )  # fmt: skip

    def __init__(self, scopes: tuple[Scope, ...], clock: Clock) -> None:
        self.scopes = scopes
        self.requested_scopes = tuple(dict.fromkeys(map(str, scopes)))  # from the token service
        self.gate = Gate(clock)
        self.scheme: AuthScheme | None = None  # from a challenge for these scopes; None: that of the host applies
        self.grant: Grant | None = None
        self.is_authorized = False  # a response other than 401 was received
        self.refusals = 0  # 401s since then
        self.refused_header: str | None = None  # the last header that led to a 401
        self.suspect_credential: tuple[Credential | None] | None = None  # the credential of that header
        self.error: MirrorError | None = None  # raised for all later requests
        self.refused_by_registry = False  # by the registry itself, not by the token service

    @property
    def repository(self) -> str:
        """The repository of the first scope; empty without scopes."""
        return self.scopes[0].repository if self.scopes else ""
