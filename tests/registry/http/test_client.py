"""The client accepts only complete responses, and keeps only connections in a known state."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mirror.errors import (
    MirrorError,
    NetworkError,
    RemoteError,
)
from mirror.limits import Limits
from mirror.registry.session import Session
from tests.registry.http.peers import Peer, PeerConnection, Script, raw_response, reply
from tests.registry.http.sessions import (
    get,
    read_all,
    session_with,
    tls_with_ca,
    work,
)

SWEPT = {
    "PUT 201": (
        "PUT",
        b"HTTP/1.1 201 Created\r\nDocker-Content-Digest: sha256:12\r\nLocation: /v2/a\r\nContent-Length: 0\r\n\r\n",
    ),
    "HEAD 200": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 527\r\nDocker-Content-Digest: sha256:1234\r\n\r\n"),
    "GET 200": ("GET", b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 12\r\n\r\nabcdefghijkl"),
    "GET chunked": (
        "GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n9\r\ndefghijkl\r\n0\r\nA: b\r\n\r\n",
    ),
}
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdefghijkl"
# The body of CLOSED ends with the connection, so a truncation inside it cannot be detected.
PROVEN = SWEPT | {"GET until closed": ("GET", CLOSED)}
CUT_IN_HEAD = SWEPT | {"GET until closed": ("GET", CLOSED[: CLOSED.index(b"abc")])}


def send_truncated(sent_bytes: bytes, end: Script) -> Script:
    """Return a script: the n-th request gets a response that ends after n - 1 bytes."""

    def script(conn: PeerConnection) -> None:
        if conn.read_request() is not None:
            conn.send(sent_bytes[: len(conn.peer.requests) - 1])
            end(conn)

    return script


def outcomes_of_truncation(session: Session, method: str, sent_bytes: bytes) -> set[str]:
    codes = set()
    status = int(sent_bytes[9:12])
    for _ in range(len(sent_bytes)):
        with pytest.raises(MirrorError) as caught:
            get(session, method=method, expect={status}, retries=False)
        assert caught.value.retryable
        codes.add(caught.value.code)
    return codes


@pytest.mark.parametrize(("method", "sent_bytes"), CUT_IN_HEAD.values(), ids=CUT_IN_HEAD)
def test_a_truncated_response_is_an_error(method: str, sent_bytes: bytes) -> None:
    with Peer(send_truncated(sent_bytes, lambda conn: conn.sock.close())) as peer, session_with(peer) as session:
        assert {"truncated"} == outcomes_of_truncation(session, method, sent_bytes)
        assert len(sent_bytes) == len(peer.requests)


@pytest.mark.parametrize(("method", "sent_bytes"), PROVEN.values(), ids=PROVEN)
def test_a_response_interrupted_by_a_reset_is_an_error(method: str, sent_bytes: bytes) -> None:
    with Peer(send_truncated(sent_bytes, PeerConnection.reset)) as peer, session_with(peer) as session:
        assert {"net_error"} == outcomes_of_truncation(session, method, sent_bytes)


@pytest.mark.parametrize(("method", "sent_bytes"), PROVEN.values(), ids=PROVEN)
def test_a_response_that_ends_without_close_notify_is_an_error(method: str, sent_bytes: bytes, authority: Any) -> None:
    script = send_truncated(sent_bytes, lambda conn: conn.sock.close())
    with (
        Peer(script, tls=authority.server_context()) as peer,
        session_with(peer, plain_http=False, tls=tls_with_ca(authority)) as session,
    ):
        assert {"truncated"} == outcomes_of_truncation(session, method, sent_bytes)


def test_connections_are_kept_and_reused_and_closed_with_the_session() -> None:
    with Peer(reply(raw_response("200 OK"))) as peer:
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


def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    def one_response(conn: PeerConnection) -> None:
        if conn.read_request() is not None:
            conn.respond("200 OK")

    with Peer(one_response) as peer, session_with(peer) as session:
        for number in range(1, 4):
            get(session, method="PUT", retries=False)
            assert number == peer.connections
            peer.wait_for_scripts()


def close_at_second_request(conn: PeerConnection, end: Script = PeerConnection.reset) -> None:
    """Respond to the first request, and end the connection at the second one, as a keep-alive timeout does."""
    if conn.read_request() is not None:
        conn.respond("200 OK")
        if conn.read_request() is not None:
            end(conn)


@pytest.mark.parametrize("end", [PeerConnection.reset, lambda conn: None], ids=["reset", "end"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_safe_request_is_sent_again_if_the_peer_closes_a_kept_connection(method: str, end: Any) -> None:
    limits = Limits()
    with (
        Peer(lambda conn: close_at_second_request(conn, end)) as peer,
        session_with(peer, limits=limits) as session,
    ):
        for _ in range(3):
            get(session, method=method, retries=False)
        assert (3, 5) == (peer.connections, len(peer.requests))
        assert {f"{method} tags": 5} == session.host.requests(), "as the peer saw them"
        assert 0 == limits.retries


def test_an_unsafe_request_is_not_sent_again_if_the_peer_closes_a_kept_connection() -> None:
    with Peer(close_at_second_request) as peer, session_with(peer) as session:
        get(session, method="PUT", retries=False)
        with pytest.raises(NetworkError):
            get(session, method="PUT", retries=False)
        assert 1 == peer.connections


def test_a_request_is_not_sent_again_after_a_part_of_its_response() -> None:
    def script(conn: PeerConnection) -> None:
        if conn.read_request() is not None:
            conn.respond("200 OK")
            conn.read_request()
            conn.send(b"HTTP/1.1 20")

    with Peer(script) as peer, session_with(peer) as session:
        get(session)
        with pytest.raises(NetworkError) as caught:
            get(session, retries=False)
        assert ("truncated", 1) == (caught.value.code, peer.connections)


@pytest.mark.parametrize(
    "sent_bytes",
    [
        raw_response("200 OK", b"", "Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        raw_response("200 OK") + b"surplus",
        raw_response("200 OK", b"a response to HEAD has no body"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_connection_in_an_uncertain_state_is_not_reused(sent_bytes: bytes) -> None:
    with Peer(reply(sent_bytes)) as peer, session_with(peer) as session:
        for _ in range(3):
            assert 200 == get(session, method="HEAD").status
        assert (3 if b"chunked" not in sent_bytes else 1) == peer.connections


def test_a_stream_that_is_closed_early_closes_its_connection() -> None:
    with Peer(reply(raw_response("200 OK", b"x" * 100))) as peer, session_with(peer) as session:
        with session.stream("/x", work(), kind="blob") as stream:
            assert 10 == stream.readinto(memoryview(bytearray(10)))
        assert b"x" * 100 == read_all(session)
        assert 2 == peer.connections
        assert b"x" * 100 == read_all(session)
        assert 2 == peer.connections


def test_a_part_of_a_blob_is_requested_with_a_range() -> None:
    script = reply(raw_response("206 Partial Content", b"cd", "Content-Range: bytes 2-3/4"))
    with Peer(script) as peer, session_with(peer) as session:
        with session.stream("/x", work(), kind="blob", headers=(("Range", "bytes=2-"),)) as stream:
            assert (206, "bytes 2-3/4") == (stream.status, stream.headers.get("content-range"))
            assert 0 == stream.readinto(memoryview(b"").cast("B"))
            view = memoryview(bytearray(9))
            assert (2, b"cd", 0) == (stream.readinto(view), bytes(view[:2]), stream.readinto(view))
            stream.close()
        assert "bytes=2-" == peer.requests[0].headers["range"]


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_a_blob_with_a_content_encoding_is_an_error(coding: str) -> None:
    with (
        Peer(reply(raw_response("200 OK", b"xx", f"Content-Encoding: {coding}"))) as peer,
        session_with(peer) as session,
    ):
        with pytest.raises(RemoteError) as caught:
            read_all(session)
        assert "bad_response" == caught.value.code


def test_a_stream_is_not_retried() -> None:
    with Peer(reply(raw_response("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            read_all(session)
        assert 1 == len(peer.requests)


def test_threads_that_share_a_session_get_their_own_responses() -> None:
    def echo(conn: PeerConnection) -> None:
        while (request := conn.read_request()) is not None:
            conn.respond("200 OK", request.target.encode())

    wrong: list[str] = []

    def ask(session: Session, number: int) -> None:
        for index in range(30):
            target = f"/v2/{number}/{index}"
            if get(session, target).body != target.encode():
                wrong.append(target)

    with Peer(echo) as peer, session_with(peer) as session:
        threads = [threading.Thread(target=ask, args=(session, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ([], 180, {"GET tags": 180}) == (wrong, len(peer.requests), session.host.requests())
        assert peer.connections <= 6
