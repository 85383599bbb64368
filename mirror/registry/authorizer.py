"""What a session asks of whoever holds the credentials of its registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mirror.errors import AuthError
from mirror.limits import Work
from mirror.registry.scopes import Scope


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
