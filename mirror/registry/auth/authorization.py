"""Which `Authorization` a registry gets with a request, and what is done when it wants another.

One `HostAuthorizer` for a registry. Nothing is sent before the registry asks for it (RFC 9110, 11.6.1): the first
request to it goes alone and bare. If it asks for Basic, every request has that from then on; if it asks for
Bearer, a token is fetched for each exact set of scopes before the first request that needs it. The first request
with a set of scopes goes alone until it is known that it is let in, so that a wrong password costs a request or
two, not one for each image.

A 401 is answered once: with a token fetched anew and credentials asked for anew. The next 401 is final, for that
set of scopes, without further requests.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence

from mirror.errors import AuthError, Cancelled, MirrorError, printable
from mirror.registry.auth.authorizer import Scope, pull, widened
from mirror.registry.auth.challenge import Challenge, choose, parse_challenges
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.auth.token_client import OneOff
from mirror.registry.auth.token_issuer import NOTHING, Ask, Grant, Issuer, Need
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.url_policy import Destination
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Clock, SystemClock
from mirror.util.single_flight import Flights, Gate, again
from mirror.util.structs import replace

log = logging.getLogger("mirror.auth")

RETRY_EARLY = 5.0  # seconds until a renewal that failed is tried again, while the old token still lives

_MOST_REFUSALS = 3  # 401s in a row, the one to a bare request included
_TIDY_EVERY = 512  # grants


class _Entry:
    """What is known of one set of scopes. Changed under the authorizer's lock; single attributes are read without."""

    __slots__ = (
        "ask", "asked", "authorised", "by_registry", "error", "gate",
        "grant", "refusals", "refused", "scopes", "suspect",
    )  # fmt: skip

    def __init__(self, scopes: tuple[Scope, ...], clock: Clock) -> None:
        self.scopes = scopes
        self.asked = tuple(dict.fromkeys(map(str, scopes)))  # of the token service
        self.gate = Gate(clock)
        self.ask: Ask | None = None  # of its own challenge; else the host's counts
        self.grant: Grant | None = None
        self.authorised = False  # a request with these scopes was answered with other than 401
        self.refusals = 0  # 401s since then
        self.refused: str | None = None  # the last header that was answered with 401
        self.suspect: tuple[Credential | None] | None = None  # what that header was made of
        self.error: MirrorError | None = None  # final
        self.by_registry = False  # the registry refused what was sent, rather than a token service

    @property
    def repository(self) -> str:
        return self.scopes[0].repository if self.scopes else ""


