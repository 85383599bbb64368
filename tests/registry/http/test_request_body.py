"""Request bodies: sent once, stopped by an early response, and never complete after an error."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import Any

import pytest

from mirror.errors import AuthError, Cancelled, LocalError, NetworkError, RemoteError
from mirror.registry.auth.authorizer import Anonymous, Scope, push_scopes
from mirror.registry.http.host_settings import TlsSettings
from mirror.registry.session import Response, Session
from mirror.util.cancellation import Stop, Work
from tests.registry.http.peers import Peer, PeerConnection, peers, raw_response, reply
from tests.registry.http.sessions import LONG_TIMEOUTS, STOPPED_WITHIN, session_with, work

BLOB = bytes(range(256)) * (16 << 10)  # 4 MiB
NEVER = 1 << 50  # bytes: more than the buffers of sockets hold, so that the body is never sent completely
CREATED = raw_response("201 Created", b"", "Location: /v2/a/b/blobs/x")


class RecordingAuthorizer(Anonymous):
    """An authorizer that sends a token and records challenges."""

    def __init__(self) -> None:
        self.challenges: list[Sequence[str]] = []

    def header(self, scopes: tuple[Scope, ...], work: Work) -> str | None:
        return "Bearer secret"

    def handle_challenge(
        self, scopes: tuple[Scope, ...], challenges: Sequence[str], sent: str | None, work: Work
    ) -> None:
        self.challenges.append(challenges)


def pieces(data: bytes = BLOB, size: int = 256 << 10) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), size):
        yield view[start : start + size]


def endless() -> Iterator[memoryview]:
    """Yield a body without an end."""
    while True:
        yield from pieces()


def put(
    session: Session,
    body: Iterable[bytes | memoryview],
    *,
    length: int | None = len(BLOB),
    where: str = "/v2/a/b/blobs/uploads/u?_state=CANARY",
    **options: Any,
) -> Response:
    destination = session.url_policy.check_upload_location(
        where, session.url_policy.destination("/v2/a/b/blobs/uploads/")
    )
    options = {"work": work(), "kind": "blob", "scopes": push_scopes("a/b"), "expect": {201}, **options}
    return session.upload("PUT", destination, options.pop("work"), length=length, body=body, **options)


@pytest.mark.parametrize("length", [len(BLOB), None], ids=["counted", "chunked"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_body_arrives_unchanged_and_the_connection_is_kept(length: int | None, secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": TlsSettings(ca=authority.ca)} if secure else {}
    with Peer(reply(CREATED), tls=tls) as peer, session_with(peer, **options) as session:
        for _ in range(2):
            response = put(session, [b"", *pieces(), b""], length=length)
            assert (201, "/v2/a/b/blobs/x") == (response.status, response.headers.get("location"))
        digests = {hashlib.sha256(request.body).hexdigest() for request in peer.requests}
        assert {hashlib.sha256(BLOB).hexdigest()} == digests
        assert (1, {"PUT blob": 2}) == (peer.connections, session.host.requests())
        assert (length is None) == ("transfer-encoding" in peer.requests[0].headers)


@pytest.mark.parametrize("length", [0, None])
def test_an_empty_body_is_sent(length: int | None) -> None:
    with Peer(reply(CREATED)) as peer, session_with(peer) as session:
        assert 201 == put(session, [], length=length).status
        assert [b""] == [request.body for request in peer.requests]


class BodyRecorder:
    """A script that records the received body, and whether it was complete."""

    def __init__(self) -> None:
        self.seen = b""
        self.head = b""

    def __call__(self, conn: PeerConnection) -> None:
        self.head = conn.read_head() or b""
        self.seen = conn.read_to_end()


def failing_body(error: BaseException, after: int = 3) -> Iterator[bytes]:
    for _ in range(after):
        yield b"x" * 1000
    raise error


@pytest.mark.parametrize("length", [5000, 3000, None])
def test_an_error_of_the_body_closes_the_connection_and_is_raised(length: int | None) -> None:
    watched = BodyRecorder()
    error = LocalError("the disk broke")
    with Peer(watched) as peer, session_with(peer) as session:
        with pytest.raises(LocalError) as caught:
            # The caller holds back the last bytes, so the error must be raised before them.
            put(session, failing_body(error, after=2 if length == 3000 else 3), length=length)
        assert caught.value is error
        peer.wait_for_scripts()
        assert len(watched.seen) < (length or 10**9)
        assert not watched.seen.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("body", [[b"x" * 9], [b"x" * 6, b"x" * 5], []], ids=["short", "long", "empty"])
def test_a_body_with_a_wrong_length_is_not_completed(body: list[bytes]) -> None:
    watched = BodyRecorder()
    with Peer(watched) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            put(session, body, length=10)
        assert "size_mismatch" == caught.value.code
        peer.wait_for_scripts()
        assert len(watched.seen) < 10


def respond_early(sent_bytes: bytes, *, then: str, seconds: float = 10.0) -> Any:
    """Return a script that responds after the request head and does not read the body: it waits, closes or resets."""

    def script(conn: PeerConnection) -> None:
        conn.read_head()
        conn.send(sent_bytes)
        if then == "wait":
            conn.peer.wait_for(lambda: conn.peer.connections < 0, seconds)
        elif then == "reset":
            conn.reset()

    return script


@pytest.mark.parametrize("then", ["wait", "close", "reset"])
@pytest.mark.parametrize("length", [NEVER, None], ids=["counted", "chunked"])
def test_an_early_error_response_ends_the_sending_and_is_returned(then: str, length: int | None) -> None:
    sent_bytes = raw_response("413 Too Large", b"<html>no</html>")
    with Peer(respond_early(sent_bytes, then=then)) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            put(session, endless(), length=length)
        if then != "reset":  # the reset may discard the response
            assert (413, False) == (caught.value.status, caught.value.retryable)
        peer.notify(lambda: setattr(peer, "connections", -1))


@pytest.mark.parametrize("length", [NEVER, None], ids=["counted", "chunked"])
def test_a_success_before_the_end_of_the_body_is_an_error(length: int | None) -> None:
    with Peer(respond_early(CREATED, then="close")) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            put(session, endless(), length=length)
        assert ("bad_response", True) == (caught.value.code, caught.value.retryable)


def test_an_interim_response_does_not_end_the_sending() -> None:
    def script(conn: PeerConnection) -> None:
        conn.read_head()
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Proc")
        threading.Event().wait(0.05)
        conn.send(b"essing\r\n\r\n")
        body = conn._read_exactly(len(BLOB))
        conn.send(CREATED if body == BLOB else raw_response("400 Other bytes"))

    with Peer(script) as peer, session_with(peer) as session:
        assert 201 == put(session, pieces()).status


@pytest.mark.parametrize("sent_bytes", [b"", b"HTTP/1.1 20"])
def test_a_peer_that_disconnects_during_the_body_is_a_network_error(sent_bytes: bytes) -> None:
    for end in (PeerConnection.reset, lambda conn: conn.sock.close()):

        def script(conn: PeerConnection, end: Any = end) -> None:
            conn.read_head()
            conn.send(sent_bytes)
            end(conn)

        with Peer(script) as peer, session_with(peer) as session:
            with pytest.raises(NetworkError) as caught:
                put(session, pieces())
            assert caught.value.retryable
            assert caught.value.code in ("net_error", "truncated")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_peer_that_reads_nothing_is_too_slow(secure: bool, authority: Any) -> None:
    tls = authority.server_context() if secure else None
    options: dict[str, Any] = {"plain_http": False, "tls": TlsSettings(ca=authority.ca)} if secure else {}
    with Peer(respond_early(b"", then="wait"), tls=tls) as peer:
        with session_with(peer, idle_timeout=0.3, **options) as session, pytest.raises(NetworkError) as caught:
            put(session, endless(), length=NEVER)
        assert "too_slow" == caught.value.code
        peer.notify(lambda: setattr(peer, "connections", -1))


def test_a_small_request_with_a_large_body_has_a_deadline_too() -> None:
    with Peer(respond_early(b"", then="wait")) as peer:
        with session_with(peer, idle_timeout=0.3, deadline=0.4) as session, pytest.raises(NetworkError) as caught:
            session.call("PUT", "/v2/a/b/manifests/x", work(retries=False), kind="m", body=BLOB * 4, expect={201})
        assert "timeout" == caught.value.code
        peer.notify(lambda: setattr(peer, "connections", -1))


def test_a_peer_that_does_not_respond_after_the_body_times_out() -> None:
    with Peer(lambda conn: conn.read_to_end()) as peer, session_with(peer, idle_timeout=0.15) as session:
        with pytest.raises(NetworkError) as caught:
            put(session, [b"x"], length=1)
        assert ("timeout", True) == (caught.value.code, caught.value.retryable)


def test_a_stop_interrupts_a_blocked_send() -> None:
    stop = Stop()
    with Peer(respond_early(b"", then="wait", seconds=90.0)) as peer, session_with(peer, **LONG_TIMEOUTS) as session:

        def body() -> Iterator[bytes]:
            yield b"x" * 1000
            timer.start()
            while True:
                yield BLOB

        timer = threading.Timer(0.1, stop.request, ("a signal",))
        started = monotonic()
        with pytest.raises(Cancelled):
            put(session, body(), length=None, work=Work(stop))
        assert monotonic() - started < STOPPED_WITHIN
        timer.join()
        peer.notify(lambda: setattr(peer, "connections", -1))


def test_an_upload_with_an_expired_token_can_be_retried_with_a_new_one() -> None:
    keys = RecordingAuthorizer()
    script = reply(raw_response("401 Who", b"", 'WWW-Authenticate: Bearer realm="x"'))
    with Peer(script) as peer, session_with(peer, authorizer=keys) as session:
        with pytest.raises(AuthError) as caught:
            put(session, pieces())
        assert ("auth_failed", True, 401) == (caught.value.code, caught.value.retryable, caught.value.status)
        assert [['Bearer realm="x"']] == keys.challenges
        assert 1 == len(peer.requests)


@pytest.mark.parametrize("status", ["301 A", "302 B", "303 C", "307 D", "308 E"])
def test_an_upload_is_never_redirected(status: str) -> None:
    with Peer(reply(raw_response(status, b"", "Location: /elsewhere"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError, match="redirect") as caught:
            put(session, pieces())
        assert ("bad_response", 1) == (caught.value.code, len(peer.requests))


def test_an_upload_to_another_host_has_no_credentials_and_errors_show_no_query() -> None:
    keys = RecordingAuthorizer()
    with peers(reply(CREATED), reply(CREATED, raw_response("401 Who")), addresses=("127.0.0.2", "127.0.0.3")) as both:
        with session_with(both[0], authorizer=keys) as session:
            where = f"http://{both[1].name}/upload?signature=CANARY"
            put(session, pieces(), where=where)
            with pytest.raises(AuthError) as caught:
                put(session, pieces(), where=where)
        assert ([], 2) == (both[0].requests, len(both[1].requests))
        assert not any("authorization" in request.headers for request in both[1].requests)
        assert (False, []) == (caught.value.retryable, keys.challenges)
        assert "CANARY" not in str(caught.value)
