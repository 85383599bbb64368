"""Promises of a session: whole answers, exact statuses, credentials for one origin, waits with an end, one retry."""

from __future__ import annotations

import contextlib
import gzip
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from time import monotonic, time
from typing import Any

import pytest

from mirror.errors import (
    AuthError,
    Cancelled,
    MirrorError,
    NetworkError,
    NotFound,
    RateLimited,
    Refused,
    RemoteError,
    Unreachable,
)
from mirror.limits import Limits, Rate, Stop, Work
from mirror.registry.scopes import Scope, pull
from mirror.registry.session import Anonymous, Answer, Session, TooBig
from mirror.registry.settings import Tls
from tests.registry.http.peers import Peer, Script, Talk, answers, peers, whole
from tests.registry.http.sessions import QUICK, session_with, work

SCOPES = pull("a/b")


class Keys:
    """An Authorizer with a list of values; `challenged` moves on to the next one."""

    def __init__(self, *values: str | None) -> None:
        self.values = list(values)
        self.challenges: list[tuple[list[str], str | None]] = []
        self.accepted_scopes: list[tuple[Scope, ...]] = []
        self.abandonments = 0

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        return self.values[0]

    def challenged(self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work) -> None:
        self.challenges.append((list(challenges), sent))
        if len(self.values) > 1:
            del self.values[0]

    def accepted(self, scopes: tuple[Scope, ...]) -> None:
        self.accepted_scopes.append(scopes)

    def abandoned(self, scopes: tuple[Scope, ...]) -> None:
        self.abandonments += 1


def get(session: Session, where: Any = "/v2/a/b/tags/list", *, retries: bool = True, **options: Any) -> Answer:
    options = {"kind": "tags", "expect": {200}, **options}
    return session.call(options.pop("method", "GET"), where, options.pop("work", work(retries=retries)), **options)


def read_all(session: Session, where: Any = "/v2/a/b/blobs/x", **options: Any) -> bytes:
    data, view = bytearray(), memoryview(bytearray(1 << 16))
    with session.stream(where, options.pop("work", work()), kind="blob", **options) as stream:
        while count := stream.readinto(view):
            data += view[:count]
    return bytes(data)


# ---- one request


