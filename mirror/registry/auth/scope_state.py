"""The state of the authorization for one set of scopes."""

from __future__ import annotations

from mirror.errors import MirrorError
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credentials import Credential
from mirror.registry.auth.token_issuer import AuthScheme, Grant
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import Gate


class ScopeState:
    """The state of authorization for one set of scopes: the authentication scheme, the grant and the refusals.

    Attributes that belong together are written under the authorizer's lock. Single attributes are read without it."""

    __slots__ = (
        "error", "gate", "grant", "is_authorized", "refusals", "refused_by_registry", "refused_header",
        "requested_scopes", "scheme", "scopes", "suspect_credential",
    )  # fmt: skip

    def __init__(self, scopes: tuple[Scope, ...], clock: Clock) -> None:
        self.scopes = scopes
        self.requested_scopes = tuple(dict.fromkeys(map(str, scopes)))  # sent to the token service
        self.gate = Gate(clock)
        self.scheme: AuthScheme | None = None  # from a challenge for these scopes; if None, the host's is used
        self.grant: Grant | None = None
        self.is_authorized = False  # a response other than 401 was received
        self.refusals = 0  # 401s since the last response with a different status
        self.refused_header: str | None = None  # the last header that led to a 401
        self.suspect_credential: tuple[Credential | None] | None = None  # the credential in `refused_header`
        self.error: MirrorError | None = None  # the error with which all later requests fail
        self.refused_by_registry = False  # the final refusal came from the registry, not from the token service

    def discard_grant(self, clock: Clock) -> None:
        """Discard the grant and all refusals. Requests that wait at the gate after a refusal are not affected."""
        if self.error is not None:
            self.gate = Gate(clock)
        self.grant = self.error = self.refused_header = self.suspect_credential = None
        self.refused_by_registry, self.refusals = False, 0

    @property
    def repository(self) -> str:
        """The repository of the first scope, whose credentials are used, or "" if the scopes name no repository.

        For a mount, the first scope is the scope of the target repository."""
        return self.scopes[0].repository if self.scopes and self.scopes[0].kind == "repository" else ""

    @property
    def account(self) -> str:
        """A description of the credentials in the grant, without secrets; empty if there are none."""
        grant = self.grant
        return grant.credential.description if grant is not None and grant.credential is not None else ""
