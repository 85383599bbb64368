"""Determines the `Authorization` header for each request to a registry, and handles 401 responses.

There is one `HostAuthorizer` per registry. It sends no credentials until the registry asks for them (RFC 9110, section
11.6.1): the first request is sent alone, without the header. After a Basic challenge, every request carries Basic
credentials. After a Bearer challenge, a token is fetched for each distinct set of scopes, before the first request that
needs it. No second request with the same scopes is sent until the first one has received a response, so a wrong
password costs only a few requests instead of one per image.

After a 401, the refused credentials are looked up again, or a new token is fetched. At the latest, the second 401 in a
row (with Basic, the third) is final for that set of scopes: later requests fail without being sent.

If the registry or its token service rejects a password altogether, later requests with any scopes fail without being
sent (see `credential_trial`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mirror.errors import AuthError, Cancelled, MirrorError
from mirror.registry.auth.authorizer import Scope, pull_scopes, widen_scopes
from mirror.registry.auth.challenge import Challenge, choose_challenge, explain_unsupported, parse_challenges
from mirror.registry.auth.credential_trial import CredentialTrials
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.auth.scope_state import ScopeState, ScopeStates
from mirror.registry.auth.token_client import OneOffSender
from mirror.registry.auth.token_issuer import NO_GRANT, AuthScheme, Grant, GrantRequest, TokenIssuer
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Clock, SystemClock
from mirror.util.single_flight import Gate, SingleFlight, copy_error
from mirror.util.structs import replace

log = logging.getLogger("mirror.auth")

RENEWAL_RETRY = 5.0  # seconds after a failed renewal until the next one, while the old token is still valid

_MAX_REFUSALS = 3  # consecutive 401s, including the one for the request without a header
_CLEANUP_EVERY = 512  # renewals between two removals of expired tokens


class HostAuthorizer:
    """The `Authorizer` for one registry. Thread-safe. No lock is held during requests, credential helper runs or waits.

    `realm_check` is called with the realm from a challenge, which is the URL of a token service. It returns the
    corresponding destination, or raises Refused if no request may be sent to it."""

    def __init__(
        self,
        settings: HostSettings,
        credentials: CredentialSource,
        one_off: OneOffSender,
        realm_check: Callable[[str], Destination],
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._host = settings.host
        self._realm_check = realm_check
        self._clock = clock or SystemClock()
        self._credentials = credentials
        self.trials = CredentialTrials(self._clock)
        self._issuer = TokenIssuer(
            settings.host, credentials, one_off, self._clock, self.trials, lambda: realm_check("/v2/")
        )
        self._states = ScopeStates(self._clock)
        self._scheme: AuthScheme | None = None  # from the last challenge
        self._is_open = False  # the host has accepted a request without a header
        self._first_gate = Gate(self._clock)  # admits single requests until the scheme is known or the host is open
        self._renewals: SingleFlight[ScopeState, Grant] = SingleFlight(f"a token for {self._host}")
        self._renewal_count = 0
        # If the configuration has a password, the warning was logged when the configuration was read.
        self._warned = not settings.plain_http or bool(settings.passwords)

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """Return the `Authorization` value for a request that needs `scopes`, or None to send no header.

        May fetch a token, or wait for another thread that is fetching it or sending the first request. After the
        request, the same thread must call `record_accepted`, `handle_challenge` or `record_no_response`. Raises
        AuthError (at once after a final 401), Refused (unsafe_realm), NetworkError."""
        state = self._states.find(scopes)
        if state is None:
            state = self._states.get(scopes)
        elif state.is_authorized:
            grant = state.grant
            if (
                grant is not None
                and self._clock.now() < grant.renew_at
                and (not grant.trial or grant.trial.is_accepted)
            ):
                return grant.header
        return self._get_header(state, work)

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        """Handle a 401 (or a different response that reports an expired token) to a request with these scopes.

        `challenges` are the values of WWW-Authenticate; `sent` is the `Authorization` value of the request. Returns
        normally if the request should be sent again with a new value from `header`. Otherwise raises AuthError or
        Refused. If that error is not retryable, every later call of `header` for these scopes also raises it."""
        state = self._states.get(scopes)
        try:
            if state.error is not None:
                raise copy_error(state.error)
            scheme = self._record_challenge(state, parse_challenges(challenges), sent)
            if scheme.service is not None:
                self.trials.leave()  # another thread may request the token, and needs to send the credential for that
            self._get_grant(state, scheme, work)
        except MirrorError as error:
            self._record_error(state, error)
            if state.refused_by_registry and state.suspect_credential and (sent or "").startswith("Basic "):
                self._issuer.examine_basic_refusal(state.suspect_credential[0], work)
            raise
        finally:
            self._leave_gates(state)  # this or a waiting thread may send the next request

    def record_accepted(self, scopes: tuple[Scope, ...], *, is_forbidden: bool = False) -> None:
        """Record that a request with these scopes received a response other than 401.

        is_forbidden: whether its status is 403. Otherwise, the host has accepted the credential."""
        self.trials.leave(is_accepted=not is_forbidden)
        state = self._states.find(scopes)
        if state is None or (state.is_authorized and not state.refusals):
            return
        with self._states.lock:
            if state.error is not None:
                return
            state.is_authorized = True
            state.refusals, state.refused_header, state.suspect_credential = 0, None, None
            if self._scheme is None:
                self._is_open = True
                state.grant = state.grant or NO_GRANT
        state.gate.open()
        self._first_gate.open()

    def record_no_response(self, scopes: tuple[Scope, ...]) -> None:
        """Record that this thread's request received no usable response, and let the next waiting request be sent."""
        state = self._states.find(scopes)
        if state is not None:
            self._leave_gates(state)

    def has_sent_credentials(self, repository: str, work: Work) -> bool:
        """Return whether reads of `repository` use credentials: the registry requires them, and they were found."""
        state = self._states.find(pull_scopes(repository))
        scheme = self._scheme if state is None else state.scheme or self._scheme
        return scheme is not None and self._credentials.find(self._host, repository, stop=work.stop) is not None

    def forget_refusal(self, repository: str) -> None:
        """Forget a final refusal to read `repository`, so that requests for it are sent again."""
        self._states.forget(pull_scopes(repository))

    def allow_one_more_request(self, scopes: tuple[Scope, ...], *, only_if_accepted: bool) -> None:
        """Allow one more request with these scopes after a final refusal by the registry. The next 401 is final again.

        Call this after a request that a registry may refuse even though it accepts other requests with the same scopes;
        with `only_if_accepted`, only if it has accepted one. A refusal by the token service remains final."""
        with self._states.lock:
            state = self._states.find(scopes)
            if state is not None and state.refused_by_registry and (state.is_authorized or not only_if_accepted):
                state.discard_grant(self._clock)
                state.refusals = _MAX_REFUSALS - 1

    def account(self, scopes: tuple[Scope, ...]) -> str:
        """Return a description of the credentials that requests with these scopes use, or "" if they use none."""
        state = self._states.find(scopes)
        return state.account if state is not None else ""

    def discard_grants(self, repositories: str) -> None:
        """Discard the grants for a repository that was just created, and for those below it: they allow no access."""
        self._states.discard_grants(repositories)

    def known_secrets(self) -> frozenset[str]:
        """Return all secrets that have been used so far, both plain and as sent in the `Authorization` header.

        Of the expired tokens, only the most recent ones are included."""
        headers = [grant.header for grant in self._states.grants() if grant.header is not None]
        return self._issuer.known_secrets() | {header.partition(" ")[2] for header in headers}

    # --- one request

    def _get_header(self, state: ScopeState, work: Work) -> str | None:
        """Wait until the request may be sent, then return its `Authorization` value, or None to send no header."""
        try:
            while True:
                work.stop.raise_if_requested()
                if state.error is not None:
                    raise copy_error(state.error)
                scheme = state.scheme or self._scheme
                grant = self._get_grant(state, scheme, work)
                if (
                    self._wait_at_gate(state, scheme, work.stop)
                    and scheme == (state.scheme or self._scheme)
                    and not state.error
                    and self._enter_trial(state, grant, work.stop)
                ):
                    self._warn_plain_http(grant)
                    return grant.header
        except BaseException:
            self._leave_gates(state)
            raise

    def _wait_at_gate(self, state: ScopeState, scheme: AuthScheme | None, stop: Stop) -> bool:
        """Wait until this request may be sent. Return False if the state may have changed during the wait."""
        if state.is_authorized:
            return True
        if scheme is None and not self._is_open:
            return self._first_gate.enter(stop)
        if scheme is None and self._settings.find_login(state.repository) is None:
            return True  # the host allows anonymous access, and there are no credentials
        return state.gate.enter(stop)

    def _enter_trial(self, state: ScopeState, grant: Grant, stop: Stop) -> bool:
        """Wait until the credential in `grant` may be sent. Return False if it may have changed during the wait."""
        if self.trials.enter(grant.trial, stop):
            return True
        with self._states.lock:
            if state.grant is grant:
                state.grant = None  # the credential is looked up again
        return False

    def _leave_gates(self, state: ScopeState) -> None:
        """Allow the next waiting request to be sent."""
        self.trials.leave()
        state.gate.leave()
        self._first_gate.leave()

    def _warn_plain_http(self, grant: Grant) -> None:
        """Log a warning the first time credentials are sent without encryption."""
        if not self._warned and grant.credential is not None:
            self._warned = True
            extra = {"event": "plain_http", "host": self._host}
            log.warning("%s: credentials are sent without encryption (plain-http)", self._host, extra=extra)

    # --- a 401

    def _record_challenge(self, state: ScopeState, challenges: Sequence[Challenge], sent: str | None) -> AuthScheme:
        """Record a 401, and return the authentication scheme that the registry requires.

        Several 401s for the same header value are recorded once. Raises AuthError if the 401 is final, or if no
        supported scheme is known."""
        chosen = choose_challenge(challenges)
        scheme = self._parse_scheme(chosen) if chosen else state.scheme or self._scheme
        if scheme is None:
            what = f"{self._subject(state)}: {self._host} {explain_unsupported(challenges)}"
            raise AuthError(what, status=401, host=self._host)
        with self._states.lock:
            grant = state.grant
            renewing = grant is None and state.scheme is not None
            if renewing or sent != (grant.header if grant else None):
                return state.scheme or scheme  # another thread has already recorded it
            state.refusals += 1
            state.scheme = self._scheme = scheme
            # A rejected token is final unless it may be older than its project. A Basic password may have changed.
            is_new = scheme.service is not None and self._settings.create is None
            final = sent is not None and state.refusals >= (_MAX_REFUSALS - 1 if is_new else _MAX_REFUSALS)
            if final:
                state.error = self._refusal_error(state, grant)
            state.grant = None  # set after the error, so that no thread requests another grant
            if sent is not None:
                state.refused_header = sent
                state.suspect_credential = (grant.credential if grant else None,)
            if chosen:
                state.requested_scopes = widen_scopes(state.scopes, chosen.params.get("scope", ""))
            state.refused_by_registry = final
        self._first_gate.open()
        if state.error is not None:
            raise copy_error(state.error)
        return scheme

    def _parse_scheme(self, challenge: Challenge) -> AuthScheme:
        """Return the scheme that a challenge requires. Raises Refused (unsafe_realm) if its realm is not allowed."""
        if challenge.scheme == "basic":
            return AuthScheme()
        return AuthScheme(self._realm_check(challenge.params["realm"]), challenge.params.get("service", ""))

    def _record_error(self, state: ScopeState, error: MirrorError) -> None:
        """Store an error, unless it is retryable or a cancellation. Later requests with these scopes fail with it."""
        if error.retryable or isinstance(error, Cancelled):
            return
        with self._states.lock:
            state.error = state.error or error
            state.is_authorized = False
            state.grant = None
        state.gate.open()

    def _refusal_error(self, state: ScopeState, grant: Grant | None) -> AuthError:
        """Return the error for a grant that the registry refused."""
        return self._issuer.refusal_error(self._subject(state), grant.credential if grant else None)

    def _subject(self, state: ScopeState) -> str:
        """Return the subject of error messages about these scopes, such as `host/repository (pull)`."""
        scope = f"/{state.scopes[0].repository} ({','.join(state.scopes[0].actions)})" if state.scopes else ""
        return f"{self._host}{scope}"

    # --- grants

    def _get_grant(self, state: ScopeState, scheme: AuthScheme | None, work: Work) -> Grant:
        """Return a valid grant. If there is none, request one; threads that need the same grant share the request."""
        grant = state.grant
        if grant is not None and self._clock.now() < grant.renew_at:
            return grant
        if scheme is None:
            return NO_GRANT
        return self._renewals.share(state, lambda: self._renew(state, scheme, work), work.stop)

    def _renew(self, state: ScopeState, scheme: AuthScheme, work: Work) -> Grant:
        """Request a new grant and return it. On a retryable error, return the old one instead while it is valid."""
        old, now = state.grant, self._clock.now()
        if state.error is not None:
            raise copy_error(state.error)
        if old is not None and now < old.renew_at:
            return old  # another thread has just renewed it
        if self._states.use_wider_grant(state, now) and state.grant is not None:
            return state.grant
        request = GrantRequest(self._subject(state), state.repository, state.requested_scopes, state.suspect_credential)
        try:
            grant = self._issuer.issue(scheme, request, work)
            if grant.header == state.refused_header:
                state.refused_by_registry = True
                raise self._refusal_error(state, grant)
        except MirrorError as error:
            if not error.retryable or old is None or self._clock.now() >= old.expires_at:
                self._record_error(state, error)
                raise
            grant = replace(old, renew_at=min(old.expires_at, self._clock.now() + RENEWAL_RETRY))
        with self._states.lock:
            state.grant = grant
            self._renewal_count += 1
            if self._renewal_count % _CLEANUP_EVERY == 0:
                self._states.drop_expired_tokens(self._clock.now())
        return grant