def test_a_request_says_what_it_must_and_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text(
        "default login netrc password netrc\nmachine 127.0.0.1 login netrc password netrc\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    with Peer(answers(whole("200 OK", b"[]", "Set-Cookie: a=b"))) as peer, session_with(peer) as session:
        for _ in range(2):
            answer = get(session, "/v2/a/b/tags/list?n=5", headers=(("Accept", "x/y"),))
        assert (200, b"[]", "/v2/a/b/tags/list?n=5") == (answer.status, answer.body, answer.destination.target)
        assert ["GET /v2/a/b/tags/list?n=5"] * 2 == peer.targets()
        sent = peer.requests[1].headers
        assert {"host", "user-agent", "accept-encoding", "accept"} == set(sent)
        assert (peer.name, "identity", "x/y") == (sent["host"], sent["accept-encoding"], sent["accept"])
        assert sent["user-agent"].startswith("mirror/")
        assert 1 == peer.connections


def test_small_bodies_are_sent_with_their_length_and_again_on_a_retry() -> None:
    script = answers(whole("500 Oops"), whole("201 Created", b"", "Location: /x"))
    for body in (b"{}", b"x" * 200_000, b""):
        with Peer(script) as peer, session_with(peer) as session:
            answer = get(session, "/v2/a/b/manifests/1", method="PUT", kind="manifest", body=body, expect={201})
            assert "/x" == answer.headers.get("location")
            assert [(str(len(body)), body)] * 2 == [(r.headers["content-length"], r.body) for r in peer.requests]


@pytest.mark.parametrize("status", ["200 OK", "202 Accepted", "204 No Content", "299 Fine"])
def test_success_is_the_exact_status(status: str) -> None:
    with Peer(answers(whole(status))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            get(session, method="PUT", expect={201})
        assert ("bad_response", int(status[:3])) == (caught.value.code, caught.value.status)
        assert 1 == len(peer.requests)


def test_a_failure_tells_what_the_registry_said_and_no_query() -> None:
    body = b'{"errors":[{"code":"NAME_UNKNOWN","message":"no \\u001b[2J such"}]}'
    with Peer(answers(whole("404 Not Found", body))) as peer, session_with(peer) as session:
        with pytest.raises(NotFound) as caught:
            get(session, "/v2/a/b/tags/list?token=CANARY")
        error = caught.value
        assert f"GET http://{peer.name}/v2/a/b/tags/list: 404 Not Found: NAME_UNKNOWN: no \\x1b[2J such" == str(error)
        assert ("NAME_UNKNOWN", 404, peer.name) == (error.registry_code, error.status, error.host)


def test_answers_are_bounded_and_unpacked() -> None:
    packed = gzip.compress(b"x" * 5000)
    script = answers(whole("200 OK", packed, "Content-Encoding: gzip"), whole("200 OK", b"x" * 101))
    with Peer(script) as peer, session_with(peer) as session:
        assert b"x" * 5000 == get(session, limit=5000).body
        with pytest.raises(TooBig):
            get(session, limit=100)


def test_a_request_that_cannot_be_written_is_not_sent() -> None:
    with Peer(answers(whole("200 OK"))) as peer, session_with(peer, authorizer=Keys("Bearer a\r\nX: y")) as session:
        with pytest.raises(Refused) as caught:
            get(session)
        assert "Bearer" not in str(caught.value)
        assert [] == peer.requests


# ---- whole answers only (threats-and-faults, 3.3)

SWEPT = {
    "PUT 201": (
        "PUT",
        b"HTTP/1.1 201 Created\r\nDocker-Content-Digest: sha256:12\r\nLocation: /v2/a\r\nContent-Length: 0\r\n\r\n",
    ),
    "HEAD 200": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 527\r\nDocker-Content-Digest: sha256:1234\r\n\r\n"),
    "GET 200": ("GET", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"),
}


def cut_script(said: bytes, end: Script) -> Script:
    """Connection n gets an answer cut after n - 1 bytes."""

    def script(talk: Talk) -> None:
        if talk.request() is not None:
            talk.say(said[: talk.number - 1])
            end(talk)

    return script


def outcomes_of_cuts(session: Session, method: str, said: bytes) -> set[str]:
    codes = set()
    status = int(said[9:12])
    for _ in range(len(said)):
        with pytest.raises(MirrorError) as caught:
            get(session, method=method, expect={status}, retries=False)
        assert caught.value.retryable
        codes.add(caught.value.code)
    return codes


@pytest.mark.parametrize(("method", "said"), SWEPT.values(), ids=SWEPT)
def test_no_cut_inside_a_head_counts_as_an_answer(method: str, said: bytes) -> None:
    with Peer(cut_script(said, lambda talk: talk.sock.close())) as peer, session_with(peer) as session:
        assert {"truncated"} == outcomes_of_cuts(session, method, said)
        assert len(said) == peer.connections


@pytest.mark.parametrize(("method", "said"), SWEPT.values(), ids=SWEPT)
def test_no_reset_inside_a_head_counts_as_an_answer(method: str, said: bytes) -> None:
    with Peer(cut_script(said, Talk.reset)) as peer, session_with(peer) as session:
        assert {"net_error"} == outcomes_of_cuts(session, method, said)


@pytest.mark.parametrize(("method", "said"), SWEPT.values(), ids=SWEPT)
def test_no_end_without_a_tls_goodbye_counts_as_an_answer(method: str, said: bytes, authority: Any) -> None:
    script = cut_script(said, lambda talk: talk.sock.close())
    with (
        Peer(script, tls=authority.server_context()) as peer,
        session_with(peer, plain_http=False, tls=trusting(authority)) as session,
    ):
        assert {"truncated"} == outcomes_of_cuts(session, method, said)


def trusting(authority: Any, **more: Any) -> Tls:
    return Tls(ca=authority.ca, **more)


# ---- connections


def test_connections_are_kept_and_used_again_and_closed_in_the_end() -> None:
    with Peer(answers(whole("200 OK"))) as peer:
        with session_with(peer) as session:
            for _ in range(5):
                get(session)
            assert 1 == peer.connections
        with session_with(peer, parallel=1) as session:
            with session.stream("/x", work(), kind="blob") as one, session.stream("/x", work(), kind="blob") as two:
                ended = [stream.readinto(memoryview(bytearray(9))) for stream in (one, two)]
            assert [0, 0] == ended
            get(session)
            assert 3 == peer.connections


def test_a_connection_that_died_while_idle_is_replaced_without_a_word() -> None:
    def one_answer(talk: Talk) -> None:
        if talk.request() is not None:
            talk.answer("200 OK")

    with Peer(one_answer) as peer, session_with(peer) as session:
        for number in range(1, 4):
            get(session, method="PUT", retries=False)
            assert number == peer.connections
            peer.settle()


def dies_when_asked_again(talk: Talk, end: Script = Talk.reset) -> None:
    """The race of keep-alive: the first request is answered, the second one meets an end."""
    if talk.request() is not None:
        talk.answer("200 OK")
        if talk.request() is not None:
            end(talk)


@pytest.mark.parametrize("end", [Talk.reset, lambda talk: None], ids=["reset", "end"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_safe_request_that_met_a_dying_connection_is_sent_once_more(method: str, end: Any) -> None:
    limits = Limits()
    with (
        Peer(lambda talk: dies_when_asked_again(talk, end)) as peer,
        session_with(peer, limits=limits) as session,
    ):
        for _ in range(3):
            get(session, method=method, retries=False)
        assert (3, 5) == (peer.connections, len(peer.requests))
        assert {f"{method} tags": 3} == session.host.requests()
        assert 0 == limits.retries


def test_an_unsafe_request_that_met_a_dying_connection_is_an_error() -> None:
    with Peer(dies_when_asked_again) as peer, session_with(peer) as session:
        get(session, method="PUT", retries=False)
        with pytest.raises(NetworkError):
            get(session, method="PUT", retries=False)
        assert 1 == peer.connections


def test_an_answer_half_heard_is_not_asked_for_again() -> None:
    def script(talk: Talk) -> None:
        if talk.request() is not None:
            talk.answer("200 OK")
            talk.request()
            talk.say(b"HTTP/1.1 20")

    with Peer(script) as peer, session_with(peer) as session:
        get(session)
        with pytest.raises(NetworkError) as caught:
            get(session, retries=False)
        assert ("truncated", 1) == (caught.value.code, peer.connections)


@pytest.mark.parametrize(
    "said",
    [
        whole("200 OK", b"", "Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        whole("200 OK") + b"surplus",
        whole("200 OK", b"an answer to HEAD has no body"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_connection_in_doubt_is_not_used_again(said: bytes) -> None:
    with Peer(answers(said)) as peer, session_with(peer) as session:
        for _ in range(3):
            assert 200 == get(session, method="HEAD").status
        assert (3 if b"chunked" not in said else 1) == peer.connections


def test_a_stream_left_early_costs_its_connection() -> None:
    with Peer(answers(whole("200 OK", b"x" * 100))) as peer, session_with(peer) as session:
        with session.stream("/x", work(), kind="blob") as stream:
            assert 10 == stream.readinto(memoryview(bytearray(10)))
        assert b"x" * 100 == read_all(session)
        assert 2 == peer.connections
        assert b"x" * 100 == read_all(session)
        assert 2 == peer.connections


# ---- waits with an end


def dripping(first: bytes, drip: bytes, every: float = 0.03) -> Script:
    def script(talk: Talk) -> None:
        if talk.request() is None:
            return
        talk.say(first)
        gone = threading.Event()

        def watch() -> None:
            talk.until_gone()
            gone.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        while not gone.wait(every):
            talk.say(drip)
        watcher.join()

    return script


HANGS: dict[str, tuple[Script, str]] = {
    "silence": (lambda talk: talk.until_gone(), "timeout"),
    "silence in the head": (dripping(b"HTTP/1.1 200 OK\r\nA:", b""), "too_slow"),
    "a dripping head": (dripping(b"HTTP/1.1 200 OK\r\n", b"A"), "too_slow"),
    "a flood of interim heads": (
        dripping(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0001),
        "too_slow",
    ),
    "a dripping body": (dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x"), "too_slow"),
    "dripping chunks": (dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"), "too_slow"),
}


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_no_peer_outlasts_a_small_requests_deadline(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.3, deadline=0.4) as session:
        begun = monotonic()
        with pytest.raises(NetworkError) as caught:
            get(session, retries=False)
        assert (code, True) == (caught.value.code, caught.value.retryable)
        assert monotonic() - begun < 2


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_no_peer_keeps_a_stream_below_the_floor(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.3) as session:
        begun = monotonic()
        with pytest.raises(NetworkError) as caught:
            read_all(session)
        assert (code, True) == (caught.value.code, caught.value.retryable)
        assert monotonic() - begun < 2


def test_a_body_above_the_floor_may_take_its_time() -> None:
    with (
        Peer(dripping(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 200)) as peer,
        session_with(peer, idle_timeout=0.15) as session,
        session.stream("/x", work(), kind="blob") as stream,
    ):
        begun, got, view = monotonic(), 0, memoryview(bytearray(1000))
        while monotonic() - begun < 0.6:
            got += stream.readinto(view)
        assert got > 600


def test_a_body_that_breaks_off_is_never_its_end() -> None:
    def script(talk: Talk) -> None:
        if talk.request() is not None:
            talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 99)

    with Peer(script) as peer, session_with(peer) as session:
        with pytest.raises(NetworkError) as caught:
            read_all(session)
        assert ("truncated", peer.name) == (caught.value.code, caught.value.host)


# ---- stopping


@contextlib.contextmanager
def stopped_soon(peer: Peer, when: Callable[[], bool]) -> Iterator[Work]:
    """Work that is stopped, from another thread, once the peer has got so far."""
    stop = Stop()

    def wait() -> None:
        peer.wait_for(when)
        stop.request("a signal")

    thread = threading.Thread(target=wait)
    thread.start()
    begun = monotonic()
    yield Work(stop)
    thread.join()
    assert monotonic() - begun < 2


def hanging(first: bytes) -> Script:
    """Say `first`, tell, and then nothing until the client is gone."""

    def script(talk: Talk) -> None:
        talk.head()
        talk.say(first)
        talk.peer.note(lambda: talk.peer.requests.append(None))  # type: ignore[arg-type]
        talk.until_gone()

    return script


HEADS = [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"]


@pytest.mark.parametrize("first", HEADS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_stop_reaches_a_blocked_read(first: bytes, secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": trusting(authority)} if secure else {}
    with Peer(hanging(first), tls=tls) as peer, session_with(peer, **options) as session:
        with stopped_soon(peer, lambda: bool(peer.requests)) as doomed, pytest.raises(Cancelled):
            get(session, work=doomed)
        peer.requests.clear()
        with stopped_soon(peer, lambda: bool(peer.requests)) as doomed, pytest.raises(Cancelled):
            read_all(session, work=doomed)


def test_a_stop_is_never_taken_for_the_end_of_a_body() -> None:
    said = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"  # which an end of the connection would complete
    with (
        Peer(hanging(said)) as peer,
        session_with(peer) as session,
        stopped_soon(peer, lambda: bool(peer.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        read_all(session, work=doomed)


def test_stopped_work_sends_nothing() -> None:
    with Peer(answers(whole("200 OK"))) as peer, session_with(peer) as session:
        stop = Stop()
        stop.request("done")
        for _ in range(2):
            with pytest.raises(Cancelled):
                get(session, work=Work(stop))
        assert [] == peer.requests


def test_a_stop_ends_a_wait_between_two_tries() -> None:
    with (
        Peer(answers(whole("429 Slow down", b"", "Retry-After: 60"))) as peer,
        session_with(peer) as session,
    ):
        stop = Stop()
        timer = threading.Timer(0.1, stop.request, ("enough",))
        timer.start()
        begun = monotonic()
        with pytest.raises(Cancelled):
            get(session, work=Work(stop))
        assert monotonic() - begun < 5
        timer.join()


# ---- who we are


def test_a_login_is_sent_and_renewed_once() -> None:
    script = answers(
        whole("401 No", b"", 'WWW-Authenticate: Bearer realm="x"', "WWW-Authenticate: Basic"), whole("200 OK")
    )
    keys = Keys(None, "Bearer new")
    with Peer(script) as peer, session_with(peer, authorizer=keys) as session:
        get(session, scopes=SCOPES, retries=False)
        assert [None, "Bearer new"] == [request.headers.get("authorization") for request in peer.requests]
        assert [(['Bearer realm="x"', "Basic"], None)] == keys.challenges
        assert [SCOPES] == keys.accepted_scopes
        assert {"GET tags": 2} == session.host.requests()


def test_a_second_refusal_is_final() -> None:
    keys = Keys("Bearer 1", "Bearer 2", "Bearer 3", "Bearer 4")
    with Peer(answers(whole("401 No", b"", "WWW-Authenticate: Bearer"))) as peer:
        with session_with(peer, authorizer=keys) as session, pytest.raises(AuthError) as caught:
            get(session, scopes=SCOPES)
        assert ("auth_failed", 401, False) == (caught.value.code, caught.value.status, caught.value.retryable)
        assert 2 == len(peer.requests)
        assert [] == keys.accepted_scopes


def test_without_credentials_a_challenge_is_the_end() -> None:
    with Peer(answers(whole("401 No", b"", "WWW-Authenticate: Bearer"))) as peer:
        with session_with(peer) as session, pytest.raises(AuthError):
            get(session)
        assert 1 == len(peer.requests)
        assert None is Anonymous().header((), work())


def test_an_expired_login_that_is_told_as_403_is_renewed_once() -> None:
    expired = whole("403 Forbidden", b"Your authorization token has expired. Reauthenticate and try again.")
    keys = Keys("Basic old", "Basic new")
    with Peer(answers(expired, whole("200 OK"))) as peer, session_with(peer, authorizer=keys) as session:
        get(session, retries=False)
        assert [([], "Basic old")] == keys.challenges
    keys = Keys("Basic old", "Basic new", "Basic newer")
    with Peer(answers(expired)) as peer, session_with(peer, authorizer=keys) as session:
        with pytest.raises(AuthError) as caught:
            get(session)
        assert ("auth_denied", 2) == (caught.value.code, len(peer.requests))


def test_a_denial_is_not_tried_again() -> None:
    with Peer(answers(whole("403 Forbidden"))) as peer, session_with(peer, authorizer=Keys("Basic x")) as session:
        with pytest.raises(AuthError) as caught:
            get(session)
        assert ("auth_denied", 1) == (caught.value.code, len(peer.requests))


# ---- redirects


def led_to(place: Callable[[], str], status: str = "307 Temporary Redirect") -> Script:
    def script(talk: Talk) -> None:
        while talk.request() is not None:
            talk.answer(status, b"moved", f"Location: {place()}")

    return script


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_a_redirected_read_shows_no_credentials_to_another_host(method: str, status: str) -> None:
    found: list[Peer] = []
    place = lambda: f"http://{found[1].name}/signed?X-Signature=CANARY"  # noqa: E731
    with peers(led_to(place, status), answers(whole("200 OK")), addresses=("127.0.0.2", "127.0.0.3")) as both:
        found += both
        limits = Limits()
        with session_with(both[0], authorizer=Keys("Bearer secret"), limits=limits) as session:
            answer = get(session, method=method, headers=(("Accept", "x/y"),), kind="blob")
        assert ["Bearer secret", None] == [peer.requests[0].headers.get("authorization") for peer in both]
        assert [f"{method} /signed?X-Signature=CANARY"] == both[1].targets()
        assert ("x/y", both[1].name) == (both[1].requests[0].headers["accept"], answer.destination.origin.netloc)
        assert {both[0].name: {f"{method} blob": 1}, both[1].name: {f"{method} blob": 1}} == {
            host.name: host.requests() for host in limits.all()
        }


def test_a_redirect_within_the_origin_keeps_the_credentials() -> None:
    script = answers(whole("307 T", b"", "Location: /elsewhere?x=1"), whole("200 OK", b"blob"))
    with Peer(script) as peer, session_with(peer, authorizer=Keys("Bearer secret")) as session:
        assert b"blob" == read_all(session)
        assert ["Bearer secret"] * 2 == [request.headers["authorization"] for request in peer.requests]
        assert 1 == peer.connections


@pytest.mark.parametrize("place", ["/v2/a/b/tags/list", "/other"])
def test_a_redirect_that_goes_round_ends_after_five_hops(place: str) -> None:
    with Peer(led_to(lambda: place)) as peer, session_with(peer) as session:
        with pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", 6) == (caught.value.code, len(peer.requests))


@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/latest", "http://0.0.0.0:1/", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "//"]
)
def test_an_unsafe_redirect_is_not_followed(place: str) -> None:
    with Peer(led_to(lambda: place)) as peer, session_with(peer) as session:
        with pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", 1) == (caught.value.code, len(peer.requests))


@pytest.mark.parametrize("fields", [(), ("Location: /a", "Location: /b"), ("Location: ",)])
def test_a_redirect_must_say_where(fields: tuple[str, ...]) -> None:
    with Peer(answers(whole("302 Found", b"", *fields))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            get(session)
        assert ("bad_response", 1) == (caught.value.code, len(peer.requests))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_a_write_is_never_redirected(method: str, status: str) -> None:
    with Peer(led_to(lambda: "/elsewhere", status)) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError, match="redirect is not usable") as caught:
            get(session, method=method, body=b"body", expect={201, 202})
        assert ("bad_response", 1) == (caught.value.code, len(peer.requests))


def test_another_hosts_401_is_not_answered_and_its_403_is_tried_from_the_start() -> None:
    for status, tries in (("401 Who", 1), ("403 Signature expired", 3)):
        found: list[Peer] = []
        place = lambda found=found: f"http://{found[1].name}/signed?s"  # noqa: E731
        script = answers(whole(status, b"", 'WWW-Authenticate: Basic realm="give"'))
        with peers(led_to(place), script, addresses=("127.0.0.2", "127.0.0.3")) as both:
            found += both
            keys = Keys("Bearer secret")
            with session_with(both[0], authorizer=keys) as session, pytest.raises(AuthError) as caught:
                get(session)
            assert ("auth_denied", []) == (caught.value.code, keys.challenges)
            assert [tries, tries] == [len(peer.requests) for peer in both]
            assert not any("authorization" in request.headers for request in both[1].requests)


def test_a_status_that_is_expected_is_handed_back_with_where_it_came_from() -> None:
    found: list[Peer] = []
    place = lambda: f"http://{found[1].name}/signed"  # noqa: E731
    with peers(led_to(place), answers(whole("403 No")), addresses=("127.0.0.2", "127.0.0.3")) as both:
        found += both
        with session_with(both[0]) as session:
            answer = get(session, method="HEAD", expect={200, 403}, kind="blob")
            assert (403, both[1].name) == (answer.status, answer.destination.origin.netloc)
            error = session.failure(answer, "HEAD", "blob")
            assert ("auth_denied", both[1].name) == (error.code, error.host)


# ---- retries, pauses, hosts that are down


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
        assert 1 <= monotonic() - begun < 3


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
            assert 0.14 < monotonic() - begun < 2


def test_a_host_that_outlives_a_retry_budget_in_silence_is_down(caplog: pytest.LogCaptureFixture) -> None:
    with Peer(answers(whole("200 OK"))) as peer:
        name = peer.name
    with session_with(name) as session:
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                get(session)
            assert ("net_error", True, name) == (caught.value.code, caught.value.retryable, caught.value.host)
        assert (True, {"GET tags": QUICK.attempts}) == (session.host.down, session.host.requests())
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


# ---- streams


def test_a_part_of_a_blob_is_asked_for_with_a_range() -> None:
    script = answers(whole("206 Partial Content", b"cd", "Content-Range: bytes 2-3/4"))
    with Peer(script) as peer, session_with(peer) as session:
        with session.stream("/x", work(), kind="blob", headers=(("Range", "bytes=2-"),)) as stream:
            assert (206, "bytes 2-3/4") == (stream.status, stream.headers.get("content-range"))
            assert 0 == stream.readinto(memoryview(b"").cast("B"))
            view = memoryview(bytearray(9))
            assert (2, b"cd", 0) == (stream.readinto(view), bytes(view[:2]), stream.readinto(view))
            stream.close()
        assert "bytes=2-" == peer.requests[0].headers["range"]


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_the_bytes_of_a_blob_are_not_taken_encoded(coding: str) -> None:
    with Peer(answers(whole("200 OK", b"xx", f"Content-Encoding: {coding}"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            read_all(session)
        assert "bad_response" == caught.value.code


def test_a_stream_is_not_tried_again() -> None:
    with Peer(answers(whole("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            read_all(session)
        assert 1 == len(peer.requests)


# ---- the log


def test_requests_are_logged_without_what_is_secret(caplog: pytest.LogCaptureFixture) -> None:
    found: list[Peer] = []
    place = lambda: f"http://{found[1].name}/signed?X-Signature=CANARY"  # noqa: E731
    with (
        caplog.at_level(logging.DEBUG, "mirror.http"),
        peers(led_to(place), answers(whole("500 R", b"no")), addresses=("127.0.0.2", "127.0.0.3")) as both,
    ):
        found += both
        with session_with(both[0], authorizer=Keys("Bearer CANARY")) as session, pytest.raises(RemoteError) as caught:
            get(session, "/v2/x?secret=CANARY", retries=False)
        with pytest.raises(NetworkError), session_with("127.0.0.2:1") as session:
            get(session, "/v2/x?secret=CANARY", retries=False)
        records = [vars(record) for record in caplog.records if getattr(record, "event", "") == "request"]
    assert [("/v2/x", 307), ("/signed", 500), ("/v2/x", "net_error")] == [(r["path"], r["status"]) for r in records]
    assert "CANARY" not in f"{caplog.text}{records}{caught.value!s}{caught.value!r}"
