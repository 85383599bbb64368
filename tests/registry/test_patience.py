"""Retries, pauses that hosts ask for, and hosts that are down."""

from __future__ import annotations

import logging
from collections.abc import Callable
from email.utils import formatdate
from time import monotonic, time

import pytest

from mirror.errors import (
    NetworkError,
    RateLimited,
    RemoteError,
    Unreachable,
)
from mirror.limits import Limits, Rate, Work
from mirror.registry.scopes import Scope
from tests.registry.http.peers import Peer, Talk, answers, whole
from tests.registry.http.sessions import (
    QUICK,
    Keys,
    get,
    session_with,
    work,
)


@pytest.mark.parametrize("status", ["408 R", "425 R", "500 R", "502 R", "503 R", "504 R", "507 R"])
def test_what_may_pass_is_tried_again(status: str, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits()
    with (
        caplog.at_level(logging.INFO, "mirror.http"),
        Peer(answers(whole(status), whole("200 OK"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        assert 200 == get(session, method="POST").status
        assert (2, 1, {"POST tags": 2}) == (len(peer.requests), limits.retries, session.host.requests())
        retries = [record for record in caplog.records if getattr(record, "event", "") == "retry"]
        assert [(peer.name, "tags", 1)] == [(r.host, r.kind, r.attempt) for r in retries]  # type: ignore[attr-defined]


def test_tries_are_counted() -> None:
    with Peer(answers(whole("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            get(session)
        assert QUICK.attempts == len(peer.requests)
        assert not session.host.down


@pytest.mark.parametrize("known", [True, False], ids=["before", "after a challenge"])
def test_a_token_service_is_asked_again_within_one_budget(known: bool) -> None:
    class Fetching(Keys):
        def fetch(self, work: Work) -> None:
            with pytest.raises(RemoteError) as caught:
                session.one_off("GET", session.trust.realm(f"http://{service.name}/token"), work=work)
            raise caught.value

        def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
            if known:
                self.fetch(work)
            return None

        def challenged(self, scopes: object, challenges: object, sent: object, work: Work) -> None:
            self.fetch(work)

    refused = answers(whole("401 Who", b"", "WWW-Authenticate: Bearer"))
    with (
        Peer(refused) as registry,
        Peer(answers(whole("500 R"))) as service,
        session_with(registry, authorizer=Fetching(), token_realms=frozenset({service.name})) as session,
    ):
        with pytest.raises(RemoteError, match="500"):
            get(session)
        assert (QUICK.attempts, 0 if known else 1) == (len(service.requests), len(registry.requests))


def test_where_the_caller_retries_nothing_is_tried_again() -> None:
    with Peer(answers(whole("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            get(session, retries=False)
        assert 1 == len(peer.requests)


class Clock:
    """Time that stands still."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def waits(limits: Limits, name: str) -> float:
    return max(0.0, limits.host(name).ready_at() - limits.clock.now())


@pytest.mark.parametrize("status", ["429 Slow", "503 Busy"])
@pytest.mark.parametrize(
    ("form", "seconds"),
    [
        (lambda: "7", 7.0),
        (lambda: "120", 120.0),
        (lambda: formatdate(time() + 90, usegmt=True), 90.0),
        (lambda: formatdate(time() - 90, usegmt=True), 0.0),
    ],
)
def test_a_host_that_asks_for_it_is_left_alone_by_everybody(
    status: str, form: Callable[[], str], seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(Clock())
    with (
        Peer(answers(whole(status, b"", f"Retry-After: {form()}"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        with pytest.raises(RemoteError) as caught:
            get(session, retries=False)
        assert caught.value.retryable
        assert seconds == pytest.approx(waits(limits, peer.name), abs=2)
        assert seconds == pytest.approx(caught.value.retry_after, abs=2)
        told = [record for record in caplog.records if getattr(record, "event", "") == "pause"]
        assert (1 if seconds else 0) == len(told)


def test_the_wait_is_kept_and_the_request_sent_again() -> None:
    with (
        Peer(answers(whole("429 Slow", b"", "Retry-After: 1"), whole("200 OK"))) as peer,
        session_with(peer) as session,
    ):
        begun = monotonic()
        assert 200 == get(session).status
        assert 1 <= monotonic() - begun


def test_a_wait_beyond_two_minutes_is_not_waited_for_and_the_host_is_left_for_the_run() -> None:
    limits = Limits()
    with (
        Peer(answers(whole("429 Slow", b"", "Retry-After: 3600"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        for _ in range(3):
            with pytest.raises(RateLimited) as caught:
                get(session)
            assert ("rate_limited", False, 3600.0) == (
                caught.value.code,
                caught.value.retryable,
                caught.value.retry_after,
            )
        assert (1, 3600.0, True) == (len(peer.requests), limits.retry_after, session.host.down)


def test_a_429_without_a_time_is_tried_again_after_a_pause() -> None:
    limits = Limits(Clock())
    with Peer(answers(whole("429 Slow", b"Too Many Requests"))) as peer, session_with(peer, limits=limits) as session:
        with pytest.raises(RateLimited) as caught:
            get(session, retries=False)
        assert (True, 1.0) == (caught.value.retryable, waits(limits, peer.name))


def test_a_used_up_quota_stops_the_request_but_not_the_host() -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'
    limits = Limits(Clock())
    with Peer(answers(whole("429 Slow", body))) as peer, session_with(peer, limits=limits) as session:
        with pytest.raises(RateLimited):
            get(session)
        assert (1, 0.0, False) == (len(peer.requests), waits(limits, peer.name), session.host.down)


def test_a_rate_is_kept() -> None:
    limits = Limits()
    with Peer(answers(whole("200 OK"))) as peer:
        limits.configure(peer.name, 8, Rate(20, 1.0))
        with session_with(peer, limits=limits) as session:
            begun = monotonic()
            for _ in range(4):
                get(session)
            assert 0.14 < monotonic() - begun


def test_a_host_that_outlives_a_retry_budget_in_silence_is_down(caplog: pytest.LogCaptureFixture) -> None:
    with Peer(answers(whole("200 OK"))) as peer:
        name = peer.name
    with session_with(name) as session:
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                get(session)
            assert ("net_error", True, name) == (caught.value.code, caught.value.retryable, caught.value.host)
        assert (True, {}) == (session.host.down, session.host.requests()), "nothing went out"
        assert 1 == sum(getattr(record, "event", "") == "host_down" for record in caplog.records)


def closes_at_once(talk: Talk) -> None:
    talk.request()
    talk.reset()


def test_a_host_that_does_not_answer_is_down_and_one_that_answers_badly_is_not() -> None:
    with Peer(lambda talk: talk.until_gone()) as peer, session_with(peer, idle_timeout=0.05) as session:
        with pytest.raises(NetworkError):
            get(session)
        assert session.host.down
    with Peer(closes_at_once) as peer, session_with(peer) as session:
        with pytest.raises(NetworkError):
            get(session)
        assert not session.host.down


def test_the_transfer_manager_tells_when_it_gave_up_and_an_answer_brings_the_host_back() -> None:
    with Peer(answers(whole("200 OK"))) as peer, session_with(peer) as session:
        session.gave_up(RemoteError("a bad answer"))
        assert not session.host.down
        session.gave_up(Unreachable("nobody there", host="cdn.example.net"))
        assert not session.host.down
        with session.stream("/x", work(), kind="blob") as stream:
            session.gave_up(Unreachable("nobody there"))
            assert session.host.down
            assert 0 == stream.readinto(memoryview(bytearray(1)))
        session.host.mark_up()
        get(session)
        assert not session.host.down
