"""Who we are at a v1 registry: Basic at its index, which gives a token for each repository; or Basic throughout.

Source: docker's registry API v1, "Authorization", and what docker 1.10 does. Tokens are of one repository: one that
is shown for another is refused. What v2 of the same host refused is not shown here again.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Sequence

from mirror.errors import AuthError
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.http.host_settings import HostSettings
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key

log = logging.getLogger("mirror.auth")

# What a request is about, as a scope of the session: a v1 registry knows none.
INDEX, IMAGES, ENDPOINT = "v1-index", "v1-images", "v1-endpoint"


def scopes(kind: str, repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull",), kind),)


class V1Authorizer:
    """Implements the session's `Authorizer`. Thread-safe; holds no lock while it asks for credentials.

    renew: asks the index for a token anew; set by the client. standalone: what its ping said."""

    def __init__(self, settings: HostSettings, credentials: CredentialSource) -> None:
        self._settings = settings
        self._credentials = credentials
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._renewed: set[str] = set()
        self._withheld: set[str] = set()
        self._warned = not settings.plain_http
        self.standalone = True
        self.renew: Callable[[str, Work], object] = _no_renewal

    def withhold(self, repository: str) -> None:
        """No credentials are shown for this repository: they were refused already."""
        self._withheld.add(repository)

    def took(self, repository: str, token: str | None) -> None:
        """What the index gave for this repository."""
        with self._lock:
            if token is None:
                self._tokens.pop(repository, None)
            else:
                self._tokens[repository] = token

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        if not scopes:  # a ping
            return None
        kind, repository = scopes[0].kind, scopes[0].repository
        token = self._tokens.get(repository)
        if kind == INDEX:
            return self._basic(repository, work)
        if kind == IMAGES and self.standalone and (token is None or not self._settings.plain_http):
            basic = self._basic(repository, work)
            if basic is not None:
                return basic
        return f"Token {token}" if token is not None else None

    def challenged(self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work) -> None:
        repository = scopes[0].repository if scopes else ""
        subject = f"{self._settings.host}/{repository} (v1)"
        if sent is not None and sent.startswith("Token "):
            with self._lock:
                fresh = f"Token {self._tokens.get(repository)}" != sent
                first = repository not in self._renewed
                self._renewed.add(repository)
            if fresh:
                return  # another thread was told of it before
            if first:
                self.renew(repository, work)
                return
        if sent is not None:
            found = self._credentials.find(self._settings.host, repository, stop=work.stop)
            who = found.who if found is not None and sent.startswith("Basic ") else "the token of its index"
            raise AuthError(f"{subject}: it does not accept {who}", status=401)
        hint = f"give {registry_key(self._settings.host, 'username')} and password"
        if repository in self._withheld:
            hint = "the credentials that v2 refused are not shown to v1"
        raise AuthError(f"{subject}: it wants a login", hint=hint, status=401)

    def accepted(self, scopes: tuple[Scope, ...]) -> None:
        """Nobody waits: what is asked first of a repository, its index, is asked once."""

    def abandoned(self, scopes: tuple[Scope, ...]) -> None:
        """As above."""

    def allow_another(self, scopes: tuple[Scope, ...]) -> None:
        """Nothing is refused for good here."""

    def _basic(self, repository: str, work: Work) -> str | None:
        if repository in self._withheld:
            return None
        found: Credential | None = self._credentials.find(self._settings.host, repository, stop=work.stop)
        if found is None or found.username is None or found.password is None:
            return None
        if not self._warned:
            self._warned = True
            extra = {"event": "plain_http", "host": self._settings.host}
            text = "%s: credentials are sent without encryption (plain-http)"
            log.warning(text, self._settings.host, extra=extra)
        return "Basic " + base64.b64encode(f"{found.username}:{found.password}".encode()).decode()


def _no_renewal(repository: str, work: Work) -> None:
    pass
