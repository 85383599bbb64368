"""Access control of the scripted registry: anonymous, Basic, or Bearer with a token service."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.features import Features
from tests.registries.tokens import SERVICE, TokenService

_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}


class Gate:
    """Refuses or admits a request. users alone: Basic. tokens: Bearer."""

    def __init__(self, features: Features, users: Mapping[str, str], tokens: TokenService | None) -> None:
        self._features, self._users, self._tokens = features, users, tokens

    def refusal(self, request: Request) -> Reply | None:
        """Return the reply to an unauthorized request; None if it is admitted."""
        if self._tokens:
            return self._bearer(request, self._tokens)
        if self._users:
            return self._basic(request)
        return None

    def _basic(self, request: Request) -> Reply | None:
        said = request.header("Authorization") or ""
        scheme, _, credentials = said.partition(" ")
        if scheme.lower() == "basic":
            name, _, password = base64.b64decode(credentials).decode(errors="replace").partition(":")
            if name and self._users.get(name) == password:
                return None
        return _unauthorized('Basic realm="scripted"')

    def _bearer(self, request: Request, tokens: TokenService) -> Reply | None:
        scheme, _, token = (request.header("Authorization") or "").partition(" ")
        access, alive = tokens.access_of(token) if scheme.lower() == "bearer" else ([], False)
        if access and not alive and self._features.expired:
            return self._features.expired
        wanted = _wanted(request)
        if alive and all(_covers(access, kind, name, action) for kind, name, action in wanted):
            return None
        challenge = f'Bearer realm="{tokens.realm}",service="{SERVICE}"'
        scopes = self._features.placeholder_scope or " ".join(_scopes(wanted))
        challenge += f',scope="{scopes}"' if scopes and wanted else ""
        challenge += ',error="invalid_token"' if token and not alive else ""
        challenge += ',error="insufficient_scope"' if alive else ""
        return _unauthorized(challenge)


def _wanted(request: Request) -> list[tuple[str, str, str]]:
    """Return the access that a request needs: (type, name, action)."""
    if request.kind.endswith(" catalog"):
        return [("registry", "catalog", "*")]
    if not request.repository:
        return []
    action = _ACTIONS.get(request.method, "push")
    if request.kind == "GET upload":
        action = "push"
    wanted = [("repository", request.repository, action)]
    if action == "push":
        wanted.insert(0, ("repository", request.repository, "pull"))
    if request.kind == "POST mount":
        wanted.append(("repository", request.query.get("from", [""])[0], "pull"))
    return wanted


def _scopes(wanted: list[tuple[str, str, str]]) -> list[str]:
    actions: dict[tuple[str, str], list[str]] = {}
    for kind, name, action in wanted:
        actions.setdefault((kind, name), []).append(action)
    return [f"{kind}:{name}:{','.join(named)}" for (kind, name), named in actions.items()]


def _covers(access: list[dict[str, object]], kind: str, name: str, action: str) -> bool:
    for entry in access:
        actions = entry["actions"]
        if entry["type"] == kind and entry["name"] == name and isinstance(actions, list) and action in actions:
            return True
    return False


def _unauthorized(challenge: str) -> Reply:
    return error_reply(401, "UNAUTHORIZED", "authentication required", ("WWW-Authenticate", challenge))
