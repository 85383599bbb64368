"""Requests bearer tokens from a token service.

Source: the distribution project's token authentication specification (the GET form with `scope` and `expires_in`), and
its OAuth2 form (POST with an identity token). Where clients interpret these differently, this module does as docker.
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
from mirror.util.structs import RedactedStruct

log = logging.getLogger("mirror.auth")

CLIENT = "mirror"  # the OAuth2 client_id
MIN_LIFETIME, MAX_LIFETIME = 60.0, 3600.0  # seconds; bounds of the lifetime of a token, whatever the service says
MAX_BYTES = 64 * 1024  # of a response

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_DIGITS = re.compile(r"[0-9]{1,18}")
_IDENTITY_USER = "<token>"  # docker's user name for an identity token


class Reply(Protocol):
    """A complete response with a small body."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def body(self) -> bytes:
        """The whole body."""
        ...


class OneOffSender(Protocol):
    """Sends one small request to a token service.

    Every status is a result. Raises MirrorErrors for network problems, after its own retries."""

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


class Token(RedactedStruct, frozen=True):
    """A bearer token. value: visible ASCII. lifetime: seconds from the time of the request."""

    HIDDEN = ("value",)

    value: str
    lifetime: float


class TokenClient:
    """Fetches tokens for one registry. Thread-safe; remembers only which form the service supports."""

    def __init__(self, host: str, one_off: OneOffSender) -> None:
        self._host = host
        self._one_off = one_off
        self._get_only = False  # the service does not support POST
        self._logged_two_tokens = False

    def fetch(
        self,
        service: Destination,
        name: str,
        scopes: Sequence[str],
        credential: Credential | None,
        work: Work,
    ) -> Token:
        """Fetch a token for `scopes` from `service`; `name` is the service parameter of the challenge.

        Raises AuthError (refused, with the status; or no valid token in the response), RateLimited, RemoteError."""
        if credential is not None and credential.identity_token is not None and not self._get_only:
            reply = self._post_token(service, name, scopes, credential.identity_token, work)
            if reply.status not in (404, 405):
                return self._parse_token(reply, credential)
            self._get_only = True
        params = [("service", name)] if name else []
        params += [("scope", scope) for scope in scopes]
        reply = self._one_off("GET", service, params=params, basic=_basic_credentials(credential), work=work)
        return self._parse_token(reply, credential)

    def _post_token(self, service: Destination, name: str, scopes: Sequence[str], secret: str, work: Work) -> Reply:
        """Request a token by the OAuth2 form, with an identity token."""
        form = {"grant_type": "refresh_token", "client_id": CLIENT, "refresh_token": secret}
        if name:
            form["service"] = name
        if scopes:
            form["scope"] = " ".join(scopes)
        return self._one_off("POST", service, form=form, work=work)

    def _parse_token(self, reply: Reply, credential: Credential | None) -> Token:
        """Parse a response into a token. Raises AuthError, RateLimited, RemoteError."""
        if reply.status != 200:
            raise self._refusal_error(reply, credential)
        what = f"the token service of {self._host}"
        if len(reply.body) > MAX_BYTES:
            raise AuthError(f"{what} sent more than {MAX_BYTES} bytes")
        try:
            response = strictjson.parse(reply.body, what=f"the response of {what}")
        except Refused as error:
            raise AuthError(error.what) from error
        if not isinstance(response, dict):
            raise AuthError(f"{what} sent no token: the response is not a JSON object")
        # The specification does not say which one counts if both are present; docker uses access_token.
        value = response.get("access_token") or response.get("token")
        if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
            raise AuthError(f"{what} sent no usable token")
        if not self._logged_two_tokens and response.get("token") not in (None, "", value):
            self._logged_two_tokens = True
            extra = {"event": "two_tokens", "host": self._host}
            log.info("%s sends two different tokens; its access_token is used", what, extra=extra)
        return Token(value, _parse_lifetime(response.get("expires_in")))

    def _refusal_error(self, reply: Reply, credential: Credential | None) -> MirrorError:
        """Return the error for a status other than 200."""
        # The body is not quoted: some services repeat the credentials in it.
        what = f"the token service of {self._host}"
        status = reply.status
        if status == 429:
            return RateLimited(f"{what} responded with 429", status=status)
        if status >= 500:
            return RemoteError(f"{what} responded with {status}", status=status, retryable=True)
        account = credential.description if credential else "a request without credentials"
        return AuthError(
            f"{what} refused {account} ({status})",
            code="auth_denied" if status == 403 else "auth_failed",
            status=status,
        )


def _basic_credentials(credential: Credential | None) -> tuple[str, str] | None:
    """Return the user name and password to send; None without a credential."""
    if credential is None:
        return None
    if credential.password:
        return credential.username or "", credential.password
    if credential.identity_token is not None:
        return credential.username or _IDENTITY_USER, credential.identity_token
    return credential.username or "", ""


def _parse_lifetime(expires_in: strictjson.Value) -> float:
    """Return the lifetime in seconds, within MIN_LIFETIME and MAX_LIFETIME; MIN_LIFETIME if there is no number."""
    if isinstance(expires_in, str) and _DIGITS.fullmatch(expires_in):
        expires_in = int(expires_in)
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return MIN_LIFETIME
    return max(MIN_LIFETIME, min(MAX_LIFETIME, expires_in))
