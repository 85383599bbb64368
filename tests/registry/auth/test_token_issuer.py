"""Tokens: their scopes, the number of requests, renewal, and refusals."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from mirror.errors import MirrorError, NetworkError, RateLimited
from mirror.registry.auth.authorizer import Scope
from mirror.registry.auth.credentials import Credential
from mirror.util.cancellation import Stop, Work
from tests.registry.auth.doubles import (
    ACME,
    BEARER,
    HOST,
    FakeCredentials,
    FakeRegistry,
    FakeTokenService,
    World,
    bearer_world,
    error_of,
    in_threads,
    pull_scopes,
    push_scopes,
)

# --- tokens


def test_after_the_first_challenge_a_token_is_fetched_before_each_request() -> None:
    world = bearer_world(ACME)
    assert [2, 1, 1, 1] == [world.request(pull_scopes(f"team/{n}")) for n in (1, 2, 3, 1)]
    assert [("acme", "right")] * 3 == [call["basic"] for call in world.tokens.calls]


def test_each_token_has_exactly_the_scopes_of_its_request() -> None:
    world = bearer_world()
    for _ in range(2):
        for number in range(500):
            world.request(push_scopes(f"team/{number}"))
    assert 500 == len(world.tokens.calls)
    assert {1} == {len(call["scopes"]) for call in world.tokens.calls}  # type: ignore[arg-type]
    assert max(len(header or "") for header in world.registry.headers) < 100


def test_a_token_for_more_actions_on_the_same_repository_is_reused() -> None:
    world = bearer_world()
    world.request(push_scopes())
    assert 1 == world.request(pull_scopes())
    assert 1 == world.request(pull_scopes("other/app"))
    assert [["repository:team/app:pull,push"], ["repository:other/app:pull"]] == [
        c["scopes"] for c in world.tokens.calls
    ]


def test_a_token_for_fewer_actions_is_not_reused() -> None:
    world = bearer_world()
    for scopes in (pull_scopes(), push_scopes()):
        world.request(scopes)
    assert ["repository:team/app:pull", "repository:team/app:pull,push"] == [c["scopes"][0] for c in world.tokens.calls]  # type: ignore[index]


def test_a_reused_token_that_is_refused_is_replaced() -> None:
    world = bearer_world()
    world.request(push_scopes())
    takes = world.registry.accepts
    world.registry.accepts = lambda scopes, header: (
        takes(scopes, header) and not (scopes == pull_scopes() and header == "Bearer token-1")
    )
    assert 2 == world.request(pull_scopes())
    assert 1 == world.request(pull_scopes())
    assert ["Bearer token-1", "Bearer token-2", "Bearer token-2"] == world.registry.headers[-3:]


def test_a_mount_gets_its_own_token_for_both_repositories() -> None:
    world = bearer_world()
    mount = (*push_scopes("team/new"), *pull_scopes("team/old"))
    for scopes in (push_scopes("team/new"), mount, mount[::-1], push_scopes("team/new")):
        world.request(scopes)
    assert [
        ["repository:team/new:pull,push"],
        ["repository:team/new:pull,push", "repository:team/old:pull"],
    ] == [call["scopes"] for call in world.tokens.calls]
    assert ["Bearer token-2", "Bearer token-2", "Bearer token-1"] == world.registry.headers[-3:]


def test_a_refused_mount_does_not_affect_the_push() -> None:
    world = bearer_world(ACME)
    mount = (*push_scopes("team/new"), *pull_scopes("secret/old"))
    world.request(push_scopes("team/new"))
    takes = world.registry.accepts
    world.registry.accepts = lambda scopes, header: scopes != mount and takes(scopes, header)
    assert ["auth_failed"] * 3 == [error_of(world, mount).code for _ in range(3)]
    assert 1 == world.request(push_scopes("team/new"))
    assert 2 == [sent for sent, _ in world.registry.sent].count(" ".join(map(str, mount)))


def test_scopes_in_any_order_are_the_same_set() -> None:
    world = bearer_world()
    for actions in (("pull", "push"), ("push", "pull"), ("push", "pull", "push")):
        world.request((Scope("team/app", actions),))
    assert 1 == len(world.tokens.calls)


def test_a_request_without_scopes_gets_a_token_without_scopes() -> None:
    world = bearer_world()
    world.registry.accepts = lambda scopes, header: header == "Bearer token-1"
    assert 2 == world.request(())
    assert [[]] == [call["scopes"] for call in world.tokens.calls]


def test_a_registry_token_is_sent_unchanged() -> None:
    world = World(
        FakeRegistry(BEARER, lambda scopes, header: header == "Bearer ready"),
        FakeCredentials(reg=Credential(registry_token="ready", origin="x")),
    )
    assert [2, 1] == [world.request(scopes) for scopes in (pull_scopes(), push_scopes())]
    assert [] == world.tokens.calls


def test_an_identity_token_is_exchanged_for_a_token() -> None:
    world = bearer_world(Credential(identity_token="I", origin="x"), FakeTokenService(logins={("<token>", "I")}))
    assert [2, 1] == [world.request(scopes) for scopes in (pull_scopes(), push_scopes())]
    assert ["POST", "POST"] == [call["method"] for call in world.tokens.calls]


def test_twenty_threads_share_one_token_request() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes("first/app"))
    ended = in_threads(20, lambda number: world.request(pull_scopes()))
    assert [1] * 20 == [future.result() for future in ended]
    assert 2 == len(world.tokens.calls)


def test_twenty_threads_share_one_renewal() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes())
    world.clock.time += 299
    assert [1] * 20 == [future.result() for future in in_threads(20, lambda number: world.request(pull_scopes()))]
    assert 2 == len(world.tokens.calls)


@pytest.mark.parametrize(
    ("lifetime", "still_good", "renewed"),
    [(300, 269, 271), (60, 47, 49), (None, 47, 49), (5, 47, 49), (100, 79, 81), (10**9, 3569, 3571), ("600", 569, 571)],
)
def test_a_token_is_renewed_shortly_before_it_expires(lifetime: object, still_good: float, renewed: float) -> None:
    world = bearer_world(tokens=FakeTokenService(lifetime=lifetime))
    world.request(pull_scopes())
    begun = world.clock.time
    counts = []
    for seconds in (still_good, renewed):
        world.clock.time = begun + seconds
        assert 1 == world.request(pull_scopes())
        counts.append(len(world.tokens.calls))
    assert [1, 2] == counts


def test_a_token_that_expires_early_is_renewed_at_each_401_while_the_new_one_works() -> None:
    world = bearer_world(tokens=FakeTokenService(lifetime=5))
    takes = world.registry.accepts
    dead: set[str | None] = set()
    world.registry.accepts = lambda scopes, header: header not in dead and takes(scopes, header)
    sent = [world.request(push_scopes())]
    for _ in range(4):
        dead.add(world.registry.headers[-1])
        sent.append(world.request(push_scopes()))
    assert [2] * 5 == sent
    assert 5 == len(world.tokens.calls)


def test_a_token_refused_in_eight_threads_is_renewed_once() -> None:
    world = bearer_world()
    world.request(pull_scopes())
    old = world.registry.headers[-1]
    takes = world.registry.accepts
    world.registry.accepts = lambda scopes, header: header != old and takes(scopes, header)
    all_sent = threading.Barrier(8)

    def request(_: int) -> str | None:
        work = Work(Stop())
        sent = world.auth.header(pull_scopes(), work)
        all_sent.wait(60)
        world.auth.handle_challenge(pull_scopes(), BEARER, sent, work)
        return world.auth.header(pull_scopes(), work)

    assert ["Bearer token-2"] * 8 == [future.result() for future in in_threads(8, request)]
    assert 2 == len(world.tokens.calls)


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Let threads alternate as often as possible, so that a race shows in most runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("_", range(50))
def test_a_registry_that_refuses_every_token_receives_two_requests(_: int) -> None:
    world = World(FakeRegistry(BEARER, lambda scopes, header: False), FakeCredentials(reg=ACME))
    ended = in_threads(12, lambda number: [error_of(world, pull_scopes()).code for _ in range(5)])
    assert {"auth_failed"} == {code for future in ended for code in future.result()}  # type: ignore[attr-defined]
    assert [None, "Bearer token-1"] == world.registry.headers
    assert 1 == len(world.tokens.calls)


def test_a_refused_token_that_was_fetched_in_advance_is_renewed_once() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes("good/app"))
    world.registry.accepts = lambda scopes, header: False
    error_of(world, pull_scopes())
    assert ["Bearer token-2", "Bearer token-3"] == world.registry.headers[2:]
    assert 1 == world.logins.fresh


def test_the_same_token_is_not_sent_twice() -> None:
    world = bearer_world(ACME, FakeTokenService(fixed="static"))
    world.request(pull_scopes("good/app"))
    world.registry.accepts = lambda scopes, header: False
    error = error_of(world, pull_scopes())
    assert "does not accept user acme" in error.what
    assert [None, "Bearer static", "Bearer static"] == world.registry.headers


# --- refusals by the token service


def test_a_wrong_password_at_the_token_service_costs_the_registry_one_request() -> None:
    world = bearer_world(
        Credential("acme", "CANARY", origin="env HUB_TOKEN"), FakeTokenService(logins={("acme", "right")})
    )
    ended = in_threads(12, lambda number: [error_of(world, pull_scopes()) for _ in range(5)])
    errors = [error for future in ended for error in future.result()]  # type: ignore[attr-defined]
    assert {("auth_failed", 401)} == {(error.code, error.status) for error in errors}
    what = f"the token service of {HOST} refused user acme, password from env HUB_TOKEN (401)"
    assert {what} == {error.what for error in errors}
    assert 1 == world.registry.count
    assert [["repository:team/app:pull"], []] == [call["scopes"] for call in world.tokens.calls]


def test_without_credentials_a_refusal_by_the_token_service_names_the_searched_files() -> None:
    world = bearer_world(tokens=FakeTokenService(logins=set()))
    error = error_of(world, push_scopes())
    assert f"no credentials for {HOST}: neither in the configuration nor in" in error.what
    assert "auth_failed" == error.code


def test_changed_credentials_are_sent_to_the_token_service_once() -> None:
    world = bearer_world(ACME, FakeTokenService(logins={("acme", "new")}))
    world.logins.later = Credential("acme", "new", origin="x")
    assert 2 == world.request(pull_scopes())
    assert [("acme", "right"), ("acme", "new")] == [call["basic"] for call in world.tokens.calls]


def test_a_missing_token_service_is_final_without_a_fresh_look_up() -> None:
    world = bearer_world(ACME)
    world.tokens.status = 404
    assert [404] * 3 == [error_of(world, pull_scopes()).status for _ in range(3)]
    assert (1, 1, 0) == (world.registry.count, len(world.tokens.calls), world.logins.fresh)


def test_a_refusal_for_one_repository_does_not_affect_others() -> None:
    world = bearer_world(ACME)
    takes = world.registry.accepts
    world.registry.accepts = lambda scopes, header: scopes != pull_scopes("secret/app") and takes(scopes, header)
    world.request(pull_scopes())
    for _ in range(3):
        error_of(world, pull_scopes("secret/app"))
    assert [1, 1] == [world.request(scopes) for scopes in (pull_scopes(), push_scopes())]
    assert 2 == [sent for sent, _ in world.registry.sent].count("repository:secret/app:pull")


@pytest.mark.parametrize("error", [NetworkError("reset"), RateLimited("429")], ids=lambda error: error.code)
def test_a_network_error_of_the_token_service_is_raised_for_all_threads_and_not_kept(
    error: MirrorError,
) -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes("first/app"))

    def fail() -> None:
        raise error

    world.tokens.failure = fail
    ended = in_threads(10, lambda number: error_of(world, pull_scopes()))
    assert {error.code} == {future.result().code for future in ended}  # type: ignore[attr-defined]
    world.tokens.failure = lambda: None
    assert 1 == world.request(pull_scopes())


def test_a_failed_renewal_has_no_effect_while_the_old_token_is_valid() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes())

    def fail() -> None:
        raise NetworkError("reset")

    world.tokens.failure = fail
    world.clock.time += 275
    assert [1, 1] == [world.request(pull_scopes()) for _ in range(2)]
    assert 2 == len(world.tokens.calls)
    world.clock.time += 6
    assert 1 == world.request(pull_scopes())
    assert 3 == len(world.tokens.calls)
    world.clock.time += 30
    assert "net_error" == error_of(world, pull_scopes()).code
    world.tokens.failure = lambda: None
    assert 1 == world.request(pull_scopes())
