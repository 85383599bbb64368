"""From what a registry asks for, and who we are there, to the `Authorization` that it gets."""

from __future__ import annotations

import base64
import math
import threading
from collections import deque
from collections.abc import Sequence

from mirror.errors import AuthError
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.auth.token_client import OneOff, TokenClient
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop, Work
from mirror.util.config_key import registry_key
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import Flights
from mirror.util.structs import Hiding, Struct

ASK_AGAIN = 10.0  # seconds from one fresh look for credentials to the next

_REFUSALS = {400, 401, 403}  # of a token service; 400 is OAuth2's for a grant that is not valid
_REMEMBERED_TOKENS = 1024


class Ask(Struct, frozen=True):
    """What a registry asks for: Basic (no service), or a token of `service`, which calls the registry `name`."""

    service: Destination | None = None
    name: str = ""


class Grant(Hiding, frozen=True):
    """What is sent, and until when. Times are of the clock, in seconds."""

    HIDDEN = ("header",)

    header: str | None = None
    renew_at: float = math.inf
    expires_at: float = math.inf
    credential: Credential | None = None


NOTHING = Grant()


class Need(Struct, frozen=True):
    """Whom a grant is for. subject: for messages; scopes: for the token service.

    suspect: the credential, in a tuple, of which a grant was refused; it is asked for afresh."""

    subject: str
    repository: str
    scopes: Sequence[str]
    suspect: tuple[Credential | None] | None = None


class Issuer:
    """Makes grants for one registry. Thread-safe; no lock is held across requests, helpers or waits."""

    def __init__(self, host: str, credentials: CredentialSource, one_off: OneOff, clock: Clock) -> None:
        self._host = host
        self._credentials = credentials
        self._client = TokenClient(host, one_off)
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: Flights[str, None] = Flights(f"credentials for {host}")
        self._look_again_at = -math.inf
        self._tokens: deque[str] = deque(maxlen=_REMEMBERED_TOKENS)

    def issue(self, ask: Ask, need: Need, work: Work) -> Grant:
        """May request a token, read files and run a helper. Raises AuthError, NetworkError, Cancelled."""
        credential = self._credential(need, work.stop)
        if ask.service is None:
            return self._basic(need, credential)
        try:
            return self._token(ask.service, ask.name, need, credential, work)
        except AuthError as error:
            if error.status not in _REFUSALS:
                raise
            changed = self._looked_up_again(need, work.stop)
            if changed == credential:
                raise
            return self._token(ask.service, ask.name, need, changed, work)

    def refused(self, subject: str, credential: Credential | None, status: int = 401) -> AuthError:
        """The error that says that `credential`, or having none, does not do."""
        code = "auth_denied" if status == 403 else "auth_failed"
        if credential is None:
            return AuthError(
                f"{subject}: no credentials for {self._host}: "
                f"neither in the configuration nor in {self._credentials.places}",
                hint=f"give {registry_key(self._host, 'username')} and password, or log in with docker; "
                "some registries say this of a repository that does not exist",
                status=status,
                code=code,
            )
        return AuthError(
            f"{subject}: {self._host} does not accept {credential.who}",
            hint="check the user, the secret and what the user may do there",
            status=status,
            code=code,
        )

    def known_secrets(self) -> frozenset[str]:
        """Secrets and their encoded forms, and the last tokens."""
        with self._lock:
            return self._credentials.known_secrets() | set(self._tokens)

    def _basic(self, need: Need, credential: Credential | None) -> Grant:
        if credential is None or credential.username is None:
            raise self.refused(need.subject, credential)
        text = f"{credential.username}:{credential.password or credential.identity_token or ''}"
        return Grant(f"Basic {base64.b64encode(text.encode()).decode()}", credential=credential)

    def _token(self, service: Destination, name: str, need: Need, credential: Credential | None, work: Work) -> Grant:
        if credential is not None and credential.registry_token is not None:
            return Grant(f"Bearer {credential.registry_token}", credential=credential)
        now = self._clock.now()
        try:
            token = self._client.fetch(service, name, need.scopes, credential, work)
        except AuthError as error:
            if credential is None and error.status in _REFUSALS:
                raise self.refused(need.subject, None, error.status or 401) from error
            raise
        with self._lock:
            self._tokens.append(token.value)
        early = min(30.0, 0.2 * token.lifetime)
        return Grant(f"Bearer {token.value}", now + token.lifetime - early, now + token.lifetime, credential)

    def _credential(self, need: Need, stop: Stop) -> Credential | None:
        found = self._credentials.find(self._host, need.repository, stop=stop)
        if need.suspect is not None and need.suspect[0] == found:
            return self._looked_up_again(need, stop)
        return found

    def _looked_up_again(self, need: Need, stop: Stop) -> Credential | None:
        """What files and helpers say now: they may have been given new credentials while we worked."""

        def look() -> None:
            if self._clock.now() >= self._look_again_at:
                self._credentials.find(self._host, need.repository, fresh=True, stop=stop)
                self._look_again_at = self._clock.now() + ASK_AGAIN

        self._looks.share("", look, stop)
        return self._credentials.find(self._host, need.repository, stop=stop)
