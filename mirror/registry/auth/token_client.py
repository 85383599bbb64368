"""Asking a token service for a bearer token.

Source: the distribution project's token authentication specification (GET form, "scope", "expires_in") and its
OAuth2 form (POST with an identity token). How clients read them differs; where it matters, we do as docker does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from mirror.errors import AuthError, MirrorError, RateLimited, Refused, RemoteError
from mirror.oci import strictjson
from mirror.registry.auth.credentials import Credential
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Work
from mirror.util.structs import Hiding

log = logging.getLogger("mirror.auth")

CLIENT = "mirror"  # the OAuth2 client_id
SHORTEST, LONGEST = 60.0, 3600.0  # seconds that a token is taken to live, whatever its service says
MAX_BYTES = 64 * 1024  # of an answer, and so of a token

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_DIGITS = re.compile(r"[0-9]{1,18}")
_IDENTITY_USER = "<token>"  # docker's user name for a secret that is an identity token


class Reply(Protocol):
    """A whole answer with a small body."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


class OneOff(Protocol):
    """One small request outside of the registry's own API. Raises MirrorErrors for trouble on the way, which it has
    tried again as often as sensible; every status is an answer."""

    def __call__(
        self,
        method: str,
        destination: Destination,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
        work: Work,
    ) -> Reply: ...


class Token(Hiding, frozen=True):
    """value: visible ASCII. lifetime: seconds from when it was asked for."""

    HIDDEN = ("value",)

    value: str
    lifetime: float


class TokenClient:
    """Fetches tokens for one registry. Any thread; remembers only which form its service understands."""

    def __init__(self, host: str, one_off: OneOff) -> None:
        self._host = host
        self._one_off = one_off
        self._get_only = False  # the service answered that it has no POST
        self._told = False

    def fetch(
        self,
        service: Destination,
        name: str,
        scopes: Sequence[str],
        credential: Credential | None,
        work: Work,
    ) -> Token:
        """A token for `scopes` from `service`, which calls the registry `name`.

        Raises AuthError: refused (with its status), or an answer that is no token; RateLimited; RemoteError."""
        if credential is not None and credential.identity_token is not None and not self._get_only:
            reply = self._post(service, name, scopes, credential.identity_token, work)
            if reply.status not in (404, 405):
                return self._token(reply, credential)
            self._get_only = True
        params = [("service", name)] if name else []
        params += [("scope", scope) for scope in scopes]
        reply = self._one_off("GET", service, params=params, basic=_basic(credential), work=work)
        return self._token(reply, credential)

    def _post(self, service: Destination, name: str, scopes: Sequence[str], secret: str, work: Work) -> Reply:
        form = {"grant_type": "refresh_token", "client_id": CLIENT, "refresh_token": secret}
        if name:
            form["service"] = name
        if scopes:
            form["scope"] = " ".join(scopes)
        return self._one_off("POST", service, form=form, work=work)

    def _token(self, reply: Reply, credential: Credential | None) -> Token:
        if reply.status != 200:
            raise self._refusal(reply, credential)
        what = f"the token service of {self._host}"
        if len(reply.body) > MAX_BYTES:
            raise AuthError(f"{what} sent more than {MAX_BYTES} bytes")
        try:
            answer = strictjson.parse(reply.body, what=f"the answer of {what}")
        except Refused as error:
            raise AuthError(error.what) from error
        if not isinstance(answer, dict):
            raise AuthError(f"{what} sent no token: not an object")
        # Which of two different ones counts is left open by the specification; docker takes access_token.
        value = answer.get("access_token") or answer.get("token")
        if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
            raise AuthError(f"{what} sent no usable token")
        if not self._told and answer.get("token") not in (None, "", value):
            self._told = True
            extra = {"event": "two_tokens", "host": self._host}
            log.info("%s sends two different tokens; its access_token is used", what, extra=extra)
        return Token(value, _lifetime(answer.get("expires_in")))

    def _refusal(self, reply: Reply, credential: Credential | None) -> MirrorError:
        # Its words stay out: some services repeat what they were sent.
        what = f"the token service of {self._host}"
        status = reply.status
        if status == 429:
            return RateLimited(f"{what} answers 429", status=status)
        if status >= 500:
            return RemoteError(f"{what} answers {status}", status=status, retryable=True)
        account = credential.who if credential else "a request without credentials"
        return AuthError(
            f"{what} refused {account} ({status})",
            code="auth_denied" if status == 403 else "auth_failed",
            status=status,
        )


def _basic(credential: Credential | None) -> tuple[str, str] | None:
    if credential is None:
        return None
    if credential.password:
        return credential.username or "", credential.password
    if credential.identity_token is not None:
        return credential.username or _IDENTITY_USER, credential.identity_token
    return credential.username or "", ""


def _lifetime(expires_in: strictjson.Value) -> float:
    """Seconds, within SHORTEST and LONGEST; SHORTEST where the service does not say or says no number."""
    if isinstance(expires_in, str) and _DIGITS.fullmatch(expires_in):
        expires_in = int(expires_in)
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return SHORTEST
    return max(SHORTEST, min(LONGEST, expires_in))
