"""The states of the authorization at one registry: one state for each set of scopes."""

from __future__ import annotations

import math
import threading

from mirror.errors import MirrorError
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credentials import Credential
from mirror.registry.auth.token_issuer import AuthScheme, Grant
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import Gate


class ScopeState:
    """The state of authorization for one set of scopes: the authentication scheme, the grant and the refusals.

    Attributes that belong together are written under the lock of `ScopeStates`. Single ones are read without it."""

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


class ScopeStates:
    """The states of all sets of scopes at one registry. Thread-safe.

    lock: protects attributes of the states that belong together. The methods acquire it, except `drop_expired_tokens`
    and `find`."""

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.Lock()
        self._clock = clock
        self._states: dict[tuple[Scope, ...], ScopeState] = {}
        self._by_repository: dict[str, list[ScopeState]] = {}  # states with a single scope

    def find(self, scopes: tuple[Scope, ...]) -> ScopeState | None:
        """Return the state for these scopes, or None if `get` was not called for them yet."""
        return self._states.get(scopes)

    def get(self, scopes: tuple[Scope, ...]) -> ScopeState:
        """Return the state for these scopes, creating it on first use. Their order does not matter."""
        with self.lock:
            state = self._states.get(scopes)
            if state is None:
                key = tuple(sorted({Scope(s.repository, tuple(sorted(set(s.actions))), s.kind) for s in scopes}))
                state = self._states.get(key)
                if state is None:
                    state = self._states[key] = ScopeState(scopes, self._clock)
                    if len(key) == 1:
                        self._by_repository.setdefault(state.repository, []).append(state)
                self._states[scopes] = state
        return state

    def forget(self, scopes: tuple[Scope, ...]) -> None:
        """Forget the state for these scopes."""
        with self.lock:
            self._states.pop(scopes, None)

    def discard_grants(self, repositories: str) -> None:
        """Discard the grants and refusals for a repository and for those below it."""
        with self.lock:
            for state in self._states.values():
                if any(f"{scope.repository}/".startswith(f"{repositories}/") for scope in state.scopes):
                    state.discard_grant(self._clock)

    def grants(self) -> list[Grant]:
        """Return the grants of all states."""
        with self.lock:
            return [state.grant for state in self._states.values() if state.grant is not None]

    def drop_expired_tokens(self, now: float) -> None:
        """Remove expired tokens to save memory, since each repository has its own token of several KiB.

        The caller must hold the lock."""
        for state in self._states.values():
            if state.grant is not None and state.grant.expires_at < now:
                state.grant = None

    def use_wider_grant(self, state: ScopeState, now: float) -> bool:
        """Reuse a valid token that allows at least the actions of `state`. Return whether there is such a token."""
        if len(state.scopes) != 1 or state.refusals:
            return False
        wanted = set(state.scopes[0].actions)
        with self.lock:
            for other in self._by_repository[state.repository]:
                grant = other.grant
                if grant is None or not now < grant.renew_at < math.inf:
                    continue
                if wanted <= set(other.scopes[0].actions):
                    state.grant = grant
                    state.is_authorized = state.is_authorized or other.is_authorized
                    return True
        return False
