"""Authorization of requests to a v1 registry.

A client either sends Basic credentials to the index and receives a token that is valid for one repository, or sends
Basic credentials with every request. Credentials that the same host rejected over v2 are not sent (docs/trust.md). If
the v1 registry rejects them, they are sent only a few times in a run (see `credential_trial`).
Sources: Docker's registry API v1, "Authorization", and the behaviour of Docker 1.10.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from mirror.errors import AuthError
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credential_trial import CredentialTrials
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.http.headers import basic_authorization
from mirror.registry.http.host_settings import HostSettings
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.retry_policy import Clock

log = logging.getLogger("mirror.auth")

# V1Authorizer recognizes the kind of a request by the kind of its scope. The v1 protocol itself has no scopes.
INDEX, IMAGES, ENDPOINT, LOGIN = "v1-index", "v1-images", "v1-endpoint", "v1-login"


def v1_scopes(kind: str, repository: str) -> tuple[Scope, ...]:
    """Return the scopes that tell the session's authorizer which kind of v1 request it authorizes."""
    return (Scope(repository, ("pull",), kind),)


class V1Authorizer:
    """An authorizer for the requests of a session with a v1 registry. Implements Authorizer.

    Thread-safe. No lock is held while credentials are looked up. renew: a function that requests a new token from the
    index. log_in: a function that sends the credentials for a repository with a request that concerns no repository,
    and returns the status of the response. V1Client sets both. standalone: whether the registry works without a
    separate index."""

    def __init__(self, settings: HostSettings, credentials: CredentialSource, clock: Clock) -> None:
        self._settings = settings
        self._credentials = credentials
        # Not shared with v2: a v1 registry may reject credentials that the same host accepts over v2.
        self._trials = CredentialTrials(clock)
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._renewed: set[str] = set()
        self._withheld: set[str] = set()
        self._warned = not settings.plain_http
        self.standalone = True
        self.renew: Callable[[str, Work], object] = _do_not_renew
        self.log_in: Callable[[str, Work], int] = lambda repository, work: 0

    def withhold_credentials(self, repository: str) -> None:
        """Stop sending credentials for this repository over v1, because they were rejected over v2."""
        self._withheld.add(repository)

    def store_token(self, repository: str, token: str | None) -> None:
        """Store the token that the index issued for this repository. If `token` is None, remove it."""
        with self._lock:
            if token is None:
                self._tokens.pop(repository, None)
            else:
                self._tokens[repository] = token

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """Return the value of the `Authorization` header: the repository's token or Basic credentials.

        Return None if the request must be sent without this header. May wait for the response to another request, if
        the registry has not accepted the credentials yet. Raises AuthError if it has rejected them."""
        if not scopes:  # a ping
            return None
        kind, repository = scopes[0].kind, scopes[0].repository
        token = self._tokens.get(repository)
        if kind in (INDEX, LOGIN):
            return self._basic_header(repository, work)
        if kind == IMAGES and self.standalone and (token is None or not self._settings.plain_http):
            basic = self._basic_header(repository, work)
            if basic is not None:
                return basic
        return f"Token {token}" if token is not None else None

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        """Handle a 401 response: renew the repository's token once, so that the caller can repeat the request.

        Raises AuthError if the request had no token, or if the token has already been renewed."""
        if scopes and scopes[0].kind == LOGIN:  # the caller keeps the trial until it knows this response
            raise AuthError("the v1 registry rejected a login", status=401)
        try:
            self._handle_challenge(scopes, sent, work)
        finally:
            self._trials.leave()

    def _handle_challenge(self, scopes: tuple[Scope, ...], sent: str | None, work: Work) -> None:
        """Handle a 401 response as `handle_challenge` does."""
        repository = scopes[0].repository if scopes else ""
        subject = f"{self._settings.host}/{repository}"
        if sent is not None and sent.startswith("Token "):
            with self._lock:
                is_replaced = f"Token {self._tokens.get(repository)}" != sent
                is_first = repository not in self._renewed
                self._renewed.add(repository)
            if is_replaced:
                return  # another thread has renewed the token already
            if is_first:
                self.renew(repository, work)
                return
        if sent is not None:
            credential = self._credentials.find(self._settings.host, repository, stop=work.stop)
            if credential is None or not sent.startswith("Basic "):
                raise self._rejection_error(subject, "the token from the index")
            self._examine_refusal(credential, repository, work)
            raise self._rejection_error(subject, credential.description)
        hint = f"set {registry_key(self._settings.host, 'username')} and password"
        if repository in self._withheld:
            hint = "credentials that were rejected over v2 are not sent over v1"
        raise AuthError(
            f"{subject}: the v1 registry requires credentials", hint=hint, status=401, host=self._settings.host
        )

    def _examine_refusal(self, credential: Credential, repository: str, work: Work) -> None:
        """After a request with Basic credentials was refused, find out whether they are rejected for all repositories.

        Raises Cancelled."""
        trial = self._trials.find(credential)
        if trial is not None:
            trial.examine(
                lambda: self.log_in(repository, work),
                lambda subject: self._rejection_error(subject, credential.description),
                work.stop,
            )

    def _rejection_error(self, subject: str, rejected: str) -> AuthError:
        """Return the error for credentials or a token that the registry rejected."""
        what = f"{subject}: the v1 registry rejected {rejected}"
        return AuthError(what, status=401, host=self._settings.host, account=rejected)

    def record_accepted(self, scopes: tuple[Scope, ...], *, is_forbidden: bool = False) -> None:
        """Record that a request received a response other than 401. If that is not 403, the credentials are right."""
        self._trials.leave(is_accepted=not is_forbidden)

    def record_no_response(self, scopes: tuple[Scope, ...]) -> None:
        """Let the next request with the credentials be sent."""
        self._trials.leave()

    def allow_one_more_request(self, scopes: tuple[Scope, ...], *, only_if_accepted: bool) -> None:
        """Do nothing, because over v1 a refusal does not block later requests."""

    def account(self, scopes: tuple[Scope, ...]) -> str:
        """Return an empty string: over v1, most requests use tokens, whose user is not recorded."""
        return ""

    def _basic_header(self, repository: str, work: Work) -> str | None:
        """Return the header value with Basic credentials, or None if there are none or they are withheld."""
        if repository in self._withheld:
            return None
        host = self._settings.host
        credential: Credential | None = self._credentials.find(host, repository, stop=work.stop)
        if credential is None or credential.username is None or credential.password is None:
            return None
        trial = self._trials.find(credential)
        while not self._trials.enter(trial, work.stop):
            if trial is not None and trial.rejection is not None:
                raise trial.rejection(f"{host}/{repository}")
        if not self._warned:
            self._warned = True
            extra = {"event": "plain_http", "host": host}
            text = "%s: credentials are sent without encryption (plain-http)"
            log.warning(text, host, extra=extra)
        return basic_authorization(credential.username, credential.password)


def _do_not_renew(repository: str, work: Work) -> None:
    """Do nothing. This is the default value of `V1Authorizer.renew`."""
    pass
