"""Creates `Authorization` values for a registry from its challenges and the user's credentials."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

from mirror.errors import AuthError
from mirror.registry.auth.credential_trial import CredentialTrial, CredentialTrials
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.auth.token_client import OneOffSender, TokenClient, basic_credentials
from mirror.registry.http.headers import basic_authorization
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop, Work
from mirror.util.config_key import registry_key
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import SingleFlight, copy_error
from mirror.util.structs import RedactedStruct, Struct

RELOAD_INTERVAL = 10.0  # seconds; the shortest time between two fresh lookups of credentials

_REFUSAL_STATUSES = {400, 401, 403}  # from a token service; OAuth2 uses 400 for an invalid grant
_REMEMBERED_TOKENS = 1024  # how many of the latest tokens are redacted from output


class AuthScheme(Struct, frozen=True):
    """The authentication scheme that a registry requires: Basic if `service` is None, otherwise a bearer token.

    `service` is the URL of the token service, and `name` is the `service` parameter of the challenge."""

    service: Destination | None = None
    name: str = ""


class Grant(RedactedStruct, frozen=True):
    """A value for the `Authorization` header, and the period for which it is valid.

    If `header` is None, the header is not sent. `renew_at` and `expires_at` are values of `Clock.now`, in seconds.
    `trial` is that of the credential if the header contains it. A token is sent without the credential."""

    HIDDEN = ("header",)

    header: str | None = None
    renew_at: float = math.inf
    expires_at: float = math.inf
    credential: Credential | None = None
    trial: CredentialTrial | None = None


NO_GRANT = Grant()


class GrantRequest(Struct, frozen=True):
    """The parameters of a request for a new grant.

    Error messages start with `subject`. `scopes` are sent to the token service. If the previous grant was refused,
    `suspect_credential` is a tuple that contains the credential of that grant, or None if the grant had no credential.
    That credential is looked up again, in case it has changed."""

    subject: str
    repository: str
    scopes: Sequence[str]
    suspect_credential: tuple[Credential | None] | None = None


class TokenIssuer:
    """The issuer of all grants (`Authorization` values) for one registry.

    trials: which credentials the registry has accepted or rejected. api: returns the URL `/v2/` of the registry.
    Thread-safe. No lock is held during requests, credential helper runs or waits."""

    def __init__(
        self,
        host: str,
        credentials: CredentialSource,
        one_off: OneOffSender,
        clock: Clock,
        trials: CredentialTrials,
        api: Callable[[], Destination],
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._one_off = one_off
        self._trials = trials
        self._api = api
        self._client = TokenClient(host, one_off)
        self._clock = clock
        self._lock = threading.Lock()
        self._reloads: SingleFlight[str, None] = SingleFlight(f"credentials for {host}")
        self._next_reload_at: dict[str, float] = {}  # by the path to which the credentials apply
        self._tokens: deque[str] = deque(maxlen=_REMEMBERED_TOKENS)

    def issue(self, scheme: AuthScheme, request: GrantRequest, work: Work, *, may_reload: bool = True) -> Grant:
        """Return a new grant. May request a token, read credential files and run a credential helper.

        may_reload: whether to request a second token if the credential has changed after the token service refused it.
        Raises AuthError if no suitable credentials were found, if the token service refused them, or if the host has
        rejected them before. Raises NetworkError, Cancelled."""
        if scheme.service is None:
            return self._basic_grant(request, self._find_credential(request, work.stop))
        credential = self._enter_trial(request, work.stop)
        try:
            grant = self._token_grant(scheme.service, scheme.name, request, credential, work)
        except AuthError as error:
            if error.status not in _REFUSAL_STATUSES:
                raise
            reloaded = self._reload_credential(request, work.stop)
            if reloaded == credential or not may_reload:
                self._examine_token_refusal(scheme, credential, error, work)
                raise
        else:
            self._trials.leave(is_accepted=True)
            return grant
        finally:
            self._trials.leave()
        return self.issue(scheme, request, work, may_reload=False)

    def examine_basic_refusal(self, credential: Credential | None, work: Work) -> None:
        """After the registry has refused a request with Basic credentials, find out whether it rejects them everywhere.

        May send a request for `/v2/`. Raises Cancelled."""
        trial = self._trials.find(credential)
        if trial is None or credential is None:
            return

        def ask() -> int:
            """Request `/v2/` with the credentials, and return the status of the response."""
            basic = basic_credentials(credential)
            return self._one_off("GET", self._api(), basic=basic, work=work.without_retries(), kind="ping").status

        trial.examine(ask, lambda subject: self.refusal_error(subject, credential), work.stop)

    def _examine_token_refusal(
        self, scheme: AuthScheme, credential: Credential | None, refusal: AuthError, work: Work
    ) -> None:
        """After the token service has responded with `refusal`, find out whether it rejects the credential everywhere.

        May request a token without scopes. Raises Cancelled."""
        trial = self._trials.find(credential)
        service = scheme.service
        if trial is None or service is None or refusal.status != 401:
            return

        def ask() -> int:
            """Request a token without scopes, and return the status of the response. If it is unknown, return 0."""
            try:
                token = self._client.fetch(service, scheme.name, (), credential, work.without_retries())
            except AuthError as error:
                return error.status or 0
            with self._lock:
                self._tokens.append(token.value)
            return 200

        trial.examine(ask, lambda subject: copy_error(refusal), work.stop)

    def refusal_error(self, subject: str, credential: Credential | None, status: int = 401) -> AuthError:
        """Return the error for the refusal of `credential`, or of anonymous access if `credential` is None."""
        code = "auth_denied" if status == 403 else "auth_failed"
        if credential is None:
            return AuthError(
                f"{subject}: no credentials for {self._host}: "
                f"neither in the configuration nor in {self._credentials.searched_files}",
                hint=f"set {registry_key(self._host, 'username')} and password, or run `docker login`; "
                "some registries also require credentials if the repository does not exist",
                status=status,
                code=code,
                host=self._host,
            )
        return AuthError(
            f"{subject}: {self._host} does not accept {credential.description}",
            hint="check the user name, the secret and the user's permissions",
            status=status,
            code=code,
            host=self._host,
            account=credential.description,
        )

    def known_secrets(self) -> frozenset[str]:
        """Return the secrets of all credentials that have been found so far, and the latest tokens."""
        with self._lock:
            return self._credentials.known_secrets() | set(self._tokens)

    def _basic_grant(self, request: GrantRequest, credential: Credential | None) -> Grant:
        """Return a grant for Basic authentication. Raises AuthError if there is no user name."""
        if credential is None or credential.username is None:
            raise self.refusal_error(request.subject, credential)
        header = basic_authorization(credential.username, credential.password or credential.identity_token or "")
        trial = self._trials.find(credential)
        return Grant(header, credential.renew_at, credential.expires_at, credential, trial)

    def _token_grant(
        self, service: Destination, name: str, request: GrantRequest, credential: Credential | None, work: Work
    ) -> Grant:
        """Return a grant with a token from the token service, or with the registry token of the credential."""
        if credential is not None and credential.registry_token is not None:
            return Grant(f"Bearer {credential.registry_token}", credential=credential)
        now = self._clock.now()
        try:
            token = self._client.fetch(service, name, request.scopes, credential, work)
        except AuthError as error:
            if credential is None and error.status in _REFUSAL_STATUSES:
                raise self.refusal_error(request.subject, None, error.status or 401) from error
            raise
        with self._lock:
            self._tokens.append(token.value)
        early = min(30.0, 0.2 * token.lifetime)
        return Grant(f"Bearer {token.value}", now + token.lifetime - early, now + token.lifetime, credential)

    def _enter_trial(self, request: GrantRequest, stop: Stop) -> Credential | None:
        """Return the credential for a request, when it may be sent. The caller must then call `CredentialTrials.leave`.

        Raises the same errors as `_find_credential`."""
        while True:
            credential = self._find_credential(request, stop)
            if self._trials.enter(self._trials.find(credential), stop):
                return credential

    def _find_credential(self, request: GrantRequest, stop: Stop) -> Credential | None:
        """Return the credential for a request. If that credential was refused before, look it up again.

        Raises AuthError if the host has rejected the credential, and it has not changed since."""
        credential = self._credentials.find(self._host, request.repository, stop=stop)
        trial = self._trials.find(credential)
        is_suspect = request.suspect_credential is not None and request.suspect_credential[0] == credential
        if is_suspect or (trial is not None and trial.rejection is not None):
            credential = self._reload_credential(request, stop)
            trial = self._trials.find(credential)
            if trial is not None and trial.rejection is not None:
                raise trial.rejection(request.subject)
        return credential

    def _reload_credential(self, request: GrantRequest, stop: Stop) -> Credential | None:
        """Look up the credential again, in case it has changed, and return it.

        Files are read and helpers are run at most once per RELOAD_INTERVAL, for each path with its own credentials."""
        path = self._credentials.login_path(self._host, request.repository)

        def reload() -> None:
            """Refresh the cached credentials, unless they were refreshed less than RELOAD_INTERVAL ago."""
            if self._clock.now() >= self._next_reload_at.get(path, -math.inf):
                self._credentials.find(self._host, request.repository, fresh=True, stop=stop)
                self._next_reload_at[path] = self._clock.now() + RELOAD_INTERVAL

        self._reloads.share(path, reload, stop)
        return self._credentials.find(self._host, request.repository, stop=stop)
