"""The credentials that a registry receives, and the number of requests that this costs (docs/trust.md)."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.errors import AuthError, Cancelled, Refused
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.authorizer import CATALOG
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.auth.token_issuer import RELOAD_INTERVAL
from mirror.registry.http.host_settings import HostSettings, PathLogin, Secret
from mirror.registry.http.url_policy import UrlPolicy
from mirror.util.cancellation import Stop, Work
from mirror.util.single_flight import HAND_OVER
from tests.registry.auth.doubles import (
    ACME,
    BASIC,
    BEARER,
    HOST,
    REALM,
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
    open_world,
    pull_scopes,
    push_scopes,
)

# --- anonymous, Basic


def test_a_host_without_a_challenge_receives_no_credentials() -> None:
    world = open_world()
    for number in range(3):
        assert 1 == world.request(pull_scopes(f"team/{number}"))
    assert [None] * 3 == world.registry.headers
    assert ([], []) == (world.logins.asked, world.tokens.calls)


def test_basic_is_sent_with_every_request_after_the_first_challenge() -> None:
    world = basic_world(("acme", "right"), found=ACME)
    assert [2, 1, 1, 1] == [
        world.request(scopes) for scopes in (pull_scopes(), pull_scopes(), push_scopes(), pull_scopes("other/app"))
    ]
    assert [None, *[basic("acme", "right")] * 4] == world.registry.headers


def test_basic_is_encoded_as_utf_8() -> None:
    world = basic_world(("jürgen", "pä:ss€"), found=Credential("jürgen", "pä:ss€", origin="x"))
    assert 2 == world.request(pull_scopes())


def test_a_wrong_password_costs_two_requests_for_any_number_of_threads() -> None:
    world = basic_world(("acme", "right"), found=Credential("acme", "CANARY", origin="env HUB_TOKEN"))
    ended = in_threads(12, lambda number: [error_of(world, pull_scopes()) for _ in range(5)])
    errors = [error for future in ended for error in future.result()]  # type: ignore[attr-defined]
    assert 60 == len(errors)
    assert {"auth_failed"} == {error.code for error in errors}
    text = f"{HOST}/team/app (pull): {HOST} does not accept user acme, password from env HUB_TOKEN"
    assert {text} == {error.what for error in errors}
    assert [None, basic("acme", "CANARY")] == world.registry.headers
    assert 1 == world.logins.fresh


def test_without_credentials_the_error_names_the_searched_files(tmp_path: Path) -> None:
    settings = HostSettings(HOST)
    source = CredentialSource({}, {"HOME": str(tmp_path)})
    world = World(FakeRegistry(BASIC, lambda scopes, header: False))
    world.auth = HostAuthorizer(settings, source, world.tokens, UrlPolicy(settings).check_realm, world.clock)
    error = error_of(world, pull_scopes())
    assert f"no credentials for {HOST}: neither in the configuration nor in ~/.docker/config.json" in error.what
    assert ("auth_failed", 401, 1) == (error.code, error.status, world.registry.count)


def test_changed_credentials_are_looked_up_once_and_used() -> None:
    world = basic_world(("acme", "new"), found=ACME)
    world.logins.later = Credential("acme", "new", origin="env HUB_TOKEN")
    assert 3 == world.request(pull_scopes())
    assert [None, basic("acme", "right"), basic("acme", "new")] == world.registry.headers
    assert 1 == world.request(pull_scopes("other/app"))
    assert 1 == world.logins.fresh


def test_expired_basic_credentials_are_looked_up_once_for_all_threads() -> None:
    good = {"word": "right"}
    world = World(
        FakeRegistry(BASIC, lambda scopes, header: header == basic("acme", good["word"])), FakeCredentials(reg=ACME)
    )
    repositories = [pull_scopes(f"team/{number}") for number in range(8)]
    for scopes in repositories:
        world.request(scopes)
    good["word"] = "rotated"
    world.logins.later = Credential("acme", "rotated", origin="docker-credential-ecr-login")
    assert [2] * 8 == [future.result() for future in in_threads(8, lambda n: world.request(repositories[n]))]
    assert 1 == world.logins.fresh


def test_an_expiry_without_a_challenge_uses_the_earlier_challenge() -> None:
    world = basic_world(("acme", "right"), found=ACME)
    world.request(pull_scopes())
    world.logins.later = Credential("acme", "rotated", origin="x")
    world.auth.handle_challenge(pull_scopes(), [], basic("acme", "right"), Work(Stop()))
    assert basic("acme", "rotated") == world.auth.header(pull_scopes(), Work(Stop()))


def test_a_rejected_password_is_looked_up_again_only_after_an_interval() -> None:
    world = basic_world(found=ACME)
    for number in range(5):
        error_of(world, pull_scopes(f"team/{number}"))
    assert 1 == world.logins.fresh
    world.clock.time += RELOAD_INTERVAL
    error_of(world, pull_scopes("team/later"))
    assert 2 == world.logins.fresh


def test_an_identity_token_without_a_user_cannot_be_used_for_basic() -> None:
    world = basic_world(found=Credential(identity_token="CANARY", origin="docker-credential-acr"))
    error = error_of(world, pull_scopes())
    assert "does not accept identity token from docker-credential-acr" in error.what
    assert [None] == world.registry.headers


def test_a_401_after_a_final_error_raises_that_error() -> None:
    world = basic_world(found=ACME)
    error = error_of(world, pull_scopes())
    with pytest.raises(AuthError) as caught:
        world.auth.handle_challenge(pull_scopes(), BASIC, None, Work(Stop()))
    assert error.what == caught.value.what
    world.auth.record_accepted(pull_scopes())
    assert error.what == error_of(world, pull_scopes()).what


def test_unreadable_credentials_are_an_error_and_no_anonymous_request_follows() -> None:
    error = AuthError("the helper failed")
    world = basic_world(found=error)
    assert [error.what] * 3 == [error_of(world, push_scopes()).what for _ in range(3)]
    assert [None] == world.registry.headers


def test_credentials_over_plain_http_cause_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    world = basic_world(("acme", "right"), found=ACME)
    world = World(world.registry, world.logins, settings=HostSettings(HOST, plain_http=True))
    for number in range(3):
        world.request(pull_scopes(f"team/{number}"))
    assert [logging.WARNING] == [record.levelno for record in caplog.records]
    assert HOST in caplog.text
    assert "right" not in caplog.text


# --- challenges


@pytest.mark.parametrize(
    ("challenges", "why"),
    [
        ([], "challenge"),
        ([""], "challenge"),
        (["Negotiate"], "scheme: negotiate"),
        (["Digest realm=x", "Negotiate abc=="], "scheme: digest, negotiate"),
        (["X\x1b-Evil realm=x"], "scheme: x"),
        (["Bearer"], "realm"),
        (['Bearer realm=""'], "realm"),
        (['Bearer realm="unclosed'], "realm"),
    ],
    ids=str,
)
def test_a_challenge_that_cannot_be_answered_is_final(challenges: list[str], why: str) -> None:
    world = World(FakeRegistry(challenges, lambda scopes, header: False), FakeCredentials(reg=ACME))
    assert all(why in error_of(world, pull_scopes()).what for _ in range(3))
    assert [None] == world.registry.headers
    assert [] == world.tokens.calls


@pytest.mark.parametrize(
    "realm",
    [
        "https://evil.example/token", f"http://{HOST}/token", f"https://{HOST}@evil.example/", "file:///etc/passwd",
        "https://127.0.0.1/token", f"https://{HOST}.evil.example/", "https://169.254.169.254/latest",
    ],
)  # fmt: skip
@pytest.mark.parametrize("found", [None, ACME, Credential(identity_token="I")], ids=["nobody", "basic", "identity"])
def test_no_request_is_sent_to_a_rejected_realm(realm: str, found: Credential | None) -> None:
    world = World(FakeRegistry([f'Bearer realm="{realm}"'], lambda scopes, header: False), FakeCredentials())
    world.logins.now = found
    errors = [error_of(world, pull_scopes()) for _ in range(5)]
    assert {(Refused, "unsafe_realm", 3)} == {(type(error), error.code, error.exit_code) for error in errors}
    assert [] == world.tokens.calls
    assert [None] == world.registry.headers


def test_a_relative_realm_is_on_the_registry_itself() -> None:
    world = bearer_world()
    world.registry.challenges = ['Bearer realm="/auth/token?x=1",service="reg"']
    world.request(pull_scopes())
    assert [f"https://{HOST}/auth/token"] == [call["to"] for call in world.tokens.calls]


def test_bearer_is_preferred_to_basic() -> None:
    world = bearer_world(ACME)
    world.registry.challenges = [*BASIC, *BEARER]
    assert 2 == world.request(pull_scopes())
    assert [None, "Bearer token-1"] == world.registry.headers


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("", "pull"),
        ("repository:team/app:pull", "pull"),
        ("repository:team/app:pull,push", "pull,push"),
        ("repository:team/app:delete", "pull,delete"),
        ("repository:team/app:*", "pull"),
        ("repository:team/app:pull,push,evil", "pull"),
        ("repository:user/image:pull", "pull"),
        ("repository:team/app/more:push", "pull"),
        ("registry:catalog:*", "pull"),
        (" ".join(f"repository:team/app{n}:pull" for n in range(1000)), "pull"),
        ("repository:other:pull repository:team/app:push", "pull,push"),
    ],
    ids=lambda text: text[:40],
)
def test_the_scope_of_a_challenge_only_adds_actions_on_the_same_repository(scope: str, expected: str) -> None:
    world = bearer_world()
    world.registry.challenges = [f'Bearer realm="{REALM}",scope="{scope}"']
    world.request(pull_scopes())
    assert [[f"repository:team/app:{expected}"]] == [call["scopes"] for call in world.tokens.calls]


# --- the first request is sent alone


def test_the_first_request_to_a_host_is_sent_alone() -> None:
    world = bearer_world(ACME)
    ended = in_threads(16, lambda number: world.request(pull_scopes(f"team/{number % 4}")))
    assert 1 == sum(future.result() == 2 for future in ended)
    assert 1 == world.registry.headers.count(None)
    assert 4 == len(world.tokens.calls)


def test_further_repositories_of_a_host_without_a_challenge_do_not_wait() -> None:
    world = open_world()
    world.request(pull_scopes("first/app"))
    work = Work(Stop())
    headers = in_threads(2, lambda number: world.auth.header(pull_scopes("second/app"), work))
    assert [None, None] == [future.result() for future in headers]


def test_with_configured_credentials_the_first_request_to_each_repository_is_sent_alone() -> None:
    settings = HostSettings(HOST, username="acme", password=Secret("env X", plain="right"))
    world = World(FakeRegistry([], lambda scopes, header: True), settings=settings)
    world.request(pull_scopes("public/app"))
    world.auth.header(pull_scopes("secret/app"), Work(Stop()))
    with ThreadPoolExecutor(1) as pool:
        stop = WatchedStop()
        second = pool.submit(world.auth.header, pull_scopes("secret/app"), Work(stop))
        assert stop.waits.wait(60)
        assert not second.done()
        world.auth.record_accepted(pull_scopes("secret/app"))
        assert second.result(10) is None


def test_a_failed_header_does_not_block_other_requests() -> None:
    world = open_world()
    stop = Stop()
    world.auth.header(pull_scopes(), Work(stop))
    stop.request("a signal")
    with pytest.raises(Cancelled):
        world.auth.header(pull_scopes(), Work(stop))
    with ThreadPoolExecutor(1) as pool:
        assert 1 == pool.submit(world.request, pull_scopes()).result(HAND_OVER - 1)


def test_the_next_request_is_sent_after_a_request_without_a_response() -> None:
    world = open_world()
    work = Work(Stop())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(world.auth.header, pull_scopes(), work).result(10) is None
        waiting = WatchedStop()
        with ThreadPoolExecutor(1) as other:
            second = other.submit(world.auth.header, pull_scopes(), Work(waiting))
            assert waiting.waits.wait(60)
            assert not second.done()
            pool.submit(world.auth.record_no_response, pull_scopes()).result(10)
            assert second.result(10) is None


def test_a_request_that_waits_for_the_first_response_can_be_cancelled_and_has_a_time_limit() -> None:
    world = open_world()
    world.auth.header(pull_scopes(), Work(Stop()))
    with ThreadPoolExecutor(1) as pool:
        stop = WatchedStop()
        waiting = pool.submit(world.auth.header, pull_scopes(), Work(stop))
        assert stop.waits.wait(60)
        stop.request("a signal")
        with pytest.raises(Cancelled):
            waiting.result(10)
        world.clock.time += HAND_OVER
        assert pool.submit(world.auth.header, pull_scopes(), Work(Stop())).result(10) is None


def test_a_cancelled_token_request_is_repeated_by_another_thread() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes("first/app"))
    entered, stop = threading.Event(), Stop()

    def fail() -> None:
        if not entered.is_set():
            entered.set()
            while not stop.is_requested:
                threading.Event().wait(0.01)
            stop.raise_if_requested()

    world.tokens.failure = fail
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(world.request, pull_scopes(), Work(stop))
        assert entered.wait(60)
        other = WatchedStop()
        follower = pool.submit(world.request, pull_scopes(), Work(other))
        assert other.waits.wait(60)
        stop.request("not wanted any more")
        assert isinstance(leader.exception(10), Cancelled)
        assert 1 == follower.result(10)


def test_a_stopped_call_gets_no_header() -> None:
    world = open_world()
    stop = Stop()
    stop.request("a signal")
    with pytest.raises(Cancelled):
        world.auth.header(pull_scopes(), Work(stop))
    assert 1 == world.request(pull_scopes())


def test_responses_for_unknown_scopes_are_ignored() -> None:
    world = open_world()
    world.auth.record_accepted(pull_scopes())
    world.auth.record_no_response(pull_scopes())
    assert 1 == world.request(pull_scopes())


# --- secrets, memory


def test_all_secrets_are_known_and_no_repr_contains_one(tmp_path: Path) -> None:
    settings = HostSettings(HOST, username="acme", password=Secret("env HUB_TOKEN", plain="PASSWORD"))
    source = CredentialSource({HOST: settings}, {"HOME": str(tmp_path)})
    world = bearer_world()
    world.auth = HostAuthorizer(settings, source, world.tokens, UrlPolicy(settings).check_realm, world.clock)
    world.request(pull_scopes())
    assert {"PASSWORD", "token-1"} <= world.auth.known_secrets()
    world.registry.challenges = BASIC
    world.registry.accepts = lambda scopes, header: header == basic("acme", "PASSWORD")
    world.request(pull_scopes())
    assert {"PASSWORD", "token-1", basic("acme", "PASSWORD").removeprefix("Basic ")} <= world.auth.known_secrets()
    states = world.auth._states._states.values()
    entries = [repr(getattr(entry, name)) for entry in states for name in ("grant", "suspect_credential")]
    assert not any("PASSWORD" in text or "token-1" in text for text in entries)


def test_expired_tokens_are_removed() -> None:
    world = bearer_world()
    for number in range(600):
        world.request(pull_scopes(f"team/{number}"))
        world.clock.time += 10
    assert len(world.auth._states.grants()) < 200
    assert 1 == world.request(pull_scopes("team/0"))


def test_credentials_count_as_sent_only_for_their_repository() -> None:
    world = bearer_world(ACME)
    for scopes in (pull_scopes("a/b"), (*push_scopes("c/d"), *pull_scopes("a/b"))):
        world.request(scopes)
    assert {(HOST, "a/b"), (HOST, "c/d")} == set(world.logins.asked)


def test_an_authorized_request_costs_no_token_request_no_look_up_and_no_wait() -> None:
    world = bearer_world(ACME)
    world.request(pull_scopes())
    before = (len(world.tokens.calls), len(world.logins.asked))
    counts = Counter(world.request(pull_scopes()) for _ in range(1000))
    assert {1: 1000} == counts
    assert before == (len(world.tokens.calls), len(world.logins.asked))


# --- credentials for paths


def _path_settings() -> HostSettings:
    """Return settings with a user for the host, and one for each of two paths. A password is the user name."""
    secrets = {name: Secret("plain", plain=name) for name in ("host", "a", "b")}
    paths = (PathLogin("team-a", "a", secrets["a"]), PathLogin("team-b", "b", secrets["b"]))
    return HostSettings(HOST, username="host", password=secrets["host"], paths=paths)


def _path_world(challenges: list[str], tokens: FakeTokenService) -> tuple[FakeRegistry, World]:
    """Return a registry that requires authorization, and a world with the credentials of `_path_settings`."""
    registry = FakeRegistry(challenges, lambda scopes, header: header is not None)
    settings = _path_settings()
    credentials = CredentialSource({HOST: settings}, {"HOME": "/nonexistent"})
    world = World(registry, settings=settings, tokens=tokens)
    world.auth = HostAuthorizer(settings, credentials, tokens, UrlPolicy(settings).check_realm, world.clock)
    return registry, world


_REQUESTS = {
    "a": (pull_scopes("team-a/app"), push_scopes("team-a/app")),
    "b": (pull_scopes("team-b/app"), (*push_scopes("team-b/app"), *pull_scopes("team-a/app"))),  # the last is a mount
    "host": (pull_scopes("team-ab/app"), (CATALOG,), ()),
}


def test_basic_credentials_are_those_of_the_path_or_target_of_a_request() -> None:
    registry, world = _path_world(BASIC, FakeTokenService())
    world.request(pull_scopes("first"))
    for name, requests in _REQUESTS.items():
        for scopes in requests * 2:
            world.request(scopes)
            assert basic(name, name) == registry.headers[-1]


def test_the_token_service_gets_the_credentials_of_the_path_or_target_of_a_request() -> None:
    tokens = FakeTokenService()
    registry, world = _path_world(BEARER, tokens)
    users: dict[str | None, str] = {}
    for name, requests in _REQUESTS.items():
        for scopes in requests * 2:
            world.request(scopes)
            users.setdefault(registry.headers[-1], name)
            assert name == users[registry.headers[-1]]  # no token is used for the credentials of another path
    assert ["a", "a", "b", "b", "host", "host", "host"] == [call["basic"][0] for call in tokens.calls]  # type: ignore[index]


def test_the_scope_of_a_catalog_stays_that_of_a_registry() -> None:
    tokens = FakeTokenService()
    _, world = _path_world([f'{BEARER[0]},scope="registry:catalog:*"'], tokens)
    world.request((CATALOG,))
    assert [["registry:catalog:*"]] == [call["scopes"] for call in tokens.calls]


def test_a_changed_password_of_one_path_is_read_again_whatever_happened_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = tuple(PathLogin(name, name, Secret(f"env {name}", env=f"WORD_{name}")) for name in ("a", "b"))
    settings = HostSettings(HOST, paths=paths)
    accepted = {basic(name, "new") for name in ("a", "b")}
    world = World(FakeRegistry(BASIC, lambda scopes, header: header in accepted), settings=settings)
    credentials = CredentialSource({HOST: settings}, {"HOME": "/nonexistent"})
    world.auth = HostAuthorizer(settings, credentials, world.tokens, UrlPolicy(settings).check_realm, world.clock)
    for name in ("a", "b"):
        monkeypatch.setenv(f"WORD_{name}", "old")
        found = credentials.find(HOST, name)
        assert "old" == (found and found.password)
        monkeypatch.setenv(f"WORD_{name}", "new")
    assert [3, 2] == [world.request(pull_scopes(name)) for name in ("a", "b")]  # the clock does not move


def test_a_refused_path_does_not_stop_requests_for_other_paths() -> None:
    registry, world = _path_world(BASIC, FakeTokenService())
    registry.accepts = lambda scopes, header: header in (basic("b", "b"), basic("host", "host"))
    refused = error_of(world, pull_scopes("team-a/app"))
    assert "user a, password from plain" in str(refused)
    for scopes in (pull_scopes("team-b/app"), pull_scopes("other")):
        world.request(scopes)
    count = registry.count
    assert str(refused) == str(error_of(world, pull_scopes("team-a/app")))
    assert count == registry.count
