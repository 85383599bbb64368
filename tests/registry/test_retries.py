"""Retries, pauses that hosts request, and hosts that are down."""

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
from mirror.limits import PROBE_EVERY, Limits, Rate
from mirror.registry.auth.authorizer import Scope
from mirror.registry.retries import MIN_PAUSE
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.registry.http.peers import Peer, PeerConnection, raw_response, reply
from tests.registry.http.sessions import (
    QUICK,
    Keys,
    get,
    session_with,
    work,
)


@pytest.mark.parametrize("status", ["408 R", "425 R", "500 R", "502 R", "503 R", "504 R", "507 R"])
def test_temporary_errors_are_retried(status: str, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits()
    with (
        caplog.at_level(logging.INFO, "mirror.http"),
        Peer(reply(raw_response(status), raw_response("200 OK"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        assert 200 == get(session, method="POST").status
        assert (2, 1, {"POST tags": 2}) == (len(peer.requests), limits.retries, session.host.requests())
        retries = [record for record in caplog.records if getattr(record, "event", "") == "retry"]
        assert [(peer.name, "tags", 1)] == [(r.host, r.kind, r.attempt) for r in retries]  # type: ignore[attr-defined]


def test_attempts_are_counted() -> None:
    with Peer(reply(raw_response("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            get(session)
        assert QUICK.attempts == len(peer.requests)
        assert not session.host.down


@pytest.mark.parametrize("known", [True, False], ids=["before", "after a challenge"])
def test_requests_to_a_token_service_are_retried_within_one_budget(known: bool) -> None:
    class Fetching(Keys):
        def fetch(self, work: Work) -> None:
            with pytest.raises(RemoteError) as caught:
                session.send_one_off("GET", session.url_policy.check_realm(f"http://{service.name}/token"), work=work)
            raise caught.value

        def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
            if known:
                self.fetch(work)
            return None

        def handle_challenge(self, scopes: object, challenges: object, sent: object, work: Work) -> None:
            self.fetch(work)

    rejection = reply(raw_response("401 Who", b"", "WWW-Authenticate: Bearer"))
    with (
        Peer(rejection) as registry,
        Peer(reply(raw_response("500 R"))) as service,
        session_with(registry, authorizer=Fetching(), token_realms=frozenset({service.name})) as session,
    ):
        with pytest.raises(RemoteError, match="500"):
            get(session)
        assert (QUICK.attempts, 0 if known else 1) == (len(service.requests), len(registry.requests))


def test_nothing_is_retried_if_the_caller_retries() -> None:
    with Peer(reply(raw_response("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            get(session, retries=False)
        assert 1 == len(peer.requests)


class Clock:
    """A clock that does not advance by itself."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def seconds_until_ready(limits: Limits, name: str) -> float:
    return max(0.0, limits.host(name).ready_at() - limits.clock.now())


@pytest.mark.parametrize("status", ["429 Slow", "503 Busy"])
@pytest.mark.parametrize(
    ("form", "seconds"),
    [
        (lambda: "7", 7.0),
        (lambda: "120", 120.0),
        (lambda: formatdate(time() + 90, usegmt=True), 90.0),
        (lambda: formatdate(time() - 90, usegmt=True), 0.0),
        (lambda: "0", 0.0),
    ],
)
def test_a_host_that_asks_for_a_pause_is_paused_for_all_requests(
    status: str, form: Callable[[], str], seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(Clock())
    with (
        Peer(reply(raw_response(status, b"", f"Retry-After: {form()}"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        with pytest.raises(RemoteError) as caught:
            get(session, retries=False)
        assert caught.value.retryable
        paused = max(seconds, MIN_PAUSE) if status.startswith("429") else seconds
        assert paused == pytest.approx(seconds_until_ready(limits, peer.name), abs=2 if seconds else 0)
        assert seconds == pytest.approx(caught.value.retry_after, abs=2)
        told = [record for record in caplog.records if getattr(record, "event", "") == "pause"]
        assert (1 if paused else 0) == len(told)


class RecordingStop(Stop):
    """A stop whose sleeps advance only the clock, and are recorded."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.raise_if_requested()
        self.sleeps.append(seconds)
        self.clock.time += seconds


@pytest.mark.parametrize("status", ["429 Slow", "503 Busy"])
@pytest.mark.parametrize("form", ["0", "past"])
def test_a_retry_after_of_zero_keeps_the_backoff_and_the_limit_of_attempts(status: str, form: str) -> None:
    clock = Clock()
    stop = RecordingStop(clock)
    date = form if form == "0" else formatdate(time() - 90, usegmt=True)
    policy = Policy(attempts=4, base=8.0, cap=8.0)
    with (
        Peer(reply(raw_response(status, b"", f"Retry-After: {date}"))) as peer,
        session_with(peer, limits=Limits(clock), policy=policy) as session,
    ):
        with pytest.raises(RemoteError):
            get(session, work=Work(stop))
        assert policy.attempts == len(peer.requests)
        assert sum(stop.sleeps) > 0.1, "three draws from 0 to 8 s"


def test_delays_by_a_rate_do_not_count_against_the_time_budget() -> None:
    clock = Clock()
    limits = Limits(clock)
    with Peer(reply(raw_response("500 R"))) as peer:
        limits.configure(peer.name, 8, Rate(1, 60.0))
        with session_with(peer, limits=limits, policy=Policy(attempts=5, base=0.001)) as session:
            with pytest.raises(RemoteError):
                get(session, work=Work(RecordingStop(clock)))
            assert 5 == len(peer.requests)
            assert clock.time > 1200.0


def test_a_host_that_still_answers_429_after_all_retries_only_gets_probes() -> None:
    clock = Clock()
    limits = Limits(clock)
    responses = [raw_response("429 Slow")] * (QUICK.attempts + 1) + [raw_response("200 OK")]
    with Peer(reply(*responses)) as peer, session_with(peer, limits=limits) as session:
        for _ in range(3):
            with pytest.raises(RateLimited) as caught:
                get(session, work=Work(RecordingStop(clock)))
        assert (QUICK.attempts, True, "rate_limited") == (len(peer.requests), session.host.down, caught.value.code)
        assert f"{peer.name} limits requests: GET" in caught.value.what
        clock.time += PROBE_EVERY
        for _ in range(2):  # the first one is a probe, which gets a 429
            with pytest.raises(RateLimited):
                get(session, work=Work(RecordingStop(clock)))
        assert QUICK.attempts + 1 == len(peer.requests)
        clock.time += PROBE_EVERY
        assert 200 == get(session, work=Work(RecordingStop(clock))).status
        assert not session.host.down


def test_a_host_that_requested_a_long_wait_is_not_probed_before_its_end() -> None:
    clock = Clock()
    responses = [raw_response("429 Slow", b"", "Retry-After: 3600"), raw_response("200 OK")]
    with Peer(reply(*responses)) as peer, session_with(peer, limits=Limits(clock)) as session:
        for seconds in (0, 3599):
            clock.time += seconds
            with pytest.raises(RateLimited):
                get(session, work=Work(RecordingStop(clock)))
        assert 1 == len(peer.requests)
        clock.time += 1
        assert 200 == get(session, work=Work(RecordingStop(clock))).status


def test_a_response_to_an_earlier_request_does_not_end_a_rate_limit() -> None:
    limits = Limits(Clock())
    with Peer(reply(raw_response("200 OK"))) as peer, session_with(peer, limits=limits) as session:
        with session.stream("/x", work(), kind="blob"):
            session.mark_down_if_unreachable(RateLimited("429", status=429))
        session.host.record_response("GET blob", 200, probe=False)
        assert session.host.down


def test_a_request_is_sent_again_after_the_requested_wait() -> None:
    with (
        Peer(reply(raw_response("429 Slow", b"", "Retry-After: 1"), raw_response("200 OK"))) as peer,
        session_with(peer) as session,
    ):
        begun = monotonic()
        assert 200 == get(session).status
        assert 1 <= monotonic() - begun


def test_a_requested_wait_of_more_than_two_minutes_marks_the_host_as_down() -> None:
    limits = Limits()
    with (
        Peer(reply(raw_response("429 Slow", b"", "Retry-After: 3600"))) as peer,
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


def test_a_429_without_retry_after_is_retried_after_a_pause() -> None:
    limits = Limits(Clock())
    with (
        Peer(reply(raw_response("429 Slow", b"Too Many Requests"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        with pytest.raises(RateLimited) as caught:
            get(session, retries=False)
        assert (True, 1.0) == (caught.value.retryable, seconds_until_ready(limits, peer.name))


def test_a_used_up_quota_stops_only_the_requests_that_count_against_it() -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'
    limits = Limits(Clock())
    with (
        Peer(reply(raw_response("429 Slow", body), raw_response("200 OK"))) as peer,
        session_with(peer, limits=limits) as session,
    ):
        for _ in range(3):
            with pytest.raises(RateLimited) as caught:
                get(session, kind="manifest")
            assert "pull rate limit" in caught.value.what
        assert (1, 0.0, False) == (len(peer.requests), seconds_until_ready(limits, peer.name), session.host.down)
        assert 200 == get(session, kind="manifest", method="HEAD").status
        assert 200 == get(session, kind="tags").status
        limits.clock.time += PROBE_EVERY  # type: ignore[attr-defined]
        assert [200, 200] == [get(session, kind="manifest").status for _ in range(2)]


def test_a_rate_limits_requests() -> None:
    limits = Limits()
    with Peer(reply(raw_response("200 OK"))) as peer:
        limits.configure(peer.name, 8, Rate(20, 1.0))
        with session_with(peer, limits=limits) as session:
            begun = monotonic()
            for _ in range(4):
                get(session)
            assert 0.14 < monotonic() - begun


def test_a_host_that_does_not_respond_within_a_retry_budget_is_down(caplog: pytest.LogCaptureFixture) -> None:
    with Peer(reply(raw_response("200 OK"))) as peer:
        name = peer.name
    with session_with(name) as session:
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                get(session)
            assert ("net_error", True, name) == (caught.value.code, caught.value.retryable, caught.value.host)
        assert (True, {}) == (session.host.down, session.host.requests()), "nothing went out"
        assert 1 == sum(getattr(record, "event", "") == "host_down" for record in caplog.records)


def close_at_once(conn: PeerConnection) -> None:
    conn.read_request()
    conn.reset()


def test_a_host_that_does_not_respond_is_down_but_one_with_bad_responses_is_not() -> None:
    with Peer(lambda conn: conn.read_to_end()) as peer, session_with(peer, idle_timeout=0.05) as session:
        with pytest.raises(NetworkError):
            get(session)
        assert session.host.down
    with Peer(close_at_once) as peer, session_with(peer) as session:
        with pytest.raises(NetworkError):
            get(session)
        assert not session.host.down


def test_exhausted_transfer_retries_mark_a_host_as_down_until_it_responds() -> None:
    with Peer(reply(raw_response("200 OK"))) as peer, session_with(peer) as session:
        session.mark_down_if_unreachable(RemoteError("a bad answer"))
        assert not session.host.down
        session.mark_down_if_unreachable(Unreachable("nobody there", host="cdn.example.net"))
        assert not session.host.down
        with session.stream("/x", work(), kind="blob") as stream:
            session.mark_down_if_unreachable(Unreachable("nobody there"))
            assert session.host.down
            assert 0 == stream.readinto(memoryview(bytearray(1)))
        session.host.record_response("GET blob", 200, probe=False)
        get(session)
        assert not session.host.down
