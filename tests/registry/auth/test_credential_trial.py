"""Wrong passwords: how often they are sent, which requests wait meanwhile, and what rejects them for the whole host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mirror.errors import Cancelled, MirrorError, NetworkError
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credential_trial import RESPONSE_LIMIT, CredentialTrials
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.auth.token_issuer import RELOAD_INTERVAL
from mirror.registry.http.host_settings import HostSettings, PathLogin, Secret
from mirror.registry.http.url_policy import UrlPolicy
from mirror.util.cancellation import Stop, Work
from tests.registry.auth.doubles import (
    ACME,
    BASIC,
    BEARER,
    HOST,
    FakeClock,
    FakeCredentials,
    FakeRegistry,
    FakeTokenService,
    WatchedStop,
    World,
    basic,
    basic_world,
    bearer_world,
    error_of,
    in_threads,
    pull_scopes,
    push_scopes,
)

CANARY = Credential("acme", "CANARY", origin="env HUB_TOKEN")
WRONG = basic("acme", "CANARY")
RIGHT = basic("acme", "right")


def repository(number: int) -> str:
    return f"team/{number}"


def rejecting_world(kind: str) -> World:
    """Return a world whose host rejects the password CANARY."""
    if kind == "basic":
        return basic_world(("acme", "right"), found=CANARY)
    return bearer_world(CANARY, FakeTokenService(logins={("acme", "right")}))


def sent_passwords(world: World) -> int:
    """Return how many requests contained the user and the password, to the registry and to its token service."""
    tokens = [call for call in world.tokens.calls if call["basic"] is not None]
    headers = [header for header in world.registry.headers if (header or "").startswith("Basic ")]
    return len(tokens) + len(headers) + len(world.tokens.pings)


def challenged(world: World) -> World:
    """Send the first request without credentials, so that the scheme is known."""
    work = Work(Stop())
    scopes = pull_scopes("first")
    assert world.auth.header(scopes, work) is None
    world.auth.handle_challenge(scopes, world.registry.challenges, None, work)
    return world


# --- rejection


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_wrong_password_is_sent_twice_for_any_number_of_repositories(kind: str) -> None:
    world = rejecting_world(kind)
    ended = in_threads(
        12, lambda thread: [error_of(world, pull_scopes(repository(thread * 50 + n))) for n in range(50)]
    )
    errors = [error for future in ended for error in future.result()]  # type: ignore[attr-defined]
    assert 600 == len(errors)
    assert 2 == sent_passwords(world)
    assert 1 == len(
        {(type(error), error.code, error.status, error.host, error.account, error.hint) for error in errors}
    )
    assert ("auth_failed", 401, CANARY.description) == (errors[0].code, errors[0].status, errors[0].account)


def test_the_error_of_each_repository_names_it() -> None:
    world = rejecting_world("basic")
    for number in range(3):
        what = f"{HOST}/team/{number} (pull): {HOST} does not accept user acme, password from env HUB_TOKEN"
        assert what == error_of(world, pull_scopes(repository(number))).what


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_nothing_that_forgets_a_refusal_clears_a_rejection(kind: str) -> None:
    world = rejecting_world(kind)
    error_of(world, pull_scopes())
    before = (world.registry.count, sent_passwords(world))
    forgetting: list[Callable[[], object]] = [
        lambda: world.auth.forget_refusal("team/app"),
        lambda: world.auth.allow_one_more_request(pull_scopes(), only_if_accepted=False),
        lambda: world.auth.discard_grants("team"),
    ]
    for forget in forgetting:
        forget()
        assert "auth_failed" == error_of(world, pull_scopes()).code
    assert before == (world.registry.count, sent_passwords(world))


def test_a_changed_password_is_used_after_a_rejection() -> None:
    world = rejecting_world("basic")
    error_of(world, pull_scopes())
    world.logins.later = ACME
    world.clock.time += RELOAD_INTERVAL
    assert 1 == world.request(pull_scopes("other/app"))
    assert RIGHT == world.registry.headers[-1]


def test_a_password_that_is_revoked_later_is_rejected_too() -> None:
    world = basic_world(("acme", "right"), found=ACME)
    for number in range(20):
        world.request(pull_scopes(repository(number)))
    world.registry.accepts = lambda scopes, header: False
    before = sent_passwords(world)
    for number in range(40):
        error_of(world, pull_scopes(repository(number)))
    assert before + 2 == sent_passwords(world)


# --- the question


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_refusal_of_one_repository_does_not_reject_the_credential(kind: str) -> None:
    world = basic_world(("acme", "right"), found=ACME) if kind == "basic" else bearer_world(ACME)
    takes = world.registry.accepts
    secret = [pull_scopes("secret/one"), pull_scopes("secret/two")]
    world.registry.accepts = lambda scopes, header: scopes not in secret and takes(scopes, header)
    for scopes in secret:
        error_of(world, scopes)
    assert [1, 1] == [world.request(pull_scopes(repository(number))) for number in range(2)]
    assert len(world.tokens.pings) <= 1


def test_a_token_service_that_refuses_one_repository_is_asked_once_without_scopes() -> None:
    world = bearer_world(ACME)
    world.tokens.refused = "secret"
    for name in ("secret/one", "secret/two"):
        assert 401 == error_of(world, pull_scopes(name)).status
    assert 1 == world.request(pull_scopes("team/app"))
    assert [1, 0, 1, 1] == [len(call["scopes"]) for call in world.tokens.calls]  # type: ignore[arg-type]


def test_a_question_without_a_response_rejects_nothing_and_is_not_repeated() -> None:
    world = rejecting_world("basic")

    def fail() -> None:
        raise NetworkError("reset")

    world.tokens.failure = fail
    for number in range(3):
        assert "auth_failed" == error_of(world, pull_scopes(repository(number))).code
    assert 1 == len(world.tokens.pings)
    assert 3 == world.registry.headers.count(WRONG)


def test_a_cancelled_question_is_asked_again() -> None:
    world = rejecting_world("basic")
    stop = Stop()

    def cancel() -> None:
        stop.request("a signal")
        stop.raise_if_requested()

    world.tokens.failure = cancel
    with pytest.raises(Cancelled):
        world.request(pull_scopes("team/0"), Work(stop))
    world.tokens.failure = lambda: None
    for number in range(1, 4):
        error_of(world, pull_scopes(repository(number)))
    assert [WRONG, WRONG] == world.tokens.pings
    assert 2 == world.registry.headers.count(WRONG)


# --- requests that wait


def waiting_header(pool: ThreadPoolExecutor, world: World, number: int) -> tuple[Future[str | None], WatchedStop]:
    """Let another thread wait for the `Authorization` value of a request."""
    stop = WatchedStop()
    future = pool.submit(world.auth.header, pull_scopes(repository(number)), Work(stop))
    assert stop.waits.wait(60)
    assert not future.done()
    return future, stop


RELEASES: dict[str, Callable[[World], None]] = {
    "403": lambda world: world.auth.record_accepted(pull_scopes("first"), is_forbidden=True),
    "503": lambda world: world.auth.record_no_response(pull_scopes("first")),
}


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_a_response_that_shows_nothing_lets_one_more_request_be_sent(release: Callable[[World], None]) -> None:
    world = challenged(basic_world(("acme", "right"), found=ACME))
    assert RIGHT == world.auth.header(pull_scopes("first"), Work(Stop()))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        second, _ = waiting_header(one, world, 2)
        release(world)
        assert RIGHT == second.result(10)
        third, _ = waiting_header(other, world, 3)
        one.submit(world.auth.record_accepted, pull_scopes(repository(2))).result(10)
        assert RIGHT == third.result(10)


def test_after_the_first_success_requests_do_not_wait() -> None:
    world = challenged(basic_world(("acme", "right"), found=ACME))
    world.request(pull_scopes("first"))
    headers = in_threads(8, lambda number: world.auth.header(pull_scopes(repository(number)), Work(Stop())))
    assert [RIGHT] * 8 == [future.result() for future in headers]


def test_after_the_first_token_tokens_are_requested_in_parallel() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes("first"))
    together = threading.Barrier(8)

    def meet() -> None:
        together.wait(60)

    world.tokens.failure = meet
    assert [1] * 8 == [one.result() for one in in_threads(8, lambda n: world.request(pull_scopes(repository(n))))]


def test_a_repository_that_is_authorized_waits_too_until_the_credential_is_accepted() -> None:
    world = challenged(basic_world(("acme", "right"), found=ACME))
    scopes = pull_scopes(repository(1))
    world.auth.header(scopes, Work(Stop()))
    world.auth.record_accepted(scopes, is_forbidden=True)
    world.auth.header(pull_scopes("first"), Work(Stop()))
    with ThreadPoolExecutor(1) as pool:
        waiting, _ = waiting_header(pool, world, 1)
        world.auth.record_accepted(pull_scopes("first"))
        assert RIGHT == waiting.result(10)


def test_a_stop_ends_the_wait() -> None:
    world = challenged(basic_world(("acme", "right"), found=ACME))
    world.auth.header(pull_scopes("first"), Work(Stop()))
    with ThreadPoolExecutor(1) as pool:
        waiting, stop = waiting_header(pool, world, 1)
        stop.request("a signal")
        with pytest.raises(Cancelled):
            waiting.result(10)


def test_the_wait_has_a_time_limit() -> None:
    world = challenged(basic_world(("acme", "right"), found=ACME))
    world.auth.header(pull_scopes("first"), Work(Stop()))
    world.clock.time += RESPONSE_LIMIT
    with ThreadPoolExecutor(1) as pool:
        assert RIGHT == pool.submit(world.auth.header, pull_scopes("other"), Work(Stop())).result(10)


def test_waiting_requests_use_a_password_that_was_changed_meanwhile() -> None:
    world = basic_world(("acme", "new"), found=CANARY)
    challenged(world)
    world.logins.later = Credential("acme", "new", origin="x")
    work = Work(Stop())
    first = pull_scopes("first")
    assert WRONG == world.auth.header(first, work)
    with ThreadPoolExecutor(1) as pool:
        waiting, _ = waiting_header(pool, world, 1)
        world.auth.handle_challenge(first, BASIC, WRONG, work)
        assert basic("acme", "new") == waiting.result(10)
    assert [] == world.tokens.pings


def test_another_thread_may_request_the_token_after_a_basic_request() -> None:
    """The thread that sent the Basic request waits for the token, so it must not keep others from requesting it."""
    world = challenged(basic_world(("acme", "right"), found=ACME))
    scopes, work, stop = pull_scopes("other"), Work(Stop()), WatchedStop()
    sent = world.auth.header(scopes, work)
    assert RIGHT == sent
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(world.auth.handle_challenge, scopes, BEARER, sent, Work(stop))
        assert stop.waits.wait(60)
        assert not leader.done()
        world.auth.handle_challenge(scopes, BEARER, sent, work)
        leader.result(10)
    assert 1 == len(world.tokens.calls)
    assert "Bearer token-1" == world.auth.header(scopes, work)


# --- which credentials are the same


def test_credentials_of_paths_are_independent_unless_they_are_equal() -> None:
    paths = [("a", "acme", "CANARY"), ("b", "acme", "right"), ("c", "acme", "CANARY")]
    settings = HostSettings(
        HOST, paths=tuple(PathLogin(path, user, Secret("plain", plain=word)) for path, user, word in paths)
    )
    registry = FakeRegistry(BASIC, lambda scopes, header: header == RIGHT)
    credentials = CredentialSource({HOST: settings}, {"HOME": "/nonexistent"})
    world = World(registry, settings=settings)
    world.auth = HostAuthorizer(settings, credentials, world.tokens, UrlPolicy(settings).check_realm, world.clock)
    for name in ("a/1", "a/2", "c/1", "c/2"):
        error_of(world, pull_scopes(name))
    assert [None, WRONG] == registry.headers
    for name in ("b/1", "b/2"):
        assert 1 == world.request(push_scopes(name))


def test_a_renewed_credential_with_the_same_secret_has_the_same_trial() -> None:
    trials = CredentialTrials(FakeClock())
    one = Credential("acme", "word", renew_at=1.0)
    assert trials.find(one) is trials.find(Credential("acme", "word", renew_at=2.0, expires_at=3.0, origin="x"))
    others = [Credential("acme", "other"), Credential("user", "word"), Credential("acme", identity_token="word")]
    assert 4 == len({id(trials.find(credential)) for credential in (one, *others)})


def test_registry_tokens_and_anonymous_requests_have_no_trial() -> None:
    trials = CredentialTrials(FakeClock())
    assert trials.find(None) is None
    assert trials.find(Credential(registry_token="ready")) is None
    world = World(
        FakeRegistry(BEARER, lambda scopes, header: False),
        FakeCredentials(reg=Credential(registry_token="ready", origin="x")),
    )
    for number in range(3):
        assert isinstance(error_of(world, pull_scopes(repository(number))), MirrorError)
    assert ([], []) == (world.tokens.calls, world.tokens.pings)
    assert 3 == world.registry.headers.count("Bearer ready")