class HostAuthorizer:
    """Implements the session's `Authorizer`. Thread-safe; no lock is held across requests, helpers or waits.

    realm_check: tells where a realm leads, or raises Refused; then nothing is sent there."""

    def __init__(
        self,
        settings: HostSettings,
        credentials: CredentialSource,
        one_off: OneOff,
        realm_check: Callable[[str], Destination],
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._host = settings.host
        self._realm_check = realm_check
        self._clock = clock or SystemClock()
        self._credentials = credentials
        self._issuer = Issuer(settings.host, credentials, one_off, self._clock)
        self._lock = threading.Lock()
        self._entries: dict[tuple[Scope, ...], _Entry] = {}
        self._by_repository: dict[str, list[_Entry]] = {}  # those of one scope
        self._ask: Ask | None = None  # of the last challenge
        self._open = False  # the host has answered a bare request
        self._first = Gate(self._clock)  # while neither is known
        self._renewals: Flights[_Entry, Grant] = Flights(f"a token for {self._host}")
        self._renewed = 0  # how often
        self._warned = not settings.plain_http or settings.username is not None  # then the configuration warned

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        """The `Authorization` to send now with a request that needs `scopes`; None: none.

        May fetch a token, and may wait for other threads: for their token, or for the answer to their first
        request. So each call is followed by `accepted`, `challenged` or `abandoned` from the same thread. Raises
        AuthError, at once where an earlier 401 was final; Refused (unsafe_realm), NetworkError."""
        entry = self._entries.get(scopes)
        if entry is None:
            entry = self._entry(scopes)
        elif entry.authorised:
            grant = entry.grant
            if grant is not None and self._clock.now() < grant.renew_at:
                return grant.header
        return self._header(entry, work)

    def challenged(self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work) -> None:
        """A request that was sent with `sent` was answered with 401, or in words that say so.

        challenges: its WWW-Authenticate fields. Returns if one more try makes sense, with what `header` then gives.
        Raises AuthError, Refused where none does; what cannot change by itself is raised again by
        every later `header` for these scopes."""
        entry = self._entry(scopes)
        try:
            if entry.error is not None:
                raise again(entry.error)
            ask = self._note(entry, parse_challenges(challenges), sent)
            self._grant(entry, ask, work)
        except MirrorError as error:
            self._remember(entry, error)
            raise
        finally:
            self._leave(entry)  # one goes at a time still: this thread, or one that waited, with what is known now

    def accepted(self, scopes: tuple[Scope, ...]) -> None:
        """A request with these scopes was answered, and not with 401."""
        entry = self._entries.get(scopes)
        if entry is None or (entry.authorised and not entry.refusals):
            return
        with self._lock:
            if entry.error is not None:
                return
            entry.authorised = True
            entry.refusals, entry.refused, entry.suspect = 0, None, None
            if self._ask is None:
                self._open = True
                entry.grant = entry.grant or NOTHING
        entry.gate.open()
        self._first.open()

    def abandoned(self, scopes: tuple[Scope, ...]) -> None:
        """The request for which this thread got a header has no answer: the next that waits for it may go."""
        entry = self._entries.get(scopes)
        if entry is not None:
            self._leave(entry)

    def has_shown_credentials(self, repository: str, work: Work) -> bool:
        """Whether a reader of `repository` was asked for credentials and has some: then they were shown."""
        entry = self._entries.get(pull(repository))
        ask = self._ask if entry is None else entry.ask or self._ask
        return ask is not None and self._credentials.find(self._host, repository, stop=work.stop) is not None

    def forget_refusal(self, repository: str) -> None:
        """A reader of `repository` was refused for good; one more request may find out whether all of it is closed."""
        with self._lock:
            self._entries.pop(pull(repository), None)

    def allow_another(self, scopes: tuple[Scope, ...]) -> None:
        """Send one more request with these scopes, which a registry refused; the next 401 is final at once.

        For requests that a registry may refuse on their own. What a token service refused stays refused."""
        with self._lock:
            entry = self._entries.get(scopes)
            if entry is not None and entry.error is not None and entry.by_registry:
                entry.error = entry.refused = entry.suspect = None
                entry.by_registry = False
                entry.refusals = _MOST_REFUSALS - 1
                entry.gate = Gate(self._clock)

    def known_secrets(self) -> frozenset[str]:
        """Every secret seen so far (of tokens: those that live, and the last ones that did not), as sent."""
        with self._lock:
            grants = [entry.grant for entry in self._entries.values() if entry.grant is not None]
        sent = {grant.header.partition(" ")[2] for grant in grants if grant.header is not None}
        return self._issuer.known_secrets() | sent

    # --- one request

    def _header(self, entry: _Entry, work: Work) -> str | None:
        try:
            while True:
                work.stop.check()
                if entry.error is not None:
                    raise again(entry.error)
                ask = entry.ask or self._ask
                grant = self._grant(entry, ask, work)
                if self._enter(entry, ask, work.stop) and ask == (entry.ask or self._ask) and not entry.error:
                    self._warn(grant)
                    return grant.header
        except BaseException:
            self._leave(entry)
            raise

    def _enter(self, entry: _Entry, ask: Ask | None, stop: Stop) -> bool:
        """Wait for this request's turn; False: something has changed meanwhile."""
        if entry.authorised:
            return True
        if ask is None and not self._open:
            return self._first.enter(stop)
        if ask is None and self._settings.username is None:
            return True  # a host that lets everybody in, and nothing to tell it
        return entry.gate.enter(stop)

    def _leave(self, entry: _Entry) -> None:
        entry.gate.leave()
        self._first.leave()

    def _warn(self, grant: Grant) -> None:
        if not self._warned and grant.credential is not None:
            self._warned = True
            extra = {"event": "plain_http", "host": self._host}
            log.warning("%s: credentials are sent without encryption (plain-http)", self._host, extra=extra)

    def _entry(self, scopes: tuple[Scope, ...]) -> _Entry:
        with self._lock:
            entry = self._entries.get(scopes)
            if entry is None:
                key = tuple(sorted({Scope(s.repository, tuple(sorted(set(s.actions)))) for s in scopes}))
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._entries[key] = _Entry(scopes, self._clock)
                    if len(key) == 1:
                        self._by_repository.setdefault(key[0].repository, []).append(entry)
                self._entries[scopes] = entry
        return entry

    # --- a 401

    def _note(self, entry: _Entry, challenges: Sequence[Challenge], sent: str | None) -> Ask:
        """Take note of a 401, of several to the same header only once. -> what the registry asks for."""
        chosen = choose(challenges)
        ask = self._asked_by(chosen) if chosen else entry.ask or self._ask
        if ask is None:
            raise self._unanswerable(entry, challenges)
        with self._lock:
            grant = entry.grant
            renewing = grant is None and entry.ask is not None
            if renewing or sent != (grant.header if grant else None):
                return entry.ask or ask  # another thread was told of it before
            entry.refusals += 1
            entry.ask = self._ask = ask
            entry.grant = None
            if sent is not None:
                entry.refused = sent
                entry.suspect = (grant.credential if grant else None,)
            if chosen:
                entry.asked = widened(entry.scopes, chosen.params.get("scope", ""))
            # Bearer: the token was new. Basic may come to a third try, with a changed password.
            final = sent is not None and entry.refusals >= (_MOST_REFUSALS - 1 if ask.service else _MOST_REFUSALS)
            entry.by_registry = final
        self._first.open()
        if final:
            raise self._refusal(entry, grant)
        return ask

    def _asked_by(self, challenge: Challenge) -> Ask:
        if challenge.scheme == "basic":
            return Ask()
        return Ask(self._realm_check(challenge.params["realm"]), challenge.params.get("service", ""))

    def _unanswerable(self, entry: _Entry, challenges: Sequence[Challenge]) -> AuthError:
        schemes = sorted({challenge.scheme for challenge in challenges})
        if "bearer" in schemes:
            why = "asks for a bearer token but names no realm"
        elif schemes:
            why = f"asks for authentication in a way that is not supported: {printable(', '.join(schemes), 80)}"
        else:
            why = "answers 401 with no challenge that can be read"
        return AuthError(f"{self._subject(entry)}: {self._host} {why}", status=401)

    def _remember(self, entry: _Entry, error: MirrorError) -> None:
        """Errors that time does not mend are the answer to everything that follows."""
        if error.retryable or isinstance(error, Cancelled):
            return
        with self._lock:
            entry.error = entry.error or error
            entry.authorised = False
            entry.grant = None
        entry.gate.open()

    def _refusal(self, entry: _Entry, grant: Grant | None) -> AuthError:
        return self._issuer.refused(self._subject(entry), grant.credential if grant else None)

    def _subject(self, entry: _Entry) -> str:
        if not entry.scopes:
            return self._host
        return f"{self._host}/{entry.repository} ({','.join(entry.scopes[0].actions)})"

    # --- what to send

    def _grant(self, entry: _Entry, ask: Ask | None, work: Work) -> Grant:
        grant = entry.grant
        if grant is not None and self._clock.now() < grant.renew_at:
            return grant
        if ask is None:
            return NOTHING
        return self._renewals.share(entry, lambda: self._renew(entry, ask, work), work.stop)

    def _renew(self, entry: _Entry, ask: Ask, work: Work) -> Grant:
        old, now = entry.grant, self._clock.now()
        if old is not None and now < old.renew_at:
            return old  # by a thread whose call has just ended
        if self._borrow(entry, now) and entry.grant is not None:
            return entry.grant
        need = Need(self._subject(entry), entry.repository, entry.asked, entry.suspect)
        try:
            grant = self._issuer.issue(ask, need, work)
            if grant.header == entry.refused:
                entry.by_registry = True
                raise self._refusal(entry, grant)
        except MirrorError as error:
            if not error.retryable or old is None or self._clock.now() >= old.expires_at:
                self._remember(entry, error)
                raise
            grant = replace(old, renew_at=min(old.expires_at, self._clock.now() + RETRY_EARLY))
        with self._lock:
            entry.grant = grant
            self._renewed += 1
            if self._renewed % _TIDY_EVERY == 0:
                self._tidy()
        return grant

    def _tidy(self) -> None:
        """Let go of tokens that have run out; they are several KiB each, one for each repository."""
        now = self._clock.now()
        for entry in self._entries.values():
            if entry.grant is not None and entry.grant.expires_at < now:
                entry.grant = None

    def _borrow(self, entry: _Entry, now: float) -> bool:
        """Use a token of the same repository that allows more, if there is one and it was not refused."""
        if len(entry.scopes) != 1 or entry.refusals:
            return False
        wanted = set(entry.scopes[0].actions)
        with self._lock:
            for other in self._by_repository[entry.repository]:
                grant = other.grant
                if grant is None or not now < grant.renew_at < math.inf:
                    continue
                if wanted <= set(other.scopes[0].actions):
                    entry.grant = grant
                    entry.authorised = entry.authorised or other.authorised
                    return True
        return False
