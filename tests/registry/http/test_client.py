"""Whole answers only, over connections that are kept while nothing is in doubt."""

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
from tests.registry.http.peers import Peer, Script, Talk, reply, whole
from tests.registry.http.sessions import (
    get,
    read_all,
    session_with,
    trusting,
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
# A cut within the body of CLOSED looks like its end where only the end of the connection ends it.
PROVEN = SWEPT | {"GET until closed": ("GET", CLOSED)}
CUT_IN_HEAD = SWEPT | {"GET until closed": ("GET", CLOSED[: CLOSED.index(b"abc")])}


def cut_script(said: bytes, end: Script) -> Script:
    """The n-th request gets a response cut after n - 1 bytes."""

    def script(talk: Talk) -> None:
        if talk.request() is not None:
            talk.say(said[: len(talk.peer.requests) - 1])
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


@pytest.mark.parametrize(("method", "said"), CUT_IN_HEAD.values(), ids=CUT_IN_HEAD)
def test_no_cut_response_counts(method: str, said: bytes) -> None:
    with Peer(cut_script(said, lambda talk: talk.sock.close())) as peer, session_with(peer) as session:
        assert {"truncated"} == outcomes_of_cuts(session, method, said)
        assert len(said) == len(peer.requests)


@pytest.mark.parametrize(("method", "said"), PROVEN.values(), ids=PROVEN)
def test_no_response_with_a_reset_in_it_counts(method: str, said: bytes) -> None:
    with Peer(cut_script(said, Talk.reset)) as peer, session_with(peer) as session:
        assert {"net_error"} == outcomes_of_cuts(session, method, said)


@pytest.mark.parametrize(("method", "said"), PROVEN.values(), ids=PROVEN)
def test_no_end_without_a_tls_goodbye_counts_as_a_response(method: str, said: bytes, authority: Any) -> None:
    script = cut_script(said, lambda talk: talk.sock.close())
    with (
        Peer(script, tls=authority.server_context()) as peer,
        session_with(peer, plain_http=False, tls=trusting(authority)) as session,
    ):
        assert {"truncated"} == outcomes_of_cuts(session, method, said)


def test_connections_are_kept_and_used_again_and_closed_in_the_end() -> None:
    with Peer(reply(whole("200 OK"))) as peer:
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
    def one_response(talk: Talk) -> None:
        if talk.request() is not None:
            talk.respond("200 OK")

    with Peer(one_response) as peer, session_with(peer) as session:
        for number in range(1, 4):
            get(session, method="PUT", retries=False)
            assert number == peer.connections
            peer.settle()


def dies_when_asked_again(talk: Talk, end: Script = Talk.reset) -> None:
    """The race of keep-alive: the first request is answered, the second one meets an end."""
    if talk.request() is not None:
        talk.respond("200 OK")
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
        assert {f"{method} tags": 5} == session.host.requests(), "as the peer saw them"
        assert 0 == limits.retries


def test_an_unsafe_request_that_met_a_dying_connection_is_an_error() -> None:
    with Peer(dies_when_asked_again) as peer, session_with(peer) as session:
        get(session, method="PUT", retries=False)
        with pytest.raises(NetworkError):
            get(session, method="PUT", retries=False)
        assert 1 == peer.connections


def test_a_response_half_heard_is_not_asked_for_again() -> None:
    def script(talk: Talk) -> None:
        if talk.request() is not None:
            talk.respond("200 OK")
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
        whole("200 OK", b"a response to HEAD has no body"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_connection_in_doubt_is_not_used_again(said: bytes) -> None:
    with Peer(reply(said)) as peer, session_with(peer) as session:
        for _ in range(3):
            assert 200 == get(session, method="HEAD").status
        assert (3 if b"chunked" not in said else 1) == peer.connections


def test_a_stream_left_early_costs_its_connection() -> None:
    with Peer(reply(whole("200 OK", b"x" * 100))) as peer, session_with(peer) as session:
        with session.stream("/x", work(), kind="blob") as stream:
            assert 10 == stream.readinto(memoryview(bytearray(10)))
        assert b"x" * 100 == read_all(session)
        assert 2 == peer.connections
        assert b"x" * 100 == read_all(session)
        assert 2 == peer.connections


def test_a_part_of_a_blob_is_asked_for_with_a_range() -> None:
    script = reply(whole("206 Partial Content", b"cd", "Content-Range: bytes 2-3/4"))
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
    with (
        Peer(reply(whole("200 OK", b"xx", f"Content-Encoding: {coding}"))) as peer,
        session_with(peer) as session,
    ):
        with pytest.raises(RemoteError) as caught:
            read_all(session)
        assert "bad_response" == caught.value.code


def test_a_stream_is_not_tried_again() -> None:
    with Peer(reply(whole("500 R"))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            read_all(session)
        assert 1 == len(peer.requests)


def test_threads_share_a_session_and_each_gets_its_own_responses() -> None:
    def echo(talk: Talk) -> None:
        while (request := talk.request()) is not None:
            talk.respond("200 OK", request.target.encode())

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
