"""The interface through which a session obtains the `Authorization` header for the scopes of a request.

Source for scopes: the distribution project's token specification, "scope".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mirror.errors import AuthError
from mirror.util.cancellation import Work
from mirror.util.structs import Struct


class Scope(Struct, frozen=True, order=True):
    """The scope of a token: the actions that it allows on a repository, or on another resource such as the catalog.

    The actions on a repository are `pull`, `push` and `delete`."""

    repository: str
    actions: tuple[str, ...]
    kind: str = "repository"

    def __str__(self) -> str:
        return f"{self.kind}:{self.repository}:{','.join(self.actions)}"


_ADDABLE_ACTIONS = {"pull", "push", "delete"}  # actions that a challenge may add to the requested actions

CATALOG = Scope("catalog", ("*",), "registry")


def pull_scopes(repository: str) -> tuple[Scope, ...]:
    """Return the scopes for reading a repository."""
    return (Scope(repository, ("pull",)),)


def push_scopes(repository: str) -> tuple[Scope, ...]:
    """Return the scopes for writing to a repository."""
    return (Scope(repository, ("pull", "push")),)


def widen_scopes(scopes: tuple[Scope, ...], challenge: str) -> tuple[str, ...]:
    """Return the scopes to request: `scopes`, plus the actions that a challenge adds for the same repository.

    `challenge` is the `scope` parameter of the challenge. Scopes in it that name other repositories, other
    kinds of resources or wildcard actions are ignored, because some servers send them as placeholders but then refuse
    requests for tokens that allow more than is needed."""
    requested = tuple(dict.fromkeys(map(str, scopes)))
    if len(scopes) != 1:
        return requested
    scope = scopes[0]
    prefix = f"{scope.kind}:{scope.repository}:"
    actions = list(scope.actions)
    for challenge_scope in challenge.split():
        challenge_actions = (
            challenge_scope.removeprefix(prefix).split(",") if challenge_scope.startswith(prefix) else []
        )
        if challenge_actions and set(challenge_actions) <= _ADDABLE_ACTIONS:
            actions += [action for action in challenge_actions if action not in actions]
    return (str(Scope(scope.repository, tuple(actions), scope.kind)),)


class Authorizer(Protocol):
    """Interface for objects that authorize the requests to one registry. Implementations are thread-safe."""

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """Return the `Authorization` value to send now, or None to send no header. May fetch a token. Raises AuthError.

        After each call, the same thread must call `handle_challenge`, `record_accepted` or `record_no_response`,
        because other threads may be waiting for that call."""
        ...

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        """Handle a 401 response to a request that was sent with the `Authorization` value `sent`.

        `challenges` are the WWW-Authenticate values of the response. Returns normally if `header` now returns a
        different value, with which the request should be sent once more. Otherwise raises AuthError."""
        ...

    def record_accepted(self, scopes: tuple[Scope, ...], *, is_forbidden: bool = False) -> None:
        """Record that a request with these scopes received a response other than 401.

        is_forbidden: whether its status is 403, which does not show that the credentials are right."""
        ...

    def record_no_response(self, scopes: tuple[Scope, ...]) -> None:
        """Record that the request received no response, or a response that does not show whether access is allowed."""
        ...

    def allow_one_more_request(self, scopes: tuple[Scope, ...], *, only_if_accepted: bool) -> None:
        """Allow one more request with these scopes after a final refusal by the registry.

        If `only_if_accepted` is true, this has an effect only if an earlier request with these scopes was accepted."""
        ...

    def account(self, scopes: tuple[Scope, ...]) -> str:
        """Return a description of the credentials that requests with these scopes use, or "" if they use none."""
        ...


class Anonymous:
    """An Authorizer that sends no credentials and treats every challenge as an error."""

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """Return None, so that no header is sent."""
        return None

    def handle_challenge(
        self,
        scopes: tuple[Scope, ...],
        challenges: Sequence[str],
        sent: str | None,
        work: Work,
    ) -> None:
        """Raise AuthError, because the registry requires credentials."""
        raise AuthError("the registry requires credentials, but none are configured", code="auth_failed", status=401)

    def record_accepted(self, scopes: tuple[Scope, ...], *, is_forbidden: bool = False) -> None:
        """Do nothing, because there is no authorization to record."""
        pass

    def record_no_response(self, scopes: tuple[Scope, ...]) -> None:
        """Do nothing, because no other request waits for the authorization of this request."""
        pass

    def allow_one_more_request(self, scopes: tuple[Scope, ...], *, only_if_accepted: bool) -> None:
        """Do nothing, because refusals are not recorded."""
        pass

    def account(self, scopes: tuple[Scope, ...]) -> str:
        """Return an empty string, because no credentials are used."""
        return ""
