"""Doubles for tests of authentication: a registry and a token service in memory, changing credentials, a clock."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from mirror.errors import MirrorError
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.url_policy import Destination, UrlPolicy
from mirror.util.cancellation import Stop, Work

HOST = "reg.example.com"
BASIC = ['Basic realm="Registry"']
REALM = f"https://{HOST}/token"
BEARER = [f'Bearer realm="{REALM}",service="reg"']

Scopes = tuple[Scope, ...]


def pull_scopes(repository: str = "team/app") -> Scopes:
    return (Scope(repository, ("pull",)),)


def push_scopes(repository: str = "team/app") -> Scopes:
    return (Scope(repository, ("pull", "push")),)


def basic(user: str, word: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{word}".encode()).decode()


basic_header = basic  # under a name that no parameter has


class FakeClock:
    def __init__(self) -> None:
        self.time = 5000.0

    def now(self) -> float:
        return self.time


class FakeCredentials(CredentialSource):
    """Credentials that a test can change. `fresh` counts the fresh lookups."""

    def __init__(self, **by_host: Credential | MirrorError) -> None:
        super().__init__({}, {"HOME": "/nonexistent"})
        self.now: Credential | MirrorError | None = by_host.get("reg")
        self.later: Credential | MirrorError | None = None  # the result of a fresh lookup
        self.fresh = 0
        self.asked: list[tuple[str, str]] = []

    def find(
        self, host: str, repository: str = "", *, fresh: bool = False, stop: Stop | None = None
    ) -> Credential | None:
        self.asked.append((host, repository))
        if fresh:
            self.fresh += 1
            self.now = self.later or self.now
        if isinstance(self.now, MirrorError):
            raise self.now
        return self.now


@dataclass
class Reply:
    status: int
    body: bytes


@dataclass
class FakeTokenService:
    """A token service. By default each request gets a new token for the requested scopes.

    It also receives the requests for `/v2/` of the registry, because they are sent in the same way."""

    lifetime: object = 300
    logins: set[tuple[str, str]] | None = None  # None: every request gets a token
    failure: Callable[[], None] = lambda: None  # may raise or block
    fixed: str = ""  # if set, the token of every response
    status: int = 200
    refused: str = "//"  # a request with this text in its scopes gets 401
    accepts: Callable[[str], bool] = lambda header: True  # whether the registry accepts a request for /v2/
    pings: list[str] = field(default_factory=list)  # the headers of the requests for /v2/
    calls: list[dict[str, object]] = field(default_factory=list)
    given: dict[str, list[str]] = field(default_factory=dict)  # scopes by token

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

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
    ) -> Reply:
        if kind == "ping":
            return self._ping(str(destination), basic)
        scopes = [value for key, value in params if key == "scope"] or (form or {}).get("scope", "").split()
        with self._lock:
            self.calls.append({"method": method, "to": str(destination), "scopes": scopes, "basic": basic})
            number = len(self.calls)
        self.failure()
        login = basic or (("<token>", form["refresh_token"]) if form else None)
        if (self.logins is not None and login not in self.logins) or any(self.refused in scope for scope in scopes):
            return Reply(401, b"")
        if self.status != 200:
            return Reply(self.status, b"")
        token = self.fixed or f"token-{number}"
        with self._lock:
            self.given[token] = scopes
        return Reply(200, json.dumps({"token": token, "expires_in": self.lifetime}).encode())

    def _ping(self, url: str, login: tuple[str, str] | None) -> Reply:
        assert url == f"https://{HOST}/v2/"
        assert login is not None
        header = basic_header(*login)
        with self._lock:
            self.pings.append(header)
        self.failure()
        return Reply(200 if self.accepts(header) else 401, b"")


class FakeRegistry:
    """A registry in memory. `sent` has the scopes and header of each request."""

    def __init__(self, challenges: list[str], accepts: Callable[[Scopes, str | None], bool]) -> None:
        self.challenges = challenges
        self.accepts = accepts
        self.sent: list[tuple[str, str | None]] = []
        self._lock = threading.Lock()

    def answer(self, scopes: Scopes, header: str | None) -> int:
        with self._lock:
            self.sent.append((" ".join(map(str, scopes)), header))
        return 200 if self.accepts(scopes, header) else 401

    @property
    def count(self) -> int:
        return len(self.sent)

    @property
    def headers(self) -> list[str | None]:
        return [header for _, header in self.sent]


@dataclass
class World:
    """A registry, its token service, credentials, a clock, and requests sent as a session does."""

    registry: FakeRegistry
    logins: FakeCredentials = field(default_factory=FakeCredentials)
    tokens: FakeTokenService = field(default_factory=FakeTokenService)
    settings: HostSettings = field(default_factory=lambda: HostSettings(HOST))
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.tokens.accepts = lambda header: self.registry.accepts((), header)
        self.auth = HostAuthorizer(
            self.settings, self.logins, self.tokens, UrlPolicy(self.settings).check_realm, self.clock
        )

    def request(self, scopes: Scopes, work: Work | None = None) -> int:
        """Send a request until it is accepted, and return how often it was sent. Raises what the authorizer raises."""
        work = work or Work(Stop())
        for count in range(1, 6):
            sent = self.auth.header(scopes, work)
            if self.registry.answer(scopes, sent) != 401:
                self.auth.record_accepted(scopes)
                return count
            self.auth.handle_challenge(scopes, self.registry.challenges, sent, work)
        raise AssertionError("too many requests")


def open_world() -> World:
    return World(FakeRegistry([], lambda scopes, header: True))


def basic_world(*logins: tuple[str, str], found: Credential | MirrorError | None = None) -> World:
    accepted = {basic(*login) for login in logins}
    return World(
        FakeRegistry(BASIC, lambda scopes, header: header in accepted),
        FakeCredentials(reg=found) if found else FakeCredentials(),
    )


def bearer_world(found: Credential | MirrorError | None = None, tokens: FakeTokenService | None = None) -> World:
    """Return a world whose registry accepts every token with at least the scopes of the request."""
    service = tokens or FakeTokenService()

    def accepts(scopes: Scopes, header: str | None) -> bool:
        asked = service.given.get((header or "").removeprefix("Bearer "), [])
        have = {(part.rpartition(":")[0], action) for part in asked for action in part.rpartition(":")[2].split(",")}
        return bool(asked) and {(f"repository:{s.repository}", a) for s in scopes for a in s.actions} <= have

    return World(FakeRegistry(BEARER, accepts), FakeCredentials(reg=found) if found else FakeCredentials(), service)


ACME = Credential("acme", "right", origin="env HUB_TOKEN")


def in_threads(count: int, call: Callable[[int], object]) -> list[Future[object]]:
    """Call from `count` threads at once, and return when all calls have ended."""
    together = threading.Barrier(count)

    def begin(number: int) -> object:
        together.wait(60)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return [pool.submit(begin, number) for number in range(count)]


def error_of(world: World, scopes: Scopes) -> MirrorError:
    with pytest.raises(MirrorError) as caught:
        world.request(scopes)
    return caught.value


class WatchedStop(Stop):
    """A stop with an event that is set when a callback is added."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def _add(self, callback: Callable[[], None]) -> Callable[[], None]:
        leave = super()._add(callback)
        self.waits.set()
        return leave
