"""Requests bearer tokens from a token service.

Source: the distribution project's specifications for token authentication (a GET with `scope` in the query) and for
OAuth2 (a POST with an identity token). Where clients interpret these differently, this module follows Docker.
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
MIN_LIFETIME, MAX_LIFETIME = 60.0, 3600.0  # seconds; limits for the lifetime that a service reports
MAX_BYTES = 64 * 1024  # of a response body

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_DIGITS = re.compile(r"[0-9]{1,18}")
_IDENTITY_USER = "<token>"  # Docker's user name for an identity token


class Reply(Protocol):
    """A response from a token service whose body has been read completely."""

    @property
    def status(self) -> int:
        """The HTTP status of the response."""
        ...

    @property
    def body(self) -> bytes:
        """The whole response body."""
        ...


class OneOffSender(Protocol):
    """A callable that sends a one-off request to a token service, and retries it if necessary.

    kind: the name of the request in statistics. A response with an error status such as 403 is returned, not raised.
    Raises a MirrorError if all attempts fail."""

    def __call__(
        self,
        method: str,
        destination: Destination,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
        work: Work,
        kind: str = "token",
    ) -> Reply: ...


class Token(RedactedStruct, frozen=True):
    """A bearer token and its lifetime.

    `value` consists of visible ASCII characters. `lifetime` is in seconds, counted from the request for the token."""

    HIDDEN = ("value",)

    value: str
    lifetime: float


class TokenClient:
    """A client for the token service of one registry. Thread-safe. It remembers whether the service supports POST."""

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
        """Fetch a token for `scopes` from the token service at `service`.

        `name` is the `service` parameter of the challenge. Raises AuthError if the service refuses the request (the
        error then has the status of the response), or if its response contains no valid token. Raises RateLimited for
        429, and RemoteError for 5xx."""
        if credential is not None and credential.identity_token is not None and not self._get_only:
            reply = self._post_token(service, name, scopes, credential.identity_token, work)
            if reply.status not in (404, 405):
                return self._parse_token(reply, credential)
            self._get_only = True
        params = [("service", name)] if name else []
        params += [("scope", scope) for scope in scopes]
        reply = self._one_off("GET", service, params=params, basic=basic_credentials(credential), work=work)
        return self._parse_token(reply, credential)

    def _post_token(self, service: Destination, name: str, scopes: Sequence[str], secret: str, work: Work) -> Reply:
        """Request a token with an OAuth2 POST. `secret` is an identity token."""
        form = {"grant_type": "refresh_token", "client_id": CLIENT, "refresh_token": secret}
        if name:
            form["service"] = name
        if scopes:
            form["scope"] = " ".join(scopes)
        return self._one_off("POST", service, form=form, work=work)

    def _parse_token(self, reply: Reply, credential: Credential | None) -> Token:
        """Return the token in a response. Raises AuthError, RateLimited, RemoteError."""
        if reply.status != 200:
            raise self._refusal_error(reply, credential)
        what = f"the token service of {self._host}"
        if len(reply.body) > MAX_BYTES:
            raise AuthError(f"{what} sent a response of more than {MAX_BYTES} bytes")
        try:
            response = strictjson.parse(reply.body, what=f"the response from {what}")
        except Refused as error:
            raise AuthError(error.what) from error
        if not isinstance(response, dict):
            raise AuthError(f"{what} sent no token: the response is not a JSON object")
        # The specification does not say which token to use if both are present. Docker uses `access_token`.
        value = response.get("access_token") or response.get("token")
        if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
            raise AuthError(f"{what} sent no usable token")
        if not self._logged_two_tokens and response.get("token") not in (None, "", value):
            self._logged_two_tokens = True
            extra = {"event": "two_tokens", "host": self._host}
            log.info("%s sends two different tokens; its access_token is used", what, extra=extra)
        return Token(value, _parse_lifetime(response.get("expires_in")))

    def _refusal_error(self, reply: Reply, credential: Credential | None) -> MirrorError:
        """Return the error for a response of the token service with a status other than 200."""
        # The body is not quoted: some services repeat the credentials in it.
        what = f"the token service of {self._host}"
        status = reply.status
        if status == 429:
            return RateLimited(f"{what} responded with 429", status=status)
        if status >= 500:
            return RemoteError(f"{what} responded with {status}", status=status, retryable=True)
        account = credential.description if credential else ""
        return AuthError(
            f"{what} refused {account or 'a request without credentials'} ({status})",
            code="auth_denied" if status == 403 else "auth_failed",
            status=status,
            host=self._host,
            account=account,
        )


def basic_credentials(credential: Credential | None) -> tuple[str, str] | None:
    """Return the user name and password for Basic authentication at the token service, or None if there are none."""
    if credential is None:
        return None
    if credential.password:
        return credential.username or "", credential.password
    if credential.identity_token is not None:
        return credential.username or _IDENTITY_USER, credential.identity_token
    return credential.username or "", ""


def _parse_lifetime(expires_in: strictjson.Value) -> float:
    """Return the lifetime of a token in seconds, limited to the range from MIN_LIFETIME to MAX_LIFETIME.

    If `expires_in` is missing or not a number, return MIN_LIFETIME."""
    if isinstance(expires_in, str) and _DIGITS.fullmatch(expires_in):
        expires_in = int(expires_in)
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        return MIN_LIFETIME
    return max(MIN_LIFETIME, min(MAX_LIFETIME, expires_in))
