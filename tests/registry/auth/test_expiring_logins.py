"""Passwords of a service: each is reused until half of its life is over, and requested once for all who wait."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from mirror.errors import AuthError, MirrorError, NetworkError
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.auth.expiring_logins import RETRY_AFTER, ExpiringLogin, IssuedPassword
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.url_policy import UrlPolicy
from mirror.util.cancellation import Stop, Work
from tests.registry.auth.doubles import (
    BASIC,
    HOST,
    FakeClock,
    FakeRegistry,
    FakeTokenService,
    Scopes,
    basic,
    in_threads,
    pull_scopes,
)

HOURS = 3600.0
STOP = Stop()


@dataclass
class FakeService:
    """Issues password-1, password-2 and so on, or fails."""

    failure: MirrorError | None = None
    calls: int = 0
    entered: threading.Event = field(default_factory=threading.Event)
    proceed: threading.Event | None = None
    origin: str = "a service"

    def issue(self, stop: Stop) -> IssuedPassword:
        self.calls += 1
        self.entered.set()
        if self.proceed is not None:
            assert self.proceed.wait(60)
        if self.failure is not None:
            raise self.failure
        return IssuedPassword("AWS", f"password-{self.calls}", 12 * HOURS)


class World:
    """A registry with Basic authentication that accepts one password, and the authorizer of a session with it."""

    def __init__(self) -> None:
        self.clock, self.service, self.secrets = FakeClock(), FakeService(), list[tuple[str, str | None]]()
        self.accepted = {"password-1", "password-2", "password-3"}
        self.registry = FakeRegistry(BASIC, self._accepts)
        self.login = ExpiringLogin(self.service, self.clock)
        source = CredentialSource(
            {}, {}, on_secret=lambda secret, user: self.secrets.append((secret, user)), services={HOST: self.login}
        )
        settings = HostSettings(HOST)
        realm_check = UrlPolicy(settings).check_realm
        self.auth = HostAuthorizer(settings, source, FakeTokenService(), realm_check, self.clock)

    def _accepts(self, scopes: Scopes, header: str | None) -> bool:
        return header in {basic("AWS", password) for password in self.accepted}

    def request(self, repository: str = "team/app") -> str:
        """Send a request as a session does. Return the password that the registry accepted."""
        work, scopes = Work(Stop()), pull_scopes(repository)
        for _ in range(5):
            sent = self.auth.header(scopes, work)
            if self.registry.answer(scopes, sent) == 200:
                self.auth.record_accepted(scopes)
                return next(one for one in self.accepted if sent == basic("AWS", one))
            self.auth.handle_challenge(scopes, BASIC, sent, work)
        raise AssertionError("too many requests")


def test_a_password_is_reused_for_half_of_its_life_and_renewed_before_it_expires() -> None:
    world = World()
    assert ["password-1", "password-1"] == [world.request("team/app"), world.request("team/web")]
    world.clock.time += 6 * HOURS - 1
    assert "password-1" == world.request()
    world.clock.time += 1
    before = world.registry.count
    assert ["password-2", "password-2"] == [world.request("team/app"), world.request("team/web")]
    assert (2, before + 2) == (world.service.calls, world.registry.count), "no request was refused"
    assert [("password-1", "AWS"), ("password-2", "AWS")] == world.secrets, "all of them are redacted from output"


def test_a_refused_password_is_renewed_once() -> None:
    world = World()
    world.request()
    world.accepted = {"password-2"}
    assert ["password-2", "password-2"] == [world.request("team/app"), world.request("team/web")]
    assert 2 == world.service.calls
    world.accepted = set()
    world.clock.time += 60
    for _ in range(3):
        with pytest.raises(AuthError, match="does not accept user AWS, password from a service"):
            world.request()
    assert 3 == world.service.calls


def test_threads_that_need_a_password_share_one_request() -> None:
    world = World()
    world.service.proceed = threading.Event()

    def find(number: int) -> object:
        if number == 0:
            assert world.service.entered.wait(60)
            world.service.proceed.set()  # type: ignore[union-attr]
        return world.login.find(fresh=False, stop=STOP).password

    found = [one.result() for one in in_threads(20, find)]
    assert (["password-1"] * 20, 1) == (found, world.service.calls)


def test_while_the_service_fails_the_old_password_is_used_until_it_expires() -> None:
    world = World()
    world.request()
    world.clock.time += 7 * HOURS
    world.service.failure = NetworkError("no connection")
    assert "password-1" == world.request("team/app")
    assert "password-1" == world.request("team/new"), "also by the first request to a repository"
    assert 2 == world.service.calls, "the service is not asked again at once"
    world.clock.time += RETRY_AFTER
    assert ("password-1", 3) == (world.request(), world.service.calls)
    world.clock.time += 5 * HOURS
    with pytest.raises(NetworkError):
        world.request()


def test_a_permanent_failure_is_not_repeated_for_every_repository() -> None:
    world = World()
    world.service.failure = AuthError("denied", code="auth_denied")
    for repository in ("team/app", "team/web", "team/db"):
        with pytest.raises(AuthError, match="denied"):
            world.request(repository)
    assert 1 == world.service.calls


def test_a_temporary_failure_is_repeated_after_a_while() -> None:
    world = World()
    world.service.failure = NetworkError("no connection")
    for _ in range(2):
        with pytest.raises(NetworkError):
            world.login.find(fresh=False, stop=STOP)
    assert 1 == world.service.calls
    world.service.failure = None
    world.clock.time += 10
    assert "password-2" == world.login.find(fresh=False, stop=STOP).password


def test_no_other_credentials_are_used_for_a_host_with_a_service() -> None:
    world = World()
    world.service.failure = AuthError("denied")
    source = CredentialSource({}, {"DOCKER_CONFIG": "/nonexistent"}, services={HOST: world.login})
    source.check_docker_files([HOST])
    with pytest.raises(AuthError, match="denied"):
        source.find(HOST, "app")
    assert source.find("other.example.com", "app") is None
