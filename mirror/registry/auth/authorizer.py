"""What a session asks of the holder of credentials: an `Authorization` for the scopes of a request.

Source of scopes: the distribution token specification, "scope"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mirror.errors import AuthError
from mirror.util.cancellation import Work
from mirror.util.structs import Struct


class Scope(Struct, frozen=True, order=True):
    """Actions on one repository: `pull`, `push`, `delete`; or on something else of a registry, such as its catalog."""

    repository: str
    actions: tuple[str, ...]
    kind: str = "repository"

    def __str__(self) -> str:
        return f"{self.kind}:{self.repository}:{','.join(self.actions)}"


_ADDED = {"pull", "push", "delete"}  # what a challenge may add to the actions that we ask for

CATALOG = Scope("catalog", ("*",), "registry")


def pull(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull",)),)


def push(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull", "push")),)


def widened(scopes: tuple[Scope, ...], challenge: str) -> tuple[str, ...]:
    """The scopes to ask for: ours, and the actions that a challenge adds to the one repository it is about.

    challenge: the value of its `scope`. Its other repositories, wildcards and kinds are left out: some servers name
    placeholders, and refuse what is asked for beyond what is needed."""
    asked = tuple(dict.fromkeys(map(str, scopes)))
    if len(scopes) != 1:
        return asked
    ours = scopes[0]
    prefix = f"repository:{ours.repository}:"
    actions = list(ours.actions)
    for word in challenge.split():
        named = word.removeprefix(prefix).split(",") if word.startswith(prefix) else []
        if named and set(named) <= _ADDED:
            actions += [action for action in named if action not in actions]
    return (str(Scope(ours.repository, tuple(actions))),)


class Authorizer(Protocol):
    """Who we are at one registry. Thread-safe."""

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """The Authorization value to send now, which may need a token fetched. Raises AuthError."""
        ...

    def challenged(self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work) -> None:
        """A 401 came with these WWW-Authenticate values, `sent` being what we had sent.

        Returns if one more try makes sense, since `header` differs now; raises AuthError otherwise."""
        ...

    def accepted(self, scopes: tuple[Scope, ...]) -> None:
        """An answer other than 401 came."""
        ...

    def abandoned(self, scopes: tuple[Scope, ...]) -> None:
        """No answer came, or one that does not tell whether we were let in. Each `header` is followed, in its
        thread, by one of these three: others may wait for it."""
        ...

    def allow_another(self, scopes: tuple[Scope, ...]) -> None:
        """Let one more request with these scopes be sent, although the registry refused one for good."""
        ...


class Anonymous:
    """An Authorizer without any credentials."""

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        return None

    def challenged(
        self,
        scopes: tuple[Scope, ...],
        challenges: Sequence[str],
        sent: str | None,
        work: Work,
    ) -> None:
        raise AuthError("it wants a login, and there are no credentials", code="auth_failed", status=401)

    def accepted(self, scopes: tuple[Scope, ...]) -> None:
        pass

    def abandoned(self, scopes: tuple[Scope, ...]) -> None:
        pass

    def allow_another(self, scopes: tuple[Scope, ...]) -> None:
        pass
